"""The Gymnasium faces of the tracking tasks."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from medrl.data.frame_cases import FrameCases
from medrl.data.track_cases import TrackCases
from medrl.data.track_phantoms import draw_videos
from medrl.gym import SingleEnv, VectorEnv
from medrl.tasks.base import Task
from medrl.tasks.box_refinement import BoxRefinementTask
from medrl.tasks.tracking import TrackingTask


def tracking(task: Task | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Tracking-v0")``; else `phantom_tracking` takes the ``options``.

    It shows numbers, not images: there is nothing to render.
    """
    return SingleEnv(phantom_tracking(**options) if task is None else task)


def tracking_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Tracking-v0")``; as `tracking`."""
    task = phantom_tracking(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def phantom_tracking(*, videos: int = 4, seed: int = 0, **options: Any) -> TrackingTask:
    """An association task on procedural videos; ``options`` go to `TrackingTask`."""
    return TrackingTask(cases=TrackCases.from_phantoms(draw_videos(videos, seed)), **options)


def box_refinement(task: Task | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/BoxRefinement-v0")``; ``options`` go to `phantom_refinement`."""
    return SingleEnv(phantom_refinement(**options) if task is None else task, render_mode=render_mode)


def box_refinement_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/BoxRefinement-v0")``; as `box_refinement`."""
    task = phantom_refinement(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def phantom_refinement(*, videos: int = 4, seed: int = 0, length: int = 11, **options: Any) -> BoxRefinementTask:
    """A refinement task on rendered procedural videos; ``options`` go to `BoxRefinementTask`."""
    return BoxRefinementTask(cases=FrameCases.from_phantoms(draw_videos(videos, seed), length=length), **options)
