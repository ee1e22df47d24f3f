"""Pairs of images as an agent sees them: points of the fixed image, features and grey values of the moving one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl.geometry.feature_tables import FeatureTable
from medrl.geometry.mind import describe
from medrl.geometry.poses import Pose, distance_mm, from_matrices, to_matrices, transform_all
from medrl.types import InputError

BINS = 16  # of a joint histogram, along each axis
CACHED = 30_000  # points that are looked at together on a CPU
COARSE_MM, FINE_MM = 8.0, 4.0  # grids of the features, and of the grey values


class Points(NamedTuple):
    """P places of a fixed image, in its frame, and the learned features there."""

    place_mm: Tensor  # (P, 3)
    feature: Tensor  # (P, C)


@dataclass
class Pair:
    """One pair: frames are mm, the fixed one from the middle of the body, the moving one from its grid's middle."""

    name: str
    coarse: Points  # on the grid of 8 mm
    fine_mm: Tensor  # (Q, 3) places on the grid of 4 mm, in the fixed frame
    grey: Tensor  # (Q,) of the fixed image there, in [0, 1]
    moving_coarse: Tensor  # (C, X, Y, Z) features at 8 mm
    moving_grey: Tensor  # (X', Y', Z') at 4 mm, in [0, 1]
    moving_from_fixed: Tensor | None  # (4, 4) the truth in these frames, if known
    lattice_mm: Tensor  # (L, 3) places of the body at which the error counts, in the fixed frame
    middle_mm: Tensor  # (3,) of the moving body
    mind: Tensor | None = None  # (Q, 6) of the fixed image at the fine places, for `self_similarity`
    fixed_from_ras: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))  # (4, 4), to the frames
    moving_from_ras: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))

    def to_ras(self, matrices: Tensor) -> Tensor:
        """RAS ``moving_from_fixed`` (..., 4, 4) float64 of matrices between the frames."""
        return torch.linalg.inv(self.moving_from_ras) @ matrices.double().cpu() @ self.fixed_from_ras


class Seen(NamedTuple):
    """What B poses, or K poses of each of B rows, look like."""

    score: Tensor  # (B,) or (B, K) learned similarity: the log-likelihood of a pose but for a constant
    inside: Tensor  # (B,) or (B, K) share of the fine places inside the moving grid
    information: Tensor  # (B,) or (B, K) mutual information of the grey values, in nats


class PairCases:
    """N pairs on one device, all with the same numbers of points.

    ``scale`` () is the log-likelihood of a unit of mean product.
    """

    def __init__(self, pairs: Sequence[Pair], *, scale: Tensor | float) -> None:
        device = pairs[0].lattice_mm.device
        self.names = tuple(pair.name for pair in pairs)
        self.coarse = Points(*(torch.stack(part) for part in zip(*(pair.coarse for pair in pairs), strict=True)))
        self.fine_mm = torch.stack([pair.fine_mm for pair in pairs])
        self.grey = _hat(torch.stack([pair.grey for pair in pairs])).mT.contiguous()  # (N, Q, BINS)
        self.table = {
            "coarse": FeatureTable([pair.moving_coarse for pair in pairs], COARSE_MM),
            "grey": FeatureTable([pair.moving_grey[None] for pair in pairs], FINE_MM),
        }
        self.mind: Tensor | None = None
        minds = [pair.mind for pair in pairs if pair.mind is not None]
        if len(minds) == len(pairs):
            self.mind = torch.stack(minds)
            self.table["mind"] = FeatureTable([describe(pair.moving_grey) for pair in pairs], FINE_MM)
        matrices = [torch.eye(4) if p.moving_from_fixed is None else p.moving_from_fixed.float() for p in pairs]
        self.truth: Pose = from_matrices(torch.stack(matrices).to(device))
        self.known = torch.tensor([p.moving_from_fixed is not None for p in pairs], device=device)
        self.lattice_mm = torch.stack([pair.lattice_mm for pair in pairs])
        self.middle_mm = torch.stack([pair.middle_mm for pair in pairs])
        self.scale = torch.as_tensor(scale, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where everything lives."""
        return self.lattice_mm.device

    def to(self, device: torch.device | str) -> PairCases:
        """Move to a device; returns self."""
        self.coarse = Points(*(value.to(device) for value in self.coarse))
        self.truth = Pose(*(value.to(device) for value in self.truth))
        for name in ("known", "fine_mm", "grey", "lattice_mm", "middle_mm", "scale"):
            setattr(self, name, getattr(self, name).to(device))
        self.mind = None if self.mind is None else self.mind.to(device)
        for table in self.table.values():
            table.to(device)
        return self

    def error_mm(self, case: Tensor, pose: Pose) -> Tensor:
        """Mean distance (B,) or (B, K) of poses from the truth over the lattice, mm of the fixed image; or NaN."""
        case = case.long()
        truth = Pose(*(value[case] for value in self.truth))
        distance = distance_mm(pose, truth, self.lattice_mm[case])
        known = self.known[case].reshape(-1, *[1] * (distance.ndim - 1))
        return torch.where(known, distance, torch.nan)

    def look(self, case: Tensor, pose: Pose, *, information: bool = True) -> Seen:
        """Look at poses (B,) or (B, K) of the cases (B,).

        Without ``information`` the grey values are not looked at; it and the share inside are 0 then.
        """
        (score,) = self._by_parts(self._scores, case, pose, self.coarse.place_mm.shape[1])
        inside = shared = torch.zeros_like(score)
        if information:
            inside, shared = self.information(case, pose)
        return Seen(score, inside, shared)

    def products(self, case: Tensor, pose: Pose) -> Tensor:
        """Products (B, P) or (B, K, P) of the features, place by place; their mean, scaled, is the score."""
        return self._by_parts(self._products, case, pose, self.coarse.place_mm.shape[1])[0]

    def information(self, case: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
        """Share of the fine places inside the moving grid, and mutual information there, as `look` has them."""
        return self._by_parts(self._shared, case, pose, self.fine_mm.shape[1])

    def self_similarity(self, case: Tensor, pose: Pose) -> Tensor:
        """Minus the mean squared difference (B,) or (B, K) of MIND at the fine places; 0 beyond the moving grid.

        The descriptors are those of both grids as they lie: they compare what is turned by some 20 degrees at most.

        Raises:
            InputError: the pairs have no ``mind``.
        """
        if self.mind is None:
            raise InputError("the pairs have no MIND descriptors; expected pair_of(..., mind=True)")
        return self._by_parts(self._alike, case, pose, self.fine_mm.shape[1])[0]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: pairs are drawn from a seed and never replaced."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""

    def _channels(self, case: Tensor, matrix: Tensor) -> Tensor:
        place, feature = (part[case] for part in self.coarse)
        value, _ = self.table["coarse"].sample(case, transform_all(matrix, place))
        return value * feature[:, None]  # (B, K, P, C)

    def _products(self, case: Tensor, matrix: Tensor) -> tuple[Tensor]:
        return (self._channels(case, matrix).sum(-1),)

    def _scores(self, case: Tensor, matrix: Tensor) -> tuple[Tensor]:
        channels = self._channels(case, matrix)  # one sum over all is far faster than one for each place
        return (channels.flatten(2).sum(-1) * (self.scale / channels.shape[2]),)

    def _shared(self, case: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = self.table["grey"].sample(case, transform_all(matrix, self.fine_mm[case]))
        return inside.float().mean(-1), _information(self.grey[case], value[..., 0], inside)

    def _alike(self, case: Tensor, matrix: Tensor) -> tuple[Tensor]:
        value, _ = self.table["mind"].sample(case, transform_all(matrix, self.fine_mm[case]))
        return (-(value - self.mind[case][:, None]).square().mean((-2, -1)),)

    def _by_parts(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], case: Tensor, pose: Pose, points: int
    ) -> tuple[Tensor, ...]:
        """What a function of matrices (B, K, 4, 4) says of poses (B,) or (B, K).

        A few poses at a time on a CPU: what does not fit into its cache takes many times longer.
        """
        case, matrix = case.long(), to_matrices(pose)
        if single := matrix.ndim == 3:
            matrix = matrix[:, None]
        together = max(1, CACHED // points)
        if matrix.shape[0] * matrix.shape[1] <= together or self.device.type != "cpu":
            seen = function(case, matrix)
        else:
            rows, found = max(1, together // matrix.shape[1]), []
            for some, part in zip(case.split(rows), matrix.split(rows), strict=True):
                each = [function(some, few) for few in part.split(together, 1)]
                found.append([torch.cat(values, 1) for values in zip(*each, strict=True)])
            seen = tuple(torch.cat(values) for values in zip(*found, strict=True))
        return tuple(value[:, 0] for value in seen) if single else seen


def _hat(grey: Tensor, inside: Tensor | None = None) -> Tensor:
    """Shares (..., BINS, P) of values (..., P) in [0, 1] in the two nearest bins; none of those that are not inside."""
    place = grey.clamp(0, 1) * (BINS - 1)
    if inside is not None:
        place = place.masked_fill(~inside, -1.0)
    away = place[..., None, :] - torch.arange(BINS, device=grey.device)[:, None]
    return (1 - away.abs_()).relu_()


def _information(fixed: Tensor, moving: Tensor, inside: Tensor) -> Tensor:
    """Mutual information (B, K) in nats of the points inside, from joint histograms with linear shares.

    ``fixed`` (B, P, BINS) are the shares of the fixed image, ``moving`` (B, K, P) the values of the other one.
    """
    joint = (_hat(moving, inside).flatten(1, 2) @ fixed).unflatten(1, (-1, BINS))  # (B, K, BINS, BINS)
    joint = joint / joint.sum((2, 3), keepdim=True).clamp(min=1e-6)
    apart = joint.sum(2, keepdim=True) * joint.sum(3, keepdim=True)
    return (joint * ((joint + 1e-9).log() - (apart + 1e-9).log())).sum((2, 3))
