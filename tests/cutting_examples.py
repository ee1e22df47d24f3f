"""Small cutting tasks with a known cutter, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medrl.data.video_cases import Video, VideoCases
from medrl.tasks.cutting import CuttingTask


class BrightCutter(nn.Module):
    """The cells of the context box that are brighter than the middle of a square and its ground."""

    def forward(self, pair: Tensor) -> Tensor:
        return 10 * (pair[:, :1] - 0.43)


def moving_square(number: int, *, frames: int = 6, size: tuple[int, int] = (20, 24)) -> Video:
    """A bright square of 6 on a dark ground that moves by 2 columns a frame; the third frame hides it in one video."""
    image = torch.full((frames, 3, *size), 20, dtype=torch.uint8)
    masks = torch.zeros((frames, *size), dtype=torch.bool)
    for t in range(frames):
        x, y = 3 + 2 * t, 4 + 2 * number
        masks[t, y : y + 6, x : x + 6] = not (number == 1 and t == 2)
    image[:, 0][masks] = 200
    return Video(f"square_{number}", image, masks)


def moving_squares(count: int = 3) -> VideoCases:
    """The last video is a frame shorter and half as large."""
    videos = [moving_square(n) for n in range(count - 1)]
    last = moving_square(count - 1, frames=5, size=(10, 12))
    return VideoCases.from_videos([*videos, last], canvas=(20, 24))


def small_cutting_task(*, device: str = "cpu", **options: Any) -> CuttingTask:
    """A task on `moving_squares`; ``options`` go to it."""
    options = {"size": 12, "look": 8, "moves": 3, "history": 3, "jitter": 0.1} | options
    return CuttingTask(moving_squares().to(device), cutter=BrightCutter(), **options)
