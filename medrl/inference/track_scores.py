"""How good tracks are: CLEAR MOT and identity scores [Bernardin 2008, Ristani 2016], counted video by video.

`count_video` needs nothing beyond SciPy and is what training asks; `accumulate` hands the same comparison to
py-motmetrics, whose figures reports show.  A test holds the two together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medrl.data.tracks import Boxes
from medrl.geometry.boxes import iou_matrix
from medrl.types import InputError

SAME = 0.5  # overlap of an answer with its object, at least
COUNTS = ("objects", "answers", "misses", "false", "switches", "fragments", "identity_true", "frames")
# name here -> name in py-motmetrics
NAMES = {
    "mota": "mota", "idf1": "idf1", "switches": "num_switches", "fragments": "num_fragmentations",
    "false": "num_false_positives", "misses": "num_misses", "precision": "precision", "recall": "recall",
}  # fmt: skip


def overlaps(truth: Boxes, answer: Boxes, frames: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A frame: indices (T,) of the truth and (A,) of the answer, and their intersection over union (T, A)."""
    mine, theirs = _by_frame(answer, frames), _by_frame(truth, frames)
    return [
        (t, a, iou_matrix(torch.from_numpy(truth.box[t]).double(), torch.from_numpy(answer.box[a]).double()).numpy())
        for t, a in zip(theirs, mine, strict=True)
    ]  # fmt: skip


def count_video(truth: Boxes, answer: Boxes, frames: int) -> dict[str, float]:
    """Counts of one video, see COUNTS; `summarise` adds and divides them."""
    from scipy.optimize import linear_sum_assignment

    names, labels = (np.unique(boxes.identity) for boxes in (truth, answer))
    together = np.zeros((len(names), len(labels)))
    matched: dict[int, int] = {}  # object -> the track it was last given to
    was: dict[int, list[bool]] = {}
    misses = false = switches = 0
    for rows, columns, shared in overlaps(truth, answer, frames):
        objects, tracks = truth.identity[rows], answer.identity[columns]
        good = shared >= SAME
        together[np.ix_(np.searchsorted(names, objects), np.searchsorted(labels, tracks))] += good
        cost = np.where(good, 1 - shared, 1e6)
        kept: dict[int, int] = {}
        for i, name in enumerate(objects):  # who was together stays so
            j = np.flatnonzero(tracks == matched.get(int(name), np.nan))
            if len(j) and good[i, j[0]] and j[0] not in kept.values():
                kept[i] = int(j[0])
        cost[list(kept), :] = 1e6
        cost[:, list(kept.values())] = 1e6
        if cost.size:
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                if cost[i, j] < 1:
                    kept[int(i)] = int(j)
        for i, name in enumerate(objects):
            was.setdefault(int(name), []).append(i in kept)
            if i in kept:
                track = int(tracks[kept[i]])
                switches += int(name) in matched and matched[int(name)] != track
                matched[int(name)] = track
        misses, false = misses + len(objects) - len(kept), false + len(tracks) - len(kept)
    row, column = linear_sum_assignment(-together)
    fragments = sum(_gaps(flags) for flags in was.values())
    counts = (len(truth), len(answer), misses, false, switches, fragments, together[row, column].sum(), frames)
    return dict(zip(COUNTS, map(float, counts), strict=True))


def summarise(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """MOTA, IDF1, precision, recall and counts over videos together."""
    total = {name: sum(count[name] for count in counts) for name in COUNTS}
    objects, answers = max(1.0, total["objects"]), total["answers"]
    wrong = total["misses"] + total["false"] + total["switches"]
    found = total["objects"] - total["misses"]
    return {
        "mota": 1 - wrong / objects, "idf1": 2 * total["identity_true"] / max(1.0, total["objects"] + answers),
        "switches": total["switches"], "fragments": total["fragments"], "false": total["false"],
        "misses": total["misses"], "precision": found / max(1.0, answers), "recall": found / objects,
    }  # fmt: skip


def intervals(
    counts: Sequence[Mapping[str, float]], *, against: Sequence[Mapping[str, float]] | None = None,
    resamples: int = 1000, seed: int = 0,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """95 % bootstrap intervals over videos of what `summarise` says, or of what it says more than ``against``.

    ``against`` counts the same videos, which are drawn in pairs.
    """
    draws = _draws(counts, resamples, seed)
    if against is not None:
        others = _draws(against, resamples, seed)
        draws = [{name: a[name] - b[name] for name in a} for a, b in zip(draws, others, strict=True)]
    return {
        name: tuple(float(v) for v in np.quantile([draw[name] for draw in draws], (0.025, 0.975))) for name in draws[0]
    }


def accumulate(truth: Boxes, answer: Boxes, frames: int) -> Any:
    """A py-motmetrics accumulator of a video; InputError if it is not installed."""
    try:
        from motmetrics import MOTAccumulator
    except ImportError:
        raise InputError("scores of tracks need py-motmetrics: pip install 'medrl[tracking]'") from None
    accumulator = MOTAccumulator(auto_id=True)
    for rows, columns, shared in overlaps(truth, answer, frames):
        distance = np.where(shared >= SAME, 1 - shared, np.nan)
        accumulator.update(truth.identity[rows], answer.identity[columns], distance)
    return accumulator


def motmetrics_table(accumulators: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Name -> figures of every video, and ``overall``, by py-motmetrics."""
    from motmetrics.metrics import create

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # it logs its own seconds there
    try:
        table = create().compute_many(
            list(accumulators.values()), names=list(accumulators), metrics=list(NAMES.values()), generate_overall=True
        )
    finally:
        root.setLevel(level)
    table = table.rename(index={"OVERALL": "overall"})
    table = table.fillna(0.0)  # the precision of no answer at all
    return {str(name): {key: float(row[theirs]) for key, theirs in NAMES.items()} for name, row in table.iterrows()}


def _draws(counts: Sequence[Mapping[str, float]], resamples: int, seed: int) -> list[dict[str, float]]:
    """Figures of as many videos, drawn again and again; a seed draws the same ones."""
    generator = np.random.default_rng(seed)
    table = np.array([[count[name] for name in COUNTS] for count in counts])
    chosen = (table[generator.integers(0, len(table), len(table))] for _ in range(resamples))
    return [summarise([dict(zip(COUNTS, row, strict=True)) for row in rows]) for rows in chosen]


def _by_frame(boxes: Boxes, frames: int) -> list[np.ndarray]:
    order = np.argsort(boxes.frame, kind="stable")
    cuts = np.searchsorted(boxes.frame[order], np.arange(1, frames))
    return np.split(order, cuts)


def _gaps(flags: Sequence[bool]) -> int:
    """How often an object that was matched is not, before it is again."""
    held = np.flatnonzero(flags)
    return 0 if len(held) == 0 else int((np.diff(held) > 1).sum())
