"""Candidates for the pose of a pair: searched from nothing, approached, and seen again in the orientation found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medrl.data.pair_cases import Pair, PairCases
from medrl.data.pair_images import PairImage
from medrl.geometry.poses import Pose, from_matrices, to_matrices
from medrl.inference.climbing import climb
from medrl.inference.pair_views import View, fixed_frame, pair_of, view
from medrl.inference.pose_proposals import distinct, look_at, propose
from medrl.networks.features import PairNetworks


@dataclass(frozen=True)
class Search:
    """How candidates are searched.

    ``orientations`` of up to ``degrees`` are scored at ``points`` places, the best ``starts`` approached by nudges of
    ``approach_mm``, and the best ``candidates`` of them kept.  These are looked at again at ``counts`` (coarse, fine)
    places.  The ``spare`` next best are kept as they are.
    """

    orientations: int = 400
    degrees: float = 120.0
    points: int = 256
    starts: int = 24
    approach_mm: tuple[float, ...] = (12.0, 4.0)
    candidates: int = 4
    spare: int = 8
    counts: tuple[int, int] = (400, 1500)


@dataclass
class Candidates:
    """K candidates; each is a case of its own, with the moving image rendered in the orientation found."""

    pairs: list[Pair]
    cases: PairCases  # of the pairs
    pose: Pose  # (K,) in the frames of the cases
    spare: Tensor  # (M, 4, 4) RAS moving_from_fixed of other ends of the search, not looked at again


def find_candidates(
    fixed: PairImage, moving: PairImage, networks: PairNetworks, *, search: Search, scaled: bool,
    generator: torch.Generator, truth: Tensor | None = None, lattice_ras: Tensor | None = None, name: str = "",
) -> Candidates:  # fmt: skip
    """Search, best first; with ``truth`` (RAS moving_from_fixed) and ``lattice_ras`` (L, 3) cases know the answer."""
    seen, other = view(fixed, networks), view(moving, networks)
    scales = (0.87, 1.0, 1.15) if scaled else (1.0,)

    def case_of(moving_view: View, counts: tuple[int, int]) -> PairCases:
        points = torch.Generator().manual_seed(0)  # the same places for every candidate: their scores are compared
        pair = pair_of(
            seen, moving_view, counts=counts, generator=points, name=name, ras_truth=truth, lattice_ras=lattice_ras
        )
        return PairCases([pair], scale=networks.scale)

    few, more = case_of(other, (search.points, 8)), case_of(other, (search.counts[0], 8))
    pose = propose(
        few, generator, orientations=search.orientations, degrees=search.degrees, keep=search.starts, scales=scales
    )
    pose, score = climb(
        lambda p: look_at(more, p), pose, sizes_mm=search.approach_mm, scaled=scaled
    )
    kept = distinct(pose, score, search.candidates + search.spare, degrees=10.0, mm=10.0)
    fixed_from_ras = fixed_frame(seen)
    found = torch.linalg.inv(other.grid_from_ras) @ to_matrices(pose)[kept].double().cpu() @ fixed_from_ras
    again = look_again(
        fixed_view=seen, moving=moving, networks=networks, found=found[: search.candidates], counts=search.counts,
        truth=truth, lattice_ras=lattice_ras, name=name,
    )  # fmt: skip
    return replace(again, spare=found[search.candidates :])


def look_again(
    *, fixed_view: View, moving: PairImage, networks: PairNetworks, found: Tensor, counts: tuple[int, int],
    truth: Tensor | None = None, lattice_ras: Tensor | None = None, name: str = "",
) -> Candidates:  # fmt: skip
    """Candidates of RAS poses ``found`` (K, 4, 4): the moving image is rendered anew in the orientation of each."""
    pairs = []
    for matrix in found:
        frame = torch.eye(4, dtype=torch.float64)
        frame[:3, :3] = (matrix[:3, :3] / torch.linalg.det(matrix[:3, :3]).abs() ** (1 / 3)).T
        turned = view(moving, networks, frame_from_ras=frame)
        points = torch.Generator().manual_seed(0)
        pairs.append(
            pair_of(
                fixed_view, turned, counts=counts, generator=points, name=name, ras_truth=truth, lattice_ras=lattice_ras
            )
        )
    back = torch.linalg.inv(fixed_frame(fixed_view))
    pose = from_matrices(torch.stack([p.moving_from_ras @ m @ back for p, m in zip(pairs, found, strict=True)]).float())
    device = networks.coarse.log_scale.device
    pose = Pose(*(value.to(device) for value in pose))
    return Candidates(pairs, PairCases(pairs, scale=networks.scale), pose, found[:0])
