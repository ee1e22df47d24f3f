"""Estimators of returns: pure functions over time-major tensors (T, B)."""

from __future__ import annotations

import torch
from torch import Tensor


def n_step(reward: Tensor, ended: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Discounted reward of up to n steps from the first row on, stopping after an ended step.

    ``reward`` and ``ended`` are (n, B, ...) and (n, B).  Returns the sum (B, ...), the number of steps taken (B,) and
    the discount (B,) of a bootstrap value after them.  Source: Sutton and Barto, n-step returns.
    """
    alive = torch.cat([torch.ones_like(ended[:1]), ~ended[:-1]]).cumprod(0).bool()  # step t is taken
    steps = alive.sum(0)
    discount = gamma ** torch.arange(len(reward), device=reward.device, dtype=reward.dtype)
    shape = [len(reward), *[1] * (reward.ndim - 1)]
    mask = alive.reshape(*alive.shape, *[1] * (reward.ndim - 2))
    total = torch.where(mask, reward * discount.reshape(shape), 0.0).sum(0)
    return total, steps, gamma ** steps.to(reward.dtype)


def td_target(reward: Tensor, discount: Tensor, terminated: Tensor, next_value: Tensor) -> Tensor:
    """``reward + discount * next_value``; no bootstrap where the episode terminated, but where it was truncated."""
    return reward + discount * torch.where(terminated, 0.0, next_value)


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, *, gamma: float, decay: float
) -> Tensor:
    """Generalised advantage estimates (T, B) [Schulman 2016].

    ``next_value`` is the value of each step's true successor; ``terminated`` drops it, ``ended`` (terminated or
    truncated) stops the sum.
    """
    delta = td_target(reward, torch.full_like(reward, gamma), terminated, next_value) - value
    out = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + gamma * decay * torch.where(ended[t], 0.0, running)
        out[t] = running
    return out


def leave_one_out(score: Tensor, group_size: int) -> Tensor:
    """Each row's score (B,) minus the mean of the others of its group [Kool 2019]."""
    groups = score.reshape(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / max(1, group_size - 1)
    return (groups - others).reshape(-1)
