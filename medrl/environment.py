"""The runner of a task: B rows, a clock, auto-reset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrl.tasks.base import Task
from medrl.types import Step, where


class Environment:
    """Steps ``num_envs`` rows of a task together; the only stateful part of a problem.

    Rows that end are reset in the same step; ``final_state`` still holds their true successor.  ``group_size`` rows in
    turn share a case: a group goes on to its next case when all its rows have ended, and until then ended rows stand
    still with reward 0.  Every draw comes from one generator, so equal seeds give equal episodes.
    """

    def __init__(self, task: Task, *, num_envs: int, group_size: int = 1, seed: int = 0) -> None:
        if num_envs < 1 or num_envs % group_size:
            raise ValueError(f"num_envs {num_envs} must be a positive multiple of group_size {group_size}")
        self.task, self.num_envs, self.group_size = task, num_envs, group_size
        self.device = torch.device(getattr(task.cases, "device", "cpu"))
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.state: Any = None

    def reset(self, seed: int | None = None) -> Any:
        """Start every row anew; returns the observation."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self._fresh()
        self.clock = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        self.total = torch.zeros(self.num_envs, device=self.device)
        self.ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self.observe()

    def observe(self) -> Any:
        """What the policy sees of the present state."""
        return self.task.observe(self.state)

    def step(self, action: Tensor) -> Step:
        """Advance all rows by their actions (B,) or (B, H), reset those that ended, and observe."""
        step = self.advance(action)
        return step._replace(observation=self.observe())

    def advance(self, action: Tensor) -> Step:
        """The same without an observation (None), for callers that render when they need to."""
        task, old = self.task, self.state
        new = task.advance(old, action)
        reward = task.reward(old, action, new)
        terminated = task.terminated(new)
        if self.group_size > 1:
            new = where(self.ended, old, new)
            reward = torch.where(self.ended, 0.0, reward)
            terminated = terminated & ~self.ended
        self.clock = self.clock + ~self.ended
        truncated = (self.clock >= task.max_steps) & ~terminated & ~self.ended
        self.total = self.total + reward
        just = terminated | truncated
        over = self.ended | just
        if self.group_size > 1:
            group = over.reshape(-1, self.group_size).all(1).repeat_interleave(self.group_size)
        else:
            group = over
        metrics = {
            "score": task.score(new), "episode_return": self.total, "length": self.clock, "ended": just,
            "active": ~self.ended,
        }  # fmt: skip
        self.state = where(group, self._fresh(), new)
        self.clock = torch.where(group, 0, self.clock)
        self.total = torch.where(group, 0.0, self.total)
        self.ended = over & ~group
        return Step(None, reward, terminated, truncated, new, metrics)

    def reset_rows(self, mask: Tensor) -> Any:
        """Start the rows of a mask (B,) anew, as after replacing their cases; returns the observation."""
        self.restart(mask)
        return self.observe()

    def restart(self, mask: Tensor) -> None:
        """Start the rows of a mask (B,) anew, without observing."""
        self.state = where(mask, self._fresh(), self.state)
        self.clock = torch.where(mask, 0, self.clock)
        self.total = torch.where(mask, 0.0, self.total)
        self.ended = self.ended & ~mask

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors."""
        return {
            "generator": self.generator.get_state(), "state": list(self.state), "clock": self.clock,
            "total": self.total, "ended": self.ended,
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Undo ``state_dict``; the environment must have been reset once."""
        self.generator.set_state(saved["generator"].cpu())
        if self.state is None:
            self.reset()
            self.generator.set_state(saved["generator"].cpu())
        self.state = type(self.state)(*(x.to(self.device) for x in saved["state"]))
        self.clock, self.total, self.ended = (saved[k].to(self.device) for k in ("clock", "total", "ended"))

    def _fresh(self) -> Any:
        groups = self.num_envs // self.group_size
        case = torch.randint(len(self.task.cases), (groups,), generator=self.generator, device=self.device)
        return self.task.initial(case.repeat_interleave(self.group_size), self.generator)
