"""The polish of a registration: all ends of agent and search climb the mutual information, and the best one wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medrl.inference.mutual_information import (
    NO_OVERLAP,
    STAGES,
    End,
    ascend,
    ascend_resized,
    information_at,
    plausible,
)  # fmt: skip
from medrl.inference.registration_grids import GridPair
from medrl.types import InputError

KEEP, KEEP_RESIZED = 3, 2  # poses of either kind that climb on at 8 mm; one climbs on at 4 mm
MAYBE, SURELY = 0.01, 0.15  # nats gained at 8 mm by another size: worth a look at 4 mm, and beyond doubt
ALIKE_MM = 2.0  # two poses closer than this need not climb both


class Polished(NamedTuple):
    """Where the winning end came to rest."""

    matrix: Tensor  # (4, 4) RAS moving_from_fixed, float64
    start: int  # number of the end it came from
    information: float  # mutual information, nats


def polish(pair: GridPair, starts: Tensor, *, scaled: bool | str, least_information: float) -> Polished:
    """Polish poses (K, 4, 4), RAS moving_from_fixed, coarse to fine.

    Each climbs as a rigid transform and, unless ``scaled`` is False, with the size it has, which then becomes free.
    With "auto" another size is believed only if the mutual information exceeds that of the best rigid transform by
    ``least_information`` nats: it may always gain a little.

    Raises:
        InputError: no pose lays one image on the other.
    """
    rigid: list[End] = []
    resized: list[End] = []
    every = (len(starts),)
    if scaled is not True:
        far = _known(ascend(pair, _turned(pair, rigid_parts(starts, pair.fixed_centre)), keep=every, scaled=False))
        rigid = _known(ascend(pair, [end.pose for end in far], keep=(KEEP,), scaled=False, first=1), far)
    if scaled is not False:
        far = _known(ascend(pair, _turned(pair, starts), keep=every, scaled=True, sizes_kept=True))
        far = distinct(pair, far, KEEP_RESIZED) + rigid[:1]
        resized = _known(ascend_resized(pair, [end.pose for end in far], STAGES[1]), far)
    if not rigid and not resized:
        raise InputError(NO_OVERLAP)
    gain = _best(resized) - _best(rigid)
    answers = []
    if rigid and gain < SURELY:
        answers.append(_finish(pair, rigid, scaled=False))
    if resized and gain > MAYBE:
        answers.append(_finish(pair, resized, scaled=True))
    if len(answers) == 2 and answers[1].information <= answers[0].information + least_information:
        answers.pop()
    return answers[-1]


def rigid_parts(matrices: Tensor, centre: Tensor) -> Tensor:
    """The rotations of similarities (K, 4, 4), shifted so that the centre (3,) goes where it went."""
    rigid = matrices.clone()
    size = torch.linalg.det(matrices[:, :3, :3]).abs() ** (1 / 3)
    rigid[:, :3, :3] = matrices[:, :3, :3] / size[:, None, None]
    rigid[:, :3, 3] = (matrices[:, :3, :3] - rigid[:, :3, :3]) @ centre + matrices[:, :3, 3]
    return rigid


def _turned(pair: GridPair, matrices: Tensor) -> list[Tensor]:
    return [pair.turn(matrix) for matrix in matrices]


def distinct(pair: GridPair, ends: Sequence[End], count: int) -> list[End]:
    """The best ends of which no two are alike."""
    kept: list[End] = []
    for end in ends:
        if len(kept) < count and all(pair.distance_mm(end.pose, other.pose) > ALIKE_MM for other in kept):
            kept.append(end)
    return kept


def _known(ends: Sequence[End], origins: Sequence[End] | None = None) -> list[End]:
    """Ends that lie on both images; ``origins`` are the ends that they came from, if not the starts."""
    kept = [end for end in ends if end.information > -math.inf]
    return kept if origins is None else [end._replace(start=origins[end.start].start) for end in kept]


def _best(ends: Sequence[End]) -> float:
    return ends[0].information if ends else -math.inf


def _finish(pair: GridPair, middle: Sequence[End], *, scaled: bool) -> Polished:
    """Let the best of the ends at 8 mm climb on the finest grid."""
    best = middle[0]
    start = End(best.pose, information_at(pair, best.pose, STAGES[2]), 0)
    ends = [end for end in ascend(pair, [best.pose], keep=(1,), scaled=scaled, first=2) if plausible(end.pose)]
    last = max([start, *ends], key=lambda end: end.information)
    return Polished(pair.turn(last.pose), best.start, last.information)
