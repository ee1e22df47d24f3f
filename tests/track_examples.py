"""Small problems of tracking for the tests."""

from __future__ import annotations

from typing import Any

from medrl.data.frame_cases import FrameCases
from medrl.data.track_cases import TrackCases
from medrl.data.track_phantoms import Phantom, draw_videos
from medrl.tasks.box_refinement import BoxRefinementTask
from medrl.tasks.tracking import TrackingTask

SMALL = {"frames": (14, 18), "objects": (3, 4), "size": (320, 200)}


def small_phantoms(count: int = 3, seed: int = 0) -> list[Phantom]:
    """Procedural videos of some 16 frames with up to four objects."""
    return draw_videos(count, seed, **SMALL)


def small_tracking_task(*, device: str = "cpu", **options: Any) -> TrackingTask:
    """An association task on `small_phantoms`."""
    return TrackingTask(cases=TrackCases.from_phantoms(small_phantoms()).to(device), **options)


def small_refinement_task(*, device: str = "cpu", **options: Any) -> BoxRefinementTask:
    """A refinement task on rendered `small_phantoms`, of five frames each."""
    cases = FrameCases.from_phantoms(small_phantoms(4), length=5, visible=0.2)
    return BoxRefinementTask(cases=cases.to(device), **({"size": 8, "most": 8} | options))
