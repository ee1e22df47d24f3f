"""Replay of states: observations and rewards are computed again when a batch is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl.returns import n_step
from medrl.types import rows

BUCKET = 1024  # leaves of the two-level sum that share one partial sum


class Batch(NamedTuple):
    """Transitions drawn from a replay; H is the number of heads that each one teaches."""

    state: Any
    observation: Any
    action: Tensor  # (B,)
    reward: Tensor  # (B, H) discounted over the n steps
    discount: Tensor  # (B, 1) of the bootstrap value
    terminated: Tensor  # (B, 1) bool
    next_state: Any
    next_observation: Any
    index: Tensor  # (B,) for ``update_priority``
    weight: Tensor  # (B,) importance weight, largest 1


class Replay:
    """A ring of transitions as states, preallocated on the device [state replay; Schaul 2016 for priorities].

    The ring holds time steps of ``num_envs`` rows.  ``alpha`` 0 draws evenly.  With ``every_head`` each transition
    carries the reward that every head of the task would have had (``task.each_head``).  A window of n steps never
    crosses the write head, and ends where an episode ended, with the true successor kept.
    """

    def __init__(
        self, task: Any, *, capacity: int, num_envs: int, seed: int = 0, n: int = 1, gamma: float = 0.9,
        alpha: float = 0.0, beta: float = 0.4, every_head: bool = True,
    ) -> None:  # fmt: skip
        self.task, self.num_envs, self.n, self.gamma = task, num_envs, n, gamma
        self.alpha, self.beta, self.every_head = alpha, beta, every_head
        self.length = max(n + 1, capacity // num_envs)  # time steps
        self.device = torch.device(getattr(task.cases, "device", "cpu"))
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.store: dict[str, Tensor] = {}
        self.state_type: Any = None
        self.time = 0  # time steps written in all
        leaves = -(-self.length * num_envs // BUCKET) * BUCKET
        self.priority = torch.zeros(leaves, device=self.device)
        self.partial = torch.zeros(leaves // BUCKET, device=self.device)
        self.highest = torch.ones((), device=self.device)

    def __len__(self) -> int:
        return min(self.time, self.length) * self.num_envs

    def add(self, state: Any, action: Tensor, next_state: Any, terminated: Tensor, ended: Tensor, active: Tensor) -> None:
        """Store one time step of all rows; ``ended`` is terminated or truncated, inactive rows are never drawn."""
        values = {f"state.{n}": v for n, v in enumerate(state)} | {f"next.{n}": v for n, v in enumerate(next_state)}
        values |= {"action": action.to(torch.int8), "terminated": terminated, "ended": ended}
        if not self.store:
            self.state_type = type(state)
            for name, value in values.items():
                self.store[name] = torch.zeros((self.length, *value.shape), dtype=value.dtype, device=self.device)
        slot = self.time % self.length
        for name, value in values.items():
            self.store[name][slot] = value
        self.time += 1
        row = torch.arange(self.num_envs, device=self.device)
        # a step can be drawn once its whole window is written; the slot just overwritten cuts the window before it
        ready = (self.time - self.n) % self.length
        if self.time >= self.n:
            self._set(ready * self.num_envs + row, self.highest * self._active(ready, active))
        self._set(((slot + 1) % self.length) * self.num_envs + row, torch.zeros(self.num_envs, device=self.device))
        if self.n > 1:
            stale = torch.arange(2, self.n + 1, device=self.device)
            late = ((slot + stale) % self.length)[:, None] * self.num_envs + row
            late = late if self.time > self.length - self.n else late[:0]
            self._set(late.reshape(-1)[: 0 if self.time < self.length else None], torch.zeros((), device=self.device))

    def sample(self, count: int) -> Batch:
        """Draw transitions by priority and render them."""
        index, weight = self._draw(count)
        time, row = index // self.num_envs, index % self.num_envs
        window = (time + torch.arange(self.n, device=self.device)[:, None]) % self.length  # (n, B)
        terminated = self.store["terminated"][window, row]
        ended = self.store["ended"][window, row]
        reward = torch.stack([self._reward(t, row) for t in window])
        total, steps, discount = n_step(reward, ended, self.gamma)
        last = (time + steps - 1) % self.length
        state, next_state = self._state("state", time, row), self._state("next", last, row)
        return Batch(
            state, self.task.observe(state), self.store["action"][time, row].long(), total, discount[:, None],
            terminated[steps - 1, torch.arange(count, device=self.device)][:, None], next_state,
            self.task.observe(next_state), index, weight,
        )  # fmt: skip

    def update_priority(self, index: Tensor, error: Tensor) -> None:
        """Set priorities (B,) from absolute errors (B,); transitions discarded meanwhile stay discarded."""
        if self.alpha == 0:
            return
        value = (error.detach().abs() + 1e-3) ** self.alpha
        self.highest = torch.maximum(self.highest, value.max())
        self._set(index, torch.where(self.priority[index] > 0, value, 0.0))

    def discard(self, cases: Tensor) -> None:
        """Never again draw transitions of these case indices (their volumes were replaced)."""
        if not self.store:
            return
        gone = torch.isin(self.store["state.0"].long(), cases.to(self.device)).reshape(-1)
        self.priority[: len(gone)].mul_(~gone)
        self.partial = self.priority.reshape(-1, BUCKET).sum(1)

    def bytes_per_transition(self) -> float:
        """Bytes that one stored transition costs, priorities included."""
        size = sum(v.element_size() * v.nelement() for v in [*self.store.values(), self.priority, self.partial])
        return size / (self.length * self.num_envs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors and numbers."""
        return {
            "store": self.store, "time": self.time, "priority": self.priority, "highest": self.highest,
            "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any], state_type: Any) -> None:
        """Undo ``state_dict``; ``state_type`` is the NamedTuple class of the task's states."""
        self.store = {k: v.to(self.device) for k, v in saved["store"].items()}
        self.time, self.state_type = saved["time"], state_type
        self.priority, self.highest = saved["priority"].to(self.device), saved["highest"].to(self.device)
        self.partial = self.priority.reshape(-1, BUCKET).sum(1)
        self.generator.set_state(saved["generator"].cpu())

    def _reward(self, time: Tensor, row: Tensor) -> Tensor:
        state, next_state = self._state("state", time, row), self._state("next", time, row)
        action = self.store["action"][time, row].long()
        if not self.every_head:
            return self.task.reward(state, action, next_state)[:, None]
        state, next_state = self.task.each_head(state), self.task.each_head(next_state)
        heads = len(state[0]) // len(action)
        return self.task.reward(state, action.repeat_interleave(heads), next_state).reshape(len(action), heads)

    def _state(self, part: str, time: Tensor, row: Tensor) -> Any:
        count = len(self.state_type._fields)
        return self.state_type(*(self.store[f"{part}.{n}"][time, row] for n in range(count)))

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        sums = self.partial.double().cumsum(0)
        aim = (torch.arange(count, device=self.device) + self._random(count)) / count * sums[-1]
        bucket = torch.searchsorted(sums, aim, right=True).clamp(max=len(sums) - 1)
        rest = aim - (sums[bucket] - self.partial[bucket])
        leaves = self.priority.reshape(-1, BUCKET)[bucket].double().cumsum(1)
        leaf = torch.searchsorted(leaves, rest[:, None].clamp(min=0), right=True)[:, 0]
        # rounding may step past the last leaf with a priority: go back to it
        last = BUCKET - 1 - (self.priority.reshape(-1, BUCKET)[bucket].flip(1) > 0).float().argmax(1)
        leaf = torch.minimum(leaf, last)
        index = bucket * BUCKET + leaf
        chance = self.priority[index] / sums[-1].float()
        weight = (chance * len(self)).clamp(min=1e-12) ** -self.beta if self.alpha > 0 else torch.ones_like(chance)
        return index, weight / weight.max()

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device, dtype=torch.float64)

    def _set(self, index: Tensor, value: Tensor) -> None:
        before = self.priority[index]
        self.priority[index] = value.expand(len(index)) if value.ndim == 0 else value
        self.partial.index_add_(0, index // BUCKET, self.priority[index] - before)

    def _active(self, slot: int, active: Tensor) -> Tensor:
        return active.float() if self.n == 1 else torch.ones_like(active, dtype=torch.float32)
