"""Replay of states: observations and rewards are computed again when a batch is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl.returns import n_step

BUCKET = 1024  # leaves of the two-level sum that share one partial sum


class Batch(NamedTuple):
    """Transitions drawn from a replay; H is the number of heads that each one teaches."""

    state: Any
    observation: Any
    action: Tensor  # (B,), or (B, H) of several choices
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
    carries the reward that every head of the task would have had (``task.each_head``, for tasks that have heads).

    A transition is drawn only if its window of n steps is written to the end, or is cut short by the end of its
    episode, whose true successor is kept.  Until then it waits with priority 0, as do inactive rows and discarded
    cases for ever.  So no window crosses the write head: it holds only steps that are newer than its first.

    Of a successor the fields that ``task.derived`` names are not stored: ``task.complete(state)`` computes them again.
    """

    def __init__(
        self, task: Any, *, capacity: int, num_envs: int, seed: int = 0, n: int = 1, gamma: float = 0.9,
        alpha: float = 0.0, beta: float = 0.4, every_head: bool = True,
    ) -> None:  # fmt: skip
        self.task, self.num_envs, self.n, self.gamma = task, num_envs, n, gamma
        self.alpha, self.beta = alpha, beta
        self.every_head = every_head and hasattr(task, "each_head")
        self.derived = tuple(getattr(task, "derived", ()))
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
        self.waiting = torch.zeros((n, num_envs), dtype=torch.bool, device=self.device)  # step t in row t modulo n

    def __len__(self) -> int:
        """Transitions whose whole window is written."""
        return max(0, min(self.time, self.length) - (self.n - 1)) * self.num_envs

    def add(
        self, state: Any, action: Tensor, next_state: Any, terminated: Tensor, ended: Tensor, active: Tensor
    ) -> None:
        """Store one time step of all rows; ``ended`` is terminated or truncated, inactive rows are never drawn."""
        values = {f"state.{n}": v for n, v in enumerate(state)}
        fields = zip(type(next_state)._fields, next_state, strict=True)
        values |= {f"next.{n}": v for n, (name, v) in enumerate(fields) if name not in self.derived}
        values |= {"action": action.to(torch.int16), "terminated": terminated, "ended": ended}
        if not self.store:
            self.state_type = type(state)
            for name, value in values.items():
                self.store[name] = torch.zeros((self.length, *value.shape), dtype=value.dtype, device=self.device)
        for name, value in values.items():
            self.store[name][self.time % self.length] = value
        self.waiting[self.time % self.n] = active
        for age in range(min(self.n, self.time + 1)):
            self._release(age, ended)
        self.time += 1

    def sample(self, count: int) -> Batch:
        """Draw transitions by priority and render them; RuntimeError before the first window is complete."""
        if len(self) == 0:
            raise RuntimeError(f"the replay holds {self.time} steps, a window needs {self.n}: act before learning")
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
        self.priority[index] = torch.where(self.priority[index] > 0, value, 0.0)
        # summed anew rather than corrected: right also for an index drawn twice, and rounding errors do not add up
        bucket = index // BUCKET
        self.partial[bucket] = self._leaves()[bucket].sum(1)

    def discard(self, cases: Tensor) -> None:
        """Never again draw transitions of these case indices (their volumes were replaced)."""
        if not self.store:
            return
        gone = torch.isin(self.store["state.0"].long(), cases.to(self.device))  # (length, num_envs)
        self.priority[: gone.numel()].mul_(~gone.reshape(-1))
        self.partial = self._leaves().sum(1)
        for time in range(max(0, self.time - self.n), self.time):
            self.waiting[time % self.n].logical_and_(~gone[time % self.length])

    def bytes_per_transition(self) -> float:
        """Bytes that one stored transition costs, priorities included."""
        size = sum(v.element_size() * v.nelement() for v in [*self.store.values(), self.priority, self.partial])
        return size / (self.length * self.num_envs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors and numbers."""
        return {
            "store": self.store, "time": self.time, "priority": self.priority, "partial": self.partial,
            "highest": self.highest, "waiting": self.waiting, "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any], state_type: Any = None) -> None:
        """Undo ``state_dict``; ``state_type``, the NamedTuple class of the states, is asked of the task if not given.

        Raises ValueError if the saved replay has another capacity, number of rows or n.
        """
        for name in ("priority", "waiting"):
            if saved[name].shape != getattr(self, name).shape:
                raise ValueError("the saved replay has another capacity, num_envs or n than this one: use the same")
        if state_type is None:
            first = torch.zeros(1, dtype=torch.int64, device=self.device)
            state_type = type(self.task.initial(first, torch.Generator(self.device)))
        self.state_type, self.time = state_type, saved["time"]
        self.store = {name: value.to(self.device, copy=True) for name, value in saved["store"].items()}
        for name in ("priority", "partial", "highest", "waiting"):
            setattr(self, name, saved[name].to(self.device, copy=True))
        self.generator.set_state(saved["generator"].cpu())

    def _release(self, age: int, ended: Tensor) -> None:
        """Let those of the rows stored ``age`` steps ago be drawn whose window the newest step completes."""
        time = self.time - age
        waiting = self.waiting[time % self.n]
        ready = waiting & ended if age < self.n - 1 else waiting.clone()
        waiting.logical_and_(~ready)
        first = time % self.length * self.num_envs
        priority = self.priority[first : first + self.num_envs]
        before = priority if age > 0 else torch.zeros_like(priority)  # the newest step took the oldest one's place
        priority.copy_(torch.where(ready, self.highest, before))
        buckets = slice(first // BUCKET, (first + self.num_envs - 1) // BUCKET + 1)
        self.partial[buckets] = self._leaves()[buckets].sum(1)

    def _reward(self, time: Tensor, row: Tensor) -> Tensor:
        state, next_state = self._state("state", time, row), self._state("next", time, row)
        action = self.store["action"][time, row].long()
        if not self.every_head:
            return self.task.reward(state, action, next_state)[:, None]
        state, next_state = self.task.each_head(state), self.task.each_head(next_state)
        heads = len(state[0]) // len(action)
        return self.task.reward(state, action.repeat_interleave(heads, 0), next_state).reshape(len(action), heads)

    def _state(self, part: str, time: Tensor, row: Tensor) -> Any:
        keys = [f"{part}.{n}" for n in range(len(self.state_type._fields))]
        state = self.state_type(*(self.store[key][time, row] if key in self.store else None for key in keys))
        return self.task.complete(state) if part == "next" and self.derived else state

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices (B,) by priority, one from each of B equal shares of the total, and importance weights (B,)."""
        sums = self.partial.double().cumsum(0)
        share = (torch.arange(count, device=self.device) + self._random(count)) / count
        aim = share.clamp(max=1 - 1e-12) * sums[-1]
        bucket = torch.searchsorted(sums, aim, right=True).clamp(max=len(sums) - 1)
        leaves = self._leaves()[bucket]
        within = leaves.double().cumsum(1)
        rest = (aim - (sums[bucket] - self.partial[bucket])).clamp(min=0)
        leaf = torch.searchsorted(within, rest[:, None], right=True)[:, 0]
        # rounding may step past the last leaf with a priority: go back to it
        last = BUCKET - 1 - (leaves.flip(1) > 0).int().argmax(1)
        index = (bucket * BUCKET + torch.minimum(leaf, last)).clamp(max=self.length * self.num_envs - 1)
        if self.alpha == 0:
            return index, torch.ones(count, device=self.device)
        chance = self.priority[index] / sums[-1].float()
        weight = (chance * len(self)).clamp(min=1e-12) ** -self.beta
        return index, weight / weight.max()

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device, dtype=torch.float64)

    def _leaves(self) -> Tensor:
        return self.priority.reshape(-1, BUCKET)
