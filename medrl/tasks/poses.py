"""What all tasks of registration share: a pose that is nudged until it is right, and a truth to measure it by."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import torch
from torch import Tensor

from medrl.geometry import quaternions
from medrl.geometry.poses import Nudges, Pose, after_every, nudged, to_matrices
from medrl.rewards.scores import AtStop, Gain, StepCost
from medrl.tasks.base import Task
from medrl.types import Reward, where


class PoseTask(Task):
    """Actions are ``changes`` of the pose, and stop, the last one; the score is minus the error in mm.

    Its states have the fields of `Pose`, ``stopped`` (B,) bool, and a ``pose``; its cases a ``device``, a ``truth``
    (a `Pose` of N rows) and ``error_mm(case, pose)`` for poses (B,) and (B, K).  A start is the truth turned by up to
    ``start_degrees``, shifted by up to ``start_mm`` and changed in size by a factor of up to ``start_scale``; where
    the changes are ``planar``, in the plane.
    """

    def __init__(
        self, *, cases: Any, changes: Nudges, scaled: bool, planar: bool, max_steps: int, start_mm: float,
        start_degrees: float, start_scale: float, reward: Reward | None, near_mm: float,
    ) -> None:  # fmt: skip
        self.cases, self.scaled, self.max_steps = cases, scaled, max_steps
        self.changes = changes.to(cases.device)
        self.moves = len(changes.log_scale)
        self.stop = self.moves
        plane = torch.tensor([1.0, 1.0, 0.0], device=cases.device)
        self.shift_axes, self.turn_axes = (plane, 1 - plane) if planar else (torch.ones_like(plane),) * 2
        self.start_mm, self.start_degrees, self.start_scale = start_mm, start_degrees, start_scale
        self.reward_shape: Reward = (
            0.1 * Gain(per_step_length=False) + AtStop(threshold=-near_mm) - 0.01 * StepCost()
            if reward is None else reward
        )  # fmt: skip
        self.action_space = gymnasium.spaces.Discrete(self.moves + 1)

    def advance(self, state: Any, action: Tensor) -> Any:
        """Nudge, or stop."""
        index = action.long().clamp(max=self.moves - 1)
        pose = nudged(state.pose, Nudges(*(value[index] for value in self.changes)))
        pose = where((action < self.moves) & ~state.stopped, pose, state.pose)
        return state._replace(**pose._asdict(), stopped=state.stopped | (action == self.stop))

    def terminated(self, state: Any) -> Tensor:
        """Stopped."""
        return state.stopped

    def score(self, state: Any) -> Tensor:
        """Minus the error in mm."""
        return -self.cases.error_mm(state.case, state.pose)

    def action_gains(self, state: Any) -> Tensor:
        """(B, A) mm that each action takes off the error; stopping gains nothing."""
        now = self.cases.error_mm(state.case, state.pose)
        then = self.cases.error_mm(state.case, after_every(state.pose, self.changes))
        return torch.cat([now[:, None] - then, torch.zeros_like(now[:, None])], 1)

    def expert(self, state: Any) -> Tensor:
        """The nudge that takes most off the error, or stop where none does."""
        gains = self.action_gains(state)
        best, action = gains[:, : self.moves].max(1)
        return torch.where(best > 0, action, self.stop)

    def outputs(self, state: Any) -> dict[str, Any]:
        """``moving_from_fixed`` (B, 4, 4), mm, in the frames of the cases."""
        return {"moving_from_fixed": to_matrices(state.pose)}

    def perturbed(self, case: Tensor, generator: torch.Generator) -> Pose:
        """The truth (B,), turned and changed in size about the origin of the fixed frame, and shifted."""
        device, count = case.device, len(case)

        def direction(along: Tensor) -> Tensor:
            vector = torch.randn(count, 3, generator=generator, device=device) * along
            return vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-6)

        def size(most: float) -> Tensor:
            return most * torch.rand(count, 1, generator=generator, device=device)

        turn = quaternions.from_vector(direction(self.turn_axes) * size(math.radians(self.start_degrees)))
        shift = direction(self.shift_axes) * size(self.start_mm)
        growth = math.log(self.start_scale) * (2 * size(1.0)[:, 0] - 1) * self.scaled
        truth = Pose(*(value[case.long()] for value in self.cases.truth))
        return nudged(truth, Nudges(turn, growth, shift))
