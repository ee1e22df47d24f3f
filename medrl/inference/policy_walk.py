"""Walks of a policy on a task: greedy, or looking ahead by roll-outs that the critic weighs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medrl.geometry.poses import Pose, to_matrices
from medrl.tasks.registration import RegistrationState, RegistrationTask
from medrl.types import where

CHECK = 4  # steps between looks at the host


class Walk(NamedTuple):
    """Where B rows ended."""

    state: RegistrationState
    value: Tensor  # (B,) the critic's, when each row stopped
    path: Tensor  # (T, B, 4, 4) poses from the start on, the last one repeated


@torch.no_grad()
def walk(task: RegistrationTask, network: nn.Module | None, state: RegistrationState) -> Walk:
    """Follow a policy greedily until it stops or its time is over; without one, climb the learned similarity."""
    memory: Any = None
    value = torch.zeros(len(state.case), device=task.cases.device)
    path = [to_matrices(state.pose)]
    for step in range(task.max_steps):
        observation = task.observe(state)
        if network is None:
            gain = observation[:, : task.moves + 1]  # stopping gains 0
            action, seen = gain.argmax(1), gain.amax(1)
        else:
            logits, seen, memory = network(observation, memory)
            action = logits.argmax(1)
        value = torch.where(state.stopped, value, seen)
        state = where(state.stopped, state, task.advance(state, action))
        path.append(to_matrices(state.pose))
        if step % CHECK == CHECK - 1 and bool(state.stopped.all()):
            break
    return Walk(state, value, torch.stack(path))


@torch.no_grad()
def look_ahead(
    task: RegistrationTask, network: nn.Module, state: RegistrationState, *, rollouts: int, depth: int,
    generator: torch.Generator, temperature: float = 0.3,
) -> Pose:  # fmt: skip
    """Poses (B,): ``rollouts`` a row are sampled from the policy, and their ends averaged by the critic's value.

    Source: the Monte-Carlo look-ahead of Sun et al. 2018; the weights are softmax(value / temperature).
    """
    count = len(state.case)
    many = type(state)(*(value.repeat_interleave(rollouts, 0) for value in state))
    many = many._replace(stopped=torch.zeros_like(many.stopped))
    memory: Any = None
    for _ in range(depth):
        logits, _, memory = network(task.observe(many), memory)
        action = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        many = where(many.stopped, many, task.advance(many, action))
    value = network(task.observe(many), memory).value
    weight = (value.reshape(count, rollouts) / temperature).softmax(1)
    turn = many.quaternion.reshape(count, rollouts, 4)
    turn = torch.where((turn * turn[:, :1]).sum(-1, keepdim=True) < 0, -turn, turn)
    mean = torch.nn.functional.normalize((weight[..., None] * turn).sum(1), dim=1)
    scale = (weight * many.log_scale.reshape(count, rollouts)).sum(1)
    shift = (weight[..., None] * many.translation_mm.reshape(count, rollouts, 3)).sum(1)
    return Pose(mean, scale, shift)
