"""Small problems of tracking for the tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from medrl.data.frame_cases import FrameCases
from medrl.data.track_cases import TrackCases
from medrl.data.track_phantoms import Phantom, draw_videos
from medrl.inference.track_decisions import Overlap
from medrl.inference.tracking import Tracker
from medrl.tasks.box_refinement import BoxRefinementTask
from medrl.tasks.tracking import TrackingTask
from medrl.training.track_company import keep_company

SMALL = {"frames": (14, 18), "objects": (3, 4), "size": (320, 200)}


def small_phantoms(count: int = 3, seed: int = 0) -> list[Phantom]:
    """Procedural videos of some 16 frames with up to four objects."""
    return draw_videos(count, seed, **SMALL)


def small_tracking_task(*, device: str = "cpu", company: bool = False, **options: Any) -> TrackingTask:
    """An association task on `small_phantoms`, or in the company of what a rule makes of them."""
    cases = TrackCases.from_phantoms(small_phantoms()).to(device)
    if company:
        cases = cases.accompanied(keep_company(Tracker(Overlap(overlap=0.2), cases.noise), nn.Identity(), cases))
    return TrackingTask(cases=cases, **options)


def small_refinement_task(*, device: str = "cpu", **options: Any) -> BoxRefinementTask:
    """A refinement task on rendered `small_phantoms`, of five frames each."""
    cases = FrameCases.from_phantoms(small_phantoms(4), length=5, visible=0.2)
    return BoxRefinementTask(cases=cases.to(device), **({"size": 8, "most": 8} | options))
