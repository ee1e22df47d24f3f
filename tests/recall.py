"""A problem that only a memory solves, and what a trainer does, without one, for the tests of on-policy agents."""

from __future__ import annotations

from typing import Any

import torch
from probes import Probe, ProbeState
from torch import Tensor

from medrl.environment import Environment


class Recall(Probe):
    """The sign is seen in the first step only; in the last one the action that fits it is worth 1, the other -1."""

    def __init__(self, *, length: int = 3) -> None:
        def reward(task: Probe, state: ProbeState, action: Tensor, after: ProbeState) -> Tensor:
            return torch.where(after.age >= length, (2.0 * action - 1) * state.sign, 0.0)

        super().__init__(reward, length=length)

    def observe(self, state: ProbeState) -> Tensor:
        return torch.stack([torch.where(state.age == 0, state.sign, 0.0), state.age.float()], 1)


class Gains(Probe):
    """Tells what both actions gain: the one that fits the sign, by ``amount``."""

    amount = 1.0

    def action_gains(self, state: ProbeState) -> Tensor:
        return self.amount * torch.stack([-state.sign, state.sign], 1)


def train(agent: Any, environment: Environment, updates: int) -> list[dict[str, Tensor]]:
    """Act, record and learn; goes on where it stopped."""
    parts = []
    seen = environment.reset() if environment.state is None else environment.observe()
    while len(parts) < updates:
        state, action = environment.state, agent.act(seen, explore=True).action
        step = environment.step(action)
        agent.record(state, action, step)
        seen = step.observation
        if agent.ready:
            parts.append(agent.learn())
    return parts


def mean_return(agent: Any, environment: Environment, steps: int) -> float:
    """Mean reward of the greedy policy an episode, with its memory handed back and reset with the rows."""
    seen, memory, total, count = environment.reset(), None, 0.0, 0
    for _ in range(steps):
        decision = agent.act(seen, memory)
        step = environment.step(decision.action)
        ended, memory = step.metrics["ended"], decision.memory
        if memory is not None:
            memory = torch.where(ended[:, None], 0.0, memory)
        total, count = total + float(step.metrics["episode_return"][ended].sum()), count + int(ended.sum())
        seen = step.observation
    return total / count
