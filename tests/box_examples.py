"""Small tasks of object localisation with known boxes, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medrl.data.box_cases import BoxCases
from medrl.data.box_phantoms import draw_box_cases
from medrl.tasks.localisation import LocalisationTask


def small_localisation_task(**options: Any) -> LocalisationTask:
    """Pictures of 32 x 32 with none to three targets; ``options`` go to the task."""
    cases = draw_box_cases(4, np.random.default_rng(0), targets=(1, 2, 0, 3), distractors=1, side=32)
    return LocalisationTask(cases, **{"view": 12, "max_steps": 12} | options)


def small_volume_cases() -> BoxCases:
    """Three volumes of several sizes with a bright block in each."""
    images = torch.full((3, 1, 20, 18, 16), 60, dtype=torch.uint8)
    size = torch.tensor([[20.0, 18, 16], [16, 18, 16], [20, 14, 12]])
    boxes = torch.tensor([[4.0, 5, 6, 14, 12, 12], [2, 3, 4, 8, 15, 10], [8, 2, 3, 17, 9, 11]])[:, None]
    for image, box, (x, y, z) in zip(images, boxes[:, 0].int().tolist(), size.int().tolist(), strict=True):
        image[:, box[0] : box[3], box[1] : box[4], box[2] : box[5]] = 220
        image[:, x:], image[:, :, y:], image[:, :, :, z:] = 0, 0, 0
    return BoxCases(images, boxes, size=size)


def small_volume_task(**options: Any) -> LocalisationTask:
    """The same as a task with 15 actions."""
    return LocalisationTask(small_volume_cases(), **{"view": 15, "max_steps": 12} | options)
