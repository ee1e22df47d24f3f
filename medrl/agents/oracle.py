"""What an action is worth if a free oracle goes on from there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def oracle_returns(task: Any, state: Any, *, gamma: float, horizon: int) -> Tensor:
    """Discounted rewards (B, A) of each action followed by up to ``horizon`` actions of ``task.expert``.

    Nothing is rendered: for tasks with a small state this costs little beside a network.
    """
    actions = int(task.action_space.n)
    many = type(state)(*(value.repeat_interleave(actions, 0) for value in state))
    action = torch.arange(actions, device=state[0].device).repeat(len(state[0]))
    total = torch.zeros(len(action), device=state[0].device)
    alive, weight = torch.ones_like(total), 1.0
    for step in range(horizon + 1):
        if step:
            action = task.expert(many)
        after = task.advance(many, action)
        total = total + weight * alive * task.reward(many, action, after)
        alive = alive * ~task.terminated(after)
        many, weight = after, weight * gamma
    return total.reshape(-1, actions)
