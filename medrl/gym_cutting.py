"""The Gymnasium face of the cutting task: entry points of ``medrl/Cutting-v0``."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from medrl.data.video_phantoms import phantom_cases
from medrl.gym import SingleEnv, VectorEnv
from medrl.tasks.base import Task
from medrl.tasks.cutting import CuttingTask


class ColourCutter(nn.Module):
    """A cutter without weights: cells near the mean colour of the mask before, inside or near the object box."""

    def forward(self, pair: Tensor) -> Tensor:
        """Logits (B, 1, n, n) of object-context pairs (B, 10, n, n)."""
        now, before, mask = pair[:, :3], pair[:, 3:6], pair[:, 6:7]
        known = mask.sum((2, 3), keepdim=True)
        colour = (before * mask).sum((2, 3), keepdim=True) / known.clamp(min=1e-3)
        return (0.2 - (now - colour).abs().mean(1, keepdim=True)) * (known > 0)


def cutting(task: Task | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Cutting-v0")``; without a task, ``options`` go to `phantom_cutting`."""
    return SingleEnv(phantom_cutting(**options) if task is None else task, render_mode=render_mode)


def cutting_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Cutting-v0")``; as `cutting`."""
    task = phantom_cutting(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def phantom_cutting(
    *, videos: int = 4, seed: int = 0, frames: int = 20, size: tuple[int, int] = (64, 64),
    cutter: nn.Module | None = None, device: torch.device | str = "cpu", **options: Any,
) -> CuttingTask:  # fmt: skip
    """A cutting task on synthetic videos, by default with a cutter that goes by colour; ``options``: `CuttingTask`."""
    cases = phantom_cases(videos, seed=seed, frames=frames, size=size).to(device)
    return CuttingTask(cases, cutter=ColourCutter() if cutter is None else cutter, **options)
