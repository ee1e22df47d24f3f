"""On-policy experience: the steps since the last update, as states; observations may be rendered again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl.returns import gae


class Sample(NamedTuple):
    """Part of a rollout, time first: whole sequences (T, R, ...), or single transitions (1, N, ...)."""

    observation: Any
    memory: Tensor | None  # (R, ...) before the first step; None without one, and for transitions
    reset: Tensor  # (T, R) bool: the row starts anew after this step
    active: Tensor  # (T, R) bool: False for rows that waited for the others of their group
    values: dict[str, Tensor]  # (T, R, ...) by name: action, log_prob, value, reward, ..., and what was ``put``


class Rollout:
    """``length`` steps of ``num_envs`` rows, preallocated on the device, with the recurrent memory before the first.

    A policy gradient needs the value of every true successor.  Within an episode that is the next step's value.  Where
    the clock cut an episode, and where the rollout ends, the successor's state and the memory of that moment, before
    any reset, are kept, few enough to be valued together: a row is cut once in ``task.max_steps`` steps at most.

    ``keep_observation`` keeps the observations too; otherwise the task renders them again from the states.
    """

    def __init__(self, task: Any, *, length: int, num_envs: int, keep_observation: bool = False) -> None:
        if length < 1 or num_envs < 1:
            raise ValueError(f"a rollout of {length} steps of {num_envs} rows holds nothing: both must be 1 at least")
        self.task, self.length, self.num_envs, self.keep_observation = task, length, num_envs, keep_observation
        self.device = torch.device(getattr(task.cases, "device", "cpu"))
        # cuts before the last step, and the last step itself
        self.slots = 1 + ((length - 2) // task.max_steps + 1 if length > 1 else 0)
        self.time = 0  # steps written
        self.store: dict[str, Tensor] = {}  # (T, B, ...)
        self.successor: dict[str, Tensor] = {}  # (slots, B, ...); the last slot is that of the last step
        self.memory: Tensor | None = None
        self.state_type: Any = None
        self.targets: dict[str, Tensor] = {}
        self.rows = torch.arange(num_envs, device=self.device)
        self.slot = torch.zeros_like(self.rows)  # the next free one of each row

    @property
    def full(self) -> bool:
        """Whether all steps are written."""
        return self.time == self.length

    def add(
        self, state: Any, step: Any, *, memory: Tensor | None = None, next_memory: Tensor | None = None,
        observation: Any = None, **values: Tensor,
    ) -> None:  # fmt: skip
        """Store one step of all rows and ``values`` (B, ...) by name, ``value`` among them.

        ``memory`` is what the policy knew before it saw ``observation``, ``next_memory`` after it, before any reset.
        Raises RuntimeError when full, ValueError for another number of rows.
        """
        if self.full:
            raise RuntimeError(f"the rollout holds its {self.length} steps: learn from it, or clear it, first")
        if len(step.reward) != self.num_envs:
            raise ValueError(f"{len(step.reward)} rows were stepped, the rollout has num_envs {self.num_envs}")
        successor = _named(step.final_state, next_memory)
        if self.time == 0:
            self.memory, self.state_type = memory, type(state)
            # slots that stay empty are rendered too, so they hold states that can be
            for name, value in _named(state, memory).items():
                self.successor[name] = value.expand(self.slots, *value.shape).clone()
        last = self.time == self.length - 1
        slot = torch.full_like(self.slot, self.slots - 1) if last else self.slot
        fields = _named(state) | {
            "reward": step.reward, "terminated": step.terminated, "truncated": step.truncated,
            "active": step.metrics["active"], "slot": slot,
        }  # fmt: skip
        if self.keep_observation:
            fields |= {f"observation.{name}": value for name, value in _parts(observation).items()}
        for name, value in (fields | values).items():
            if name not in self.store:
                self.store[name] = torch.zeros((self.length, *value.shape), dtype=value.dtype, device=self.device)
            self.store[name][self.time] = value
        keep = step.truncated | last
        for name, value in successor.items():
            kept = self.successor[name]
            mask = keep.reshape(-1, *[1] * (value.ndim - 1))
            kept[slot, self.rows] = torch.where(mask, value.to(kept.dtype), kept[slot, self.rows])
        self.slot = (self.slot + step.truncated).clamp(max=max(0, self.slots - 2))
        self.time += 1

    def successors(self) -> tuple[Any, Tensor | None]:
        """States (slots * B rows) to be valued for ``advantage``, and the memory (slots * B, ...) to do so with."""
        parts = {name: value.flatten(0, 1) for name, value in self.successor.items()}
        memory = parts.pop("memory", None)
        return self.state_type(*parts.values()), memory

    def advantage(self, successor_value: Tensor, *, gamma: float, decay: float) -> Tensor:
        """Generalised advantage estimates (T, B), given the values (slots * B,) of the ``successors``."""
        end = successor_value.reshape(self.slots, self.num_envs)
        value, terminated, truncated = (self.store[name] for name in ("value", "terminated", "truncated"))
        following = torch.cat([value[1:], end[-1:]])
        next_value = torch.where(truncated, end.gather(0, self.store["slot"]), following)
        ended = terminated | truncated
        return gae(self.store["reward"], value, next_value, terminated, ended, gamma=gamma, decay=decay)

    def put(self, name: str, value: Tensor) -> None:
        """Keep a (T, B, ...) tensor beside the steps until ``clear``."""
        self.targets[name] = value

    def sequences(self, rows: Tensor) -> Sample:
        """All steps of some rows (R,)."""
        part = {name: value[:, rows] for name, value in (self.store | self.targets).items()}
        return self._sample(part, None if self.memory is None else self.memory[rows])

    def transitions(self, index: Tensor) -> Sample:
        """Some of the T * B transitions (N,), each on its own."""
        part = {name: value.flatten(0, 1)[index][None] for name, value in (self.store | self.targets).items()}
        return self._sample(part, None)

    def clear(self) -> None:
        """Start the next rollout."""
        self.time, self.targets = 0, {}
        self.slot = torch.zeros_like(self.slot)

    def bytes_per_transition(self) -> int:
        """Bytes that the state of one stored transition costs."""
        return sum(v.element_size() * v[0, 0].nelement() for n, v in self.store.items() if n.startswith("state."))

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs: next to nothing between two rollouts."""
        if self.time == 0:
            return {"time": 0}
        return {
            "time": self.time, "store": {name: value[: self.time] for name, value in self.store.items()},
            "successor": self.successor, "slot": self.slot, "memory": self.memory,
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Undo ``state_dict``; ValueError if the saved rollout has another length or number of rows."""
        self.clear()
        if saved["time"] == 0:
            return
        if len(saved["slot"]) != self.num_envs or len(saved["successor"]["state.0"]) != self.slots:
            raise ValueError("the saved rollout has another length or num_envs than this one: use the same")
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.state_type = type(self.task.initial(first, torch.Generator(self.device)))
        self.time, self.store = saved["time"], {}
        for name, value in saved["store"].items():
            whole = torch.zeros((self.length, *value.shape[1:]), dtype=value.dtype, device=self.device)
            whole[: self.time] = value.to(self.device)
            self.store[name] = whole
        self.successor = {name: value.to(self.device, copy=True) for name, value in saved["successor"].items()}
        self.slot = saved["slot"].to(self.device, copy=True)
        self.memory = None if saved["memory"] is None else saved["memory"].to(self.device)

    def _sample(self, part: dict[str, Tensor], memory: Tensor | None) -> Sample:
        kept = {name.partition(".")[2]: part.pop(name) for name in list(part) if name.startswith("observation.")}
        state = [part.pop(name) for name in list(part) if name.startswith("state.")]
        if not kept:
            seen = self.task.observe(self.state_type(*(value.flatten(0, 1) for value in state)))
            shape = part["reward"].shape
            kept = {name: value.unflatten(0, shape) for name, value in _parts(seen).items()}
        observation = kept.get("", kept)
        active = part.pop("active")
        return Sample(observation, memory, part["terminated"] | part["truncated"] | ~active, active, part)


def _named(state: Any, memory: Tensor | None = None) -> dict[str, Tensor]:
    """Fields of a state by name, and the memory if there is one."""
    parts = {f"state.{n}": value for n, value in enumerate(state)}
    return parts if memory is None else parts | {"memory": memory}


def _parts(observation: Any) -> dict[str, Tensor]:
    """Parts of an observation by name; the only one of a tensor has none."""
    return observation if isinstance(observation, dict) else {"": observation}
