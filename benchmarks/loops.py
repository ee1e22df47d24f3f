"""What every comparison of agents needs: the plain loop of acting and learning, and the control that must fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from medrl.environment import Environment
from medrl.rewards.scores import Shape
from medrl.types import Step


class Shuffled(Shape):
    """The rewards of other rows: right on average, of no use to anybody."""

    def __init__(self, part: Any, seed: int = 0) -> None:
        self.part, self.generator = part, torch.Generator().manual_seed(seed)

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        reward = self.part(task, state, action, next_state)
        return reward[torch.randperm(len(reward), generator=self.generator).to(reward.device)]


def rollouts(agent: Any, environment: Environment) -> Iterator[list[Step]]:
    """Let an on-policy agent act until it is ready to learn, again and again; what came of each rollout's steps."""
    observation = environment.reset()
    while True:
        steps: list[Step] = []
        while not agent.ready:
            state = environment.state
            action = agent.act(observation, explore=True).action
            step = environment.step(action)
            agent.record(state, action, step)
            observation = step.observation
            steps.append(step)
        yield steps
