"""Cases for a registration agent: pairs moved apart, and the candidates that a search finds for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.misalignment import LEVELS, body_lattice, draw_misalignment, image_centre, regrid
from medrl.data.pair_cases import Pair, PairCases, Points
from medrl.data.pair_images import prepare
from medrl.data.write import whole_file
from medrl.geometry.poses import Nudges, Pose, from_matrices, nudged, to_matrices
from medrl.geometry.quaternions import from_vector
from medrl.inference.pose_candidates import Search, find_candidates
from medrl.networks.features import PairNetworks
from medrl.training.feature_folds import FeatureFolds, ImagePair
from medrl.types import InputError

logger = logging.getLogger(__name__)

LATTICE = 64  # points at which an error is measured in training


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
    generator = torch.Generator().manual_seed(seed)
    pose = from_matrices(starts)
    many = Pose(*(value[:, None].expand(-1, count, *value.shape[1:]) for value in pose))
    axis, way = torch.nn.functional.normalize(torch.randn(2, len(starts), count, 3, generator=generator), dim=-1)
    share = torch.rand(2, len(starts), count, 1, generator=generator)
    share[:, :, 0] = 0.0  # the first is the start itself
    change = Nudges(
        from_vector(axis * share[0] * degrees * torch.pi / 180),
        torch.zeros(len(starts), count),
        way * share[1] * shift_mm,
    )
    moved = nudged(many, change)
    return to_matrices(Pose(*(value.flatten(0, 1) for value in moved))).reshape(len(starts), count, 4, 4)


class Pool(NamedTuple):
    """Cases for an agent to learn on, and their starts."""

    pairs: list[Pair]
    cases: PairCases  # of the pairs
    starts: Tensor  # (N, S, 4, 4); the first of each is the search's


def build_pool(
    features: FeatureFolds, *, resume: bool = True, validation: bool = False, fold: int = 0, repeats: int = 1,
    starts: int = 4, shift_mm: float = 12.0, degrees: float = 12.0, search: Mapping[str, Any] | None = None,
    levels: Sequence[str] = tuple(LEVELS), scaled: bool = True, seed: int = 0,
) -> Pool:  # fmt: skip
    """The candidates of all pairs but those of ``fold``, or (``validation``) of that fold.

    Trains the features first where they are missing.  Found cases are kept beside the features.  Each start is joined
    by ``starts`` - 1 others, up to ``shift_mm`` and ``degrees`` away.
    """
    features.run(resume=resume)
    chosen = [pair for pair in features.pairs if (features.fold[pair.subject] == fold) == validation]
    if not chosen:
        raise InputError("no pairs are left for validation; give pairs of more patients than there are folds")
    path = features.folder / f"cases_{'validation' if validation else 'training'}.pt"
    if not (resume and path.exists()):
        found = find_cases(
            chosen, features.networks_of, levels=levels, repeats=repeats, search=Search(**(search or {})),
            scaled=scaled, seed=seed,
        )  # fmt: skip
        with whole_file(path) as part:
            kept = {"pairs": [_plain(pair) for pair in found[0]], "starts": found[1]}
            torch.save(kept | {"scale": features.networks().scale.cpu()}, part)
    pool = read_pool(path)
    cases = PairCases(pool.pairs, scale=features.networks().scale).to(features.device)
    count = 1 if validation else starts
    more = spread_starts(pool.starts[:, 0], count, shift_mm=shift_mm, degrees=degrees, seed=seed)
    return Pool(pool.pairs, cases, more)


def read_pool(path: Path | str) -> Pool:
    """Read the cases that `build_pool` has kept, each with its one start."""
    saved = torch.load(path, weights_only=True)
    pairs = [_pair(*values) for values in saved["pairs"]]
    return Pool(pairs, PairCases(pairs, scale=saved["scale"]), saved["starts"][:, None])


def _plain(pair: Pair) -> tuple[Any, ...]:
    """What a pair holds as strings and tensors, volumes in half precision, for a file."""
    values = [getattr(pair, field.name) for field in fields(pair)]
    return tuple(
        tuple(v) if isinstance(v, Points) else v.half() if isinstance(v, Tensor) and v.ndim > 2 else v for v in values
    )


def _pair(*values: Any) -> Pair:
    """Undo ``_plain``."""
    return Pair(*(
        Points(*v) if isinstance(v, tuple) else v.float() if _is_half(v) else v for v in values
    ))  # fmt: skip


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16
