"""Cases for a registration agent: pairs moved apart, and the candidates that a search finds for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.misalignment import LEVELS, body_lattice, draw_misalignment, image_centre, regrid
from medrl.data.pair_cases import Pair, PairCases
from medrl.data.pair_images import prepare
from medrl.geometry.poses import Nudges, nudged, to_matrices
from medrl.geometry.quaternions import from_vector
from medrl.inference.pair_views import pair_of, view
from medrl.inference.pose_candidates import Search, find_candidates
from medrl.networks.features import PairNetworks

logger = logging.getLogger(__name__)

LATTICE = 64  # points at which an error is measured in training


class ImagePair(NamedTuple):
    """An aligned pair of images as read."""

    name: str
    subject: str
    fixed: MetaTensor  # (1, X, Y, Z)
    moving: MetaTensor


def find_cases(
    pairs: Sequence[ImagePair], networks_of: Callable[[str], PairNetworks], *, levels: Sequence[str] = tuple(LEVELS),
    repeats: int = 1, search: Search | None = None, scaled: bool = True, seed: int = 0,
) -> tuple[list[Pair], Tensor]:  # fmt: skip
    """Cases, and the pose (N, 4, 4) in the frames of each at which a search proposes to start.

    Every pair is moved apart ``repeats`` times a level and regridded; ``networks_of`` answers, for a subject, networks
    whose features were not trained on it, so that the score is as good or bad as on a stranger.
    """
    search = Search() if search is None else search
    cases: list[Pair] = []
    starts: list[Tensor] = []
    for number, pair in enumerate(pairs):
        lattice = body_lattice(pair.fixed, pair.moving)
        lattice = lattice[torch.linspace(0, len(lattice) - 1, LATTICE).long()]
        networks = networks_of(pair.subject)
        fixed = prepare(pair.fixed)
        for level in levels:
            for repeat in range(repeats):
                draw = np.random.default_rng([seed, number, sorted(LEVELS).index(level), repeat])
                moved = draw_misalignment(level, image_centre(pair.fixed), draw)
                found = find_candidates(
                    fixed, prepare(regrid(pair.moving, moved.matrix, draw)), networks, search=search, scaled=scaled,
                    generator=torch.Generator().manual_seed(int(draw.integers(2**31))), truth=moved.matrix,
                    lattice_ras=lattice, name=f"{pair.name} {level}",
                )  # fmt: skip
                cases += found.pairs
                starts.append(to_matrices(found.pose).cpu())
        logger.info("%d of %d pairs: %d cases", number + 1, len(pairs), len(cases))
    return cases, torch.cat(starts)


def spread_starts(starts: Tensor, count: int, *, shift_mm: float, degrees: float, seed: int = 0) -> Tensor:
    """(N, count, 4, 4): each start (N, 4, 4) itself, and moved at random by up to a shift and a turn."""
    from medrl.geometry.poses import Pose, from_matrices

    generator = torch.Generator().manual_seed(seed)
    pose = from_matrices(starts)
    many = Pose(*(value[:, None].expand(-1, count, *value.shape[1:]) for value in pose))
    axis, way = torch.nn.functional.normalize(torch.randn(2, len(starts), count, 3, generator=generator), dim=-1)
    share = torch.rand(2, len(starts), count, 1, generator=generator)
    share[:, :, 0] = 0.0  # the first is the start itself
    change = Nudges(
        from_vector(axis * share[0] * degrees * torch.pi / 180), torch.zeros(len(starts), count),
        way * share[1] * shift_mm,
    )
    moved = nudged(many, change)
    return to_matrices(Pose(*(value.flatten(0, 1) for value in moved))).reshape(len(starts), count, 4, 4)


def cases_of(pairs: Sequence[Pair], scale: Tensor, device: torch.device | str) -> PairCases:
    """Put pairs on a device."""
    return PairCases(pairs, scale=scale).to(device)
