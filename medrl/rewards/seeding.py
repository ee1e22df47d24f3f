"""The reward of SeedNet: how good the mask is now, and whether the last seed lay where it should."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrl.rewards.scores import Exponential, Shape


class SeedRegions(Shape):
    """``R_exp`` for a seed in a strong region, ``R_exp - 1`` in a weak one, -1 for a wrong label [Song et al. 2018].

    ``R_exp = (exp(k IoU) - 1) / (exp(k) - 1)``; ``task.region(state, action)`` tells 0 strong, 1 weak, 2 wrong.
    """

    def __init__(self, k: float = 5.0) -> None:
        self.exponential = Exponential(k)

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        region = task.region(state, action)
        reward = self.exponential(task, state, action, next_state) - (region == 1).float()
        return torch.where(region == 2, -1.0, reward)
