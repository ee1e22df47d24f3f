"""Settings of trackers, chosen on videos with a truth: fairly, by the same search for rules and policies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import nn

from medrl.data.tracks import Video
from medrl.inference.track_scores import count_video, summarise
from medrl.inference.tracking import Tracker

logger = logging.getLogger(__name__)

BACK: dict[str, Sequence[Any]] = {"fill": (None, 5, 10, 15, 25), "tail": (0, 1, 2, 4)}
# what is tried of every setting, in this order
RULES: dict[str, Sequence[Any]] = {
    "patience": (3, 6, 10, 15), "overlap": (0.1, 0.2, 0.3, 0.4), "confirm": (2, 3, 4), "coast": (0, 1, 2, 3, 5),
    "probation": (0, 2, 3), "lowest": (0.0, 0.4, 0.6), "newest": (0.0, 0.5, 0.7), "crowded": (0.3, 0.5, 0.7, 1.0),
}  # fmt: skip
POLICIES: dict[str, Sequence[Any]] = {
    "confirm": (2, 3, 4), "crowded": (0.2, 0.35, 0.5, 0.7), "newest": (0.0, 0.5), "lowest": (0.0, 0.4), **BACK
}


def tune(
    tracker: Tracker, videos: Sequence[Video], grid: Mapping[str, Sequence[Any]], *, network: nn.Module | None = None,
    looks: Sequence[np.ndarray | None] | None = None, passes: int = 2,
) -> Tracker:  # fmt: skip
    """The tracker with settings changed one at a time as long as IDF1 + MOTA over the videos rises."""
    best, top = tracker, merit(tracker, videos, network, looks)
    for _ in range(passes):
        before = top
        for name, values in grid.items():
            for value in values:
                tried = changed(best, name, value)
                if tried == best:
                    continue
                found = merit(tried, videos, network, looks)
                if found > top:
                    best, top = tried, found
        if top == before:
            break
    logger.info("IDF1 + MOTA %.3f on %d videos with %s", top, len(videos), best)
    return best


def merit(
    tracker: Tracker, videos: Sequence[Video], network: nn.Module | None = None,
    looks: Sequence[np.ndarray | None] | None = None,
) -> float:
    """IDF1 + MOTA over videos."""
    figures = measure(tracker, videos, network, looks)
    return figures["idf1"] + figures["mota"]


def measure(
    tracker: Tracker, videos: Sequence[Video], network: nn.Module | None = None,
    looks: Sequence[np.ndarray | None] | None = None,
) -> dict[str, float]:
    """What `summarise` says of a tracker's answers."""
    return summarise(count_all(tracker, videos, network, looks))


def count_all(
    tracker: Tracker, videos: Sequence[Video], network: nn.Module | None = None,
    looks: Sequence[np.ndarray | None] | None = None,
) -> list[dict[str, float]]:
    """What `count_video` says of each video."""
    answers = tracker.track_all(videos, network, looks)
    return [count_video(v.truth, answer, v.frames) for v, answer in zip(videos, answers, strict=True)]


def changed(tracker: Tracker, name: str, value: Any) -> Tracker:
    """A tracker with another setting, of its own or of its decider."""
    if name in {field.name for field in fields(tracker)}:
        return replace(tracker, **{name: value})
    return replace(tracker, decider=replace(tracker.decider, **{name: value}))
