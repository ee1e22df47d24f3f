"""The Gymnasium faces of the registration tasks."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from medrl.data.pair_fields import draw_image_pairs, draw_pair_cases
from medrl.gym import SingleEnv, VectorEnv
from medrl.tasks.base import Task
from medrl.tasks.image_registration import ImageRegistrationTask
from medrl.tasks.registration import RegistrationTask


def registration(task: Task | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Registration-v0")``; else `field_registration` takes the ``options``.

    It shows numbers, not images: there is nothing to render.
    """
    return SingleEnv(field_registration(**options) if task is None else task)


def registration_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Registration-v0")``; as `registration`."""
    task = field_registration(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def field_registration(*, patients: int = 4, seed: int = 0, **options: Any) -> RegistrationTask:
    """A registration task on random fields that both images agree on; ``options`` go to `RegistrationTask`."""
    cases = draw_pair_cases(patients, torch.Generator().manual_seed(seed))
    return RegistrationTask(cases=cases, **{"start_mm": 20.0, "start_degrees": 40.0} | options)


def image_registration(task: Task | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/ImageRegistration-v0")``; ``options`` go to `field_image_registration`."""
    return SingleEnv(field_image_registration(**options) if task is None else task, render_mode=render_mode)


def image_registration_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/ImageRegistration-v0")``; as `image_registration`."""
    task = field_image_registration(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def field_image_registration(
    *, patients: int = 4, seed: int = 0, size: tuple[int, ...] = (40, 40), **options: Any
) -> ImageRegistrationTask:
    """A task on slices or, with three sides, volumes of random fields; ``options`` go to `ImageRegistrationTask`."""
    cases = draw_image_pairs(patients, torch.Generator().manual_seed(seed), size=size)
    return ImageRegistrationTask(cases=cases, **options)
