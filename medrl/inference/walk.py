"""The walk itself: B walkers on one volume, all in one forward pass a step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medrl.networks.concentric import SETTLE_INDEX, Heads
from medrl.tasks.landmark import LandmarkTask


class Look(NamedTuple):
    """What the network says at B places of all L landmarks."""

    centre_mm: Tensor  # (B, 3) the crops' true centres
    heads: Heads


class Walked(NamedTuple):
    """Where B walkers ended."""

    position_mm: Tensor  # (B, 3)
    steps: Tensor  # (B,) forward passes used
    converged: Tensor  # (B,) bool: settled before the budget ran out
    value: Tensor  # (B,) the best action's value at the end, in steps
    path_mm: Tensor  # (B, T, 3) places visited, the last one repeated


@torch.no_grad()
def look(task: LandmarkTask, network: nn.Module, state: Any, *, batch: int = 512) -> Look:
    """Render the crops of a state and ask the network."""
    outputs = []
    for rows in torch.arange(len(state.case), device=state.case.device).split(batch):
        part = type(state)(*(x[rows] for x in state))
        outputs.append(network(task.observe(part)["image"]).float())
    voxel = task.cases.pyramid.nearest_voxel(state.case, state.position)
    return Look(task.cases.pyramid.voxel_position(state.case, voxel), network.split(torch.cat(outputs)))


def jump(task: LandmarkTask, network: nn.Module, state: Any, *, jumps: int, settle_mm: float) -> Walked:
    """Continuous action: go where the own head's offset points, until the offset is shorter than ``settle_mm``."""
    rows = torch.arange(len(state.case), device=state.case.device)
    active = torch.ones_like(state.settled)
    steps = torch.zeros_like(rows)
    path, value = [state.position], torch.zeros(len(rows), device=rows.device)
    for _ in range(jumps):
        seen = look(task, network, state)
        offset = seen.heads.offset_mm[rows, state.head.long()]
        target = seen.centre_mm + offset
        # no further than a little outside: there is nothing to see beyond
        limit = task.half_size_mm[state.case.long()] + task.leave_mm
        position = torch.where(active[:, None], target.clamp(-limit, limit), state.position)
        steps = steps + active
        value = seen.heads.q[rows, state.head.long(), -1].amax(-1)
        active = active & (offset.norm(dim=1) > settle_mm)
        state = state._replace(position=position)
        path.append(position)
    return Walked(state.position, steps, ~active, value, torch.stack(path, 1))


def move(task: LandmarkTask, network: nn.Module, state: Any, *, budget: int, check: int = 8) -> Walked:
    """Discrete actions: the greedy moves of the Q-values, coarse to fine.

    A walker that returns to a place of its last four settles there at the mean of its last two places; the settle
    action, where the network prefers it, does the same.  ``budget`` steps at most.
    """
    rows = torch.arange(len(state.case), device=state.case.device)
    recent = torch.full((len(rows), 4, 3), torch.inf, device=rows.device)
    steps, value, path = torch.zeros_like(rows), torch.zeros(len(rows), device=rows.device), [state.position]
    done = state.settled
    for number in range(budget):
        seen = look(task, network, state)
        q = seen.heads.q[rows, state.head.long(), state.scale.long()]
        best, action = q.max(-1)
        value = torch.where(done, value, best)
        place = state.position[:, None]
        back = ((recent - place).abs().amax(-1) < 0.01).any(1)
        action = torch.where(back, SETTLE_INDEX, action)
        following = task.advance(state, action)
        finer = action == SETTLE_INDEX
        oscillating = back & recent[:, 0].isfinite().all(-1)
        rest = torch.where(oscillating[:, None], (state.position + recent[:, 0]) / 2, state.position)
        position = torch.where(finer[:, None], rest, following.position)
        recent = torch.cat([place, recent[:, :-1]], 1)
        recent = torch.where(finer[:, None, None], torch.inf, recent)
        gone = task.left(following)
        steps = steps + ~done
        state = following._replace(
            position=torch.where(done[:, None], state.position, position), settled=done | following.settled | gone,
            scale=torch.where(done, state.scale, following.scale),
        )  # fmt: skip
        done = state.settled
        path.append(state.position)
        if number % check == check - 1 and bool(done.all()):  # a look at the host only every few steps
            break
    return Walked(state.position, steps, done, value, torch.stack(path, 1))
