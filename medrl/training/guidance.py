"""Exploration that is guided by the reward itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrl.environment import Environment


class PositiveReward:
    """The actions (B, A) that would earn a positive reward in the environment's present states [Caicedo 2015].

    ``reward`` is asked instead of the task's own, such as one without the noise of a control.
    """

    def __init__(self, environment: Environment, *, reward: Any = None) -> None:
        self.environment, self.reward = environment, reward

    def __call__(self) -> Tensor:
        """Try every action on every row; nothing is stepped."""
        task, state = self.environment.task, self.environment.state
        earned = []
        for action in range(int(task.action_space.n)):
            chosen = torch.full((len(state[0]),), action, device=self.environment.device)
            shape = self.reward or task.reward_shape
            earned.append(shape(task, state, chosen, task.advance(state, chosen)))
        return torch.stack(earned, 1) > 0
