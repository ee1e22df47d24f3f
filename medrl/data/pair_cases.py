"""Pairs of images as an agent sees them: feature points of the fixed image, feature volumes of the moving one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl.geometry.feature_tables import FeatureTable
from medrl.geometry.mind import describe
from medrl.geometry.poses import Pose, distance_mm, from_matrices, transform
from medrl.types import InputError

BINS = 16  # of a joint histogram, along each axis
CACHED = 30_000  # points that are looked at together on a CPU
LEVELS_MM = {"coarse": 8.0, "fine": 4.0}


class Points(NamedTuple):
    """P places of a fixed image, in its frame, and what is there."""

    place_mm: Tensor  # (P, 3)
    feature: Tensor  # (P, C)


@dataclass
class Pair:
    """One pair: frames are mm, the fixed one from the middle of the body, the moving one from its grid's middle."""

    name: str
    coarse: Points  # 8 mm
    fine: Points  # 4 mm
    grey: Tensor  # (P,) of the fixed image at the fine points, in [0, 1]
    moving_coarse: Tensor  # (C, X, Y, Z)
    moving_fine: Tensor  # (C', X, Y, Z)
    moving_grey: Tensor  # (X, Y, Z), in [0, 1]
    moving_from_fixed: Tensor | None  # (4, 4) the truth in these frames, if known
    lattice_mm: Tensor  # (L, 3) places of the body at which the error counts, in the fixed frame
    middle_mm: Tensor  # (3,) of the moving body
    mind: Tensor | None = None  # (P, 6) of the fixed image at the fine points, for `self_similarity`
    fixed_from_ras: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))  # (4, 4), to the frames
    moving_from_ras: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))

    def to_ras(self, matrices: Tensor) -> Tensor:
        """RAS ``moving_from_fixed`` (..., 4, 4) float64 of matrices between the frames."""
        return torch.linalg.inv(self.moving_from_ras) @ matrices.double().cpu() @ self.fixed_from_ras


class Seen(NamedTuple):
    """What B poses look like."""

    product: Tensor  # (B, P) products of coarse features, place by place
    inside: Tensor  # (B,) share of the fine points inside the moving grid
    score: Tensor  # (B,) learned similarity: the log-likelihood of a pose but for a constant
    information: Tensor  # (B,) mutual information of the grey values, in nats


class PairCases:
    """N pairs on one device, all with the same numbers of points.

    ``scale`` (2,) are the log-likelihoods of a unit of mean product, coarse and fine.
    """

    def __init__(self, pairs: Sequence[Pair], *, scale: Tensor) -> None:
        self.names = tuple(pair.name for pair in pairs)
        self.points = {
            level: Points(*(torch.stack(part) for part in zip(*(getattr(p, level) for p in pairs), strict=True)))
            for level in LEVELS_MM
        }
        self.grey = _hat(torch.stack([pair.grey for pair in pairs]))  # (N, P, BINS)
        self.table = {
            "coarse": FeatureTable([pair.moving_coarse for pair in pairs], LEVELS_MM["coarse"]),
            "fine": FeatureTable(
                [torch.cat([pair.moving_fine, pair.moving_grey[None]]) for pair in pairs], LEVELS_MM["fine"]
            ),
        }
        self.mind: Tensor | None = None
        minds = [pair.mind for pair in pairs if pair.mind is not None]
        if len(minds) == len(pairs):
            self.mind = torch.stack(minds)
            self.table["mind"] = FeatureTable([describe(pair.moving_grey) for pair in pairs], LEVELS_MM["fine"])
        matrices = [torch.eye(4) if p.moving_from_fixed is None else p.moving_from_fixed.float() for p in pairs]
        self.truth: Pose = from_matrices(torch.stack(matrices).to(pairs[0].lattice_mm.device))
        self.known = torch.tensor([p.moving_from_fixed is not None for p in pairs], device=pairs[0].lattice_mm.device)
        self.lattice_mm = torch.stack([pair.lattice_mm for pair in pairs])
        self.middle_mm = torch.stack([pair.middle_mm for pair in pairs])
        self.scale = scale.float()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where everything lives."""
        return self.lattice_mm.device

    def to(self, device: torch.device | str) -> PairCases:
        """Move to a device; returns self."""
        self.points = {level: Points(*(x.to(device) for x in p)) for level, p in self.points.items()}
        self.truth = Pose(*(x.to(device) for x in self.truth))
        for name in ("known", "grey", "lattice_mm", "middle_mm", "scale"):
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

    def look(self, case: Tensor, pose: Pose, *, levels: Sequence[str] = tuple(LEVELS_MM)) -> Seen:
        """Look at poses (B,) of the cases (B,).

        Without the level "fine" the mutual information and the share inside are 0 and the score is the coarse one's.
        """
        case = case.long()
        rows = max(1, CACHED // sum(self.points[level].place_mm.shape[1] for level in levels))
        if len(case) > rows and self.device.type == "cpu":  # what does not fit into the cache takes many times longer
            parts = zip(case.split(rows), *(value.split(rows) for value in pose), strict=True)
            seen = [self.look(first, Pose(*part), levels=levels) for first, *part in parts]
            return Seen(*(torch.cat(values) for values in zip(*seen, strict=True)))
        score = torch.zeros(len(case), device=self.device)
        inside = information = score
        product = score[:, None]
        for number, level in enumerate(LEVELS_MM):
            if level not in levels:
                continue
            place, feature = (part[case] for part in self.points[level])
            value, within = self.table[level].sample(case, transform(pose, place))
            own = (value[..., : feature.shape[-1]] * feature).sum(-1)
            score = score + own.mean(-1) * self.scale[number]
            if level == "coarse":
                product = own
            else:
                inside = within.float().mean(-1)
                information = _information(self.grey[case], value[..., -1], within)
        return Seen(product, inside, score, information)

    def self_similarity(self, case: Tensor, pose: Pose) -> Tensor:
        """Minus the mean squared difference (B,) of MIND at the fine points; beyond the moving grid descriptors are 0.

        The descriptors are those of both grids as they lie: they compare what is turned by some 20 degrees at most.

        Raises:
            InputError: the pairs have no ``mind``.
        """
        if self.mind is None:
            raise InputError("the pairs have no MIND descriptors; expected pair_of(..., mind=True)")
        case = case.long()
        value, _ = self.table["mind"].sample(case, transform(pose, self.points["fine"].place_mm[case]))
        return -(value - self.mind[case]).square().mean((-2, -1))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: pairs are drawn from a seed and never replaced."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""


def _hat(grey: Tensor) -> Tensor:
    """Shares (..., BINS) of values in [0, 1] in the two nearest bins."""
    place = grey.clamp(0, 1)[..., None] * (BINS - 1)
    return (1 - (place - torch.arange(BINS, device=grey.device)).abs()).clamp(min=0)


def _information(fixed: Tensor, moving: Tensor, inside: Tensor) -> Tensor:
    """Mutual information (B,) in nats of the points inside, from a joint histogram with linear shares."""
    joint = fixed.transpose(1, 2) @ (_hat(moving) * inside[..., None])  # (B, BINS, BINS)
    joint = joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-6)
    apart = joint.sum(1, keepdim=True) * joint.sum(2, keepdim=True)
    return (joint * ((joint + 1e-9).log() - (apart + 1e-9).log())).sum((1, 2))
