"""The Gymnasium faces of the localisation task."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from medrl.data.box_phantoms import draw_box_cases
from medrl.gym import SingleEnv, VectorEnv
from medrl.tasks.localisation import LocalisationTask


def localisation(task: LocalisationTask | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Localisation-v0")``; else `picture_localisation` takes the ``options``."""
    return SingleEnv(picture_localisation(**options) if task is None else task, render_mode=render_mode)


def localisation_vector(
    task: LocalisationTask | None = None, *, num_envs: int = 1,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP, tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Localisation-v0")``; as `localisation`."""
    task = picture_localisation(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def picture_localisation(*, pictures: int = 24, seed: int = 0, **options: Any) -> LocalisationTask:
    """A task on procedural pictures with 0 to 3 targets; ``options`` go to `LocalisationTask`."""
    return LocalisationTask(draw_box_cases(pictures, np.random.default_rng(seed)), **options)
