"""Policies: an observation and a memory in; logits, a value and the next memory out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PolicyOutput(NamedTuple):
    """What a policy says of B observations."""

    logits: Tensor  # (B, A); of several choices those of each in turn
    value: Tensor  # (B,)
    memory: Tensor | None = None  # (B, ...), to hand back at the next step; None without one


class Policy(nn.Module, ABC):
    """An encoder, a memory if it is recurrent, and two heads.

    Whatever has this ``forward`` and ``initial_memory`` will do as a policy; in these three parts it is unrolled over
    a sequence at the cost of one call, but for the memory.  Rows never mix: no batch statistics.
    """

    recurrent: bool
    nvec: tuple[int, ...] | None = None  # actions of every choice, where an action is several; None: one choice

    @abstractmethod
    def encode(self, observation: Any) -> Tensor:
        """Codes (B, ...) of observations."""

    @abstractmethod
    def remember(self, code: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, ...) of codes in the light of a memory, and the next memory."""

    @abstractmethod
    def decide(self, features: Tensor, observation: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,)."""

    def initial_memory(self, batch: int, device: torch.device | str) -> Tensor | None:
        """The memory (B, ...) at the start of an episode; None without one."""
        return None

    def forward(self, observation: Any, memory: Tensor | None = None) -> PolicyOutput:
        """Answer B observations; without a memory (B, ...) they are the first of their episodes."""
        features = self.encode(observation)
        if self.recurrent:
            if memory is None:
                memory = self.initial_memory(len(features), features.device)
            features, memory = self.remember(features, memory)
        return PolicyOutput(*self.decide(features, observation), memory)


class PolicyNet(Policy):
    """A dense policy over feature vectors (B, F), or observations with such a part named ``key``.

    Args:
        features: F.
        actions: A; or how many of each of several choices, in the order of ``nvec``.
        hidden: width of all layers and of the memory.
        recurrent: whether a gated recurrent unit remembers.
        shortcut: entries of the vector, A of them or fewer, that are added to the logits of the first actions, times
            a positive scale that is learned; or several such parts, [start, stop] each.  If they are what each action
            is seen to gain, the policy starts by climbing, and stops there if its last action, without an entry, is to
            stop.
        scale: initial value of that scale, or of each; a policy that starts greedy has a large one.
    """

    def __init__(
        self, *, features: int, actions: int | Sequence[int], hidden: int = 128, recurrent: bool = False,
        shortcut: slice | Sequence[Sequence[int]] | None = None,
        scale: float | Sequence[float] = 1.0, key: str = "vector",
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden, self.recurrent, self.key = hidden, recurrent, key
        self.nvec = choices(actions)
        actions = count_actions(actions)
        parts = [shortcut] if isinstance(shortcut, slice) else [slice(*part) for part in shortcut or ()]
        self.shortcut = parts
        if parts:
            entries = [len(range(*part.indices(features))) for part in parts]
            if len(set(entries)) > 1 or not 0 < entries[0] <= actions:
                raise ValueError(f"shortcut names {entries[0]} of {features} entries for {actions} actions")
            scales = [scale] * len(parts) if isinstance(scale, int | float) else list(scale)
            if len(scales) != len(parts) or min(scales) <= 0:
                raise ValueError(f"scale must be positive, and one number or one a shortcut, not {scale}")
            self.spare = actions - entries[0]
            self.log_scale = nn.Parameter(torch.tensor(scales).log())
        self.trunk = nn.Sequential(
            nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(),
        )  # fmt: skip
        self.cell = nn.GRUCell(hidden, hidden) if recurrent else None
        self.policy_head, self.value_head = make_head(hidden, hidden, actions, 0.01), make_head(hidden, hidden, 1, 1.0)

    def initial_memory(self, batch: int, device: torch.device | str) -> Tensor | None:
        """Zeros (B, hidden), if recurrent."""
        return torch.zeros(batch, self.hidden, device=device) if self.recurrent else None

    def encode(self, observation: Any) -> Tensor:
        """Codes (B, hidden)."""
        return self.trunk(part_of(observation, self.key).float())

    def remember(self, code: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The code plus what is remembered, (B, hidden)."""
        memory = self.cell(code, memory)
        return code + memory, memory

    def decide(self, features: Tensor, observation: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,)."""
        logits = self.policy_head(features)
        if self.shortcut:
            vector = part_of(observation, self.key).float()
            known = torch.stack([vector[:, part] for part in self.shortcut], -1) @ self.log_scale.exp()
            logits = logits + nn.functional.pad(known, (0, self.spare))
        return logits, self.value_head(features)[:, 0]


def unroll(network: nn.Module, observation: Any, memory: Tensor | None, reset: Tensor) -> PolicyOutput:
    """Answer sequences of observations (T, B, ...) from the memory (B, ...) before them; None without one.

    After a step where ``reset`` (T, B) is True the row starts anew.  Returns logits (T, B, A), values (T, B) and the
    memory (B, ...) after the last step.
    """
    steps, rows = reset.shape
    if memory is None:
        return _timed(network(_map(observation, lambda x: x.flatten(0, 1)), None), steps)._replace(memory=None)
    fresh = network.initial_memory(rows, memory.device)
    if not isinstance(network, Policy):
        outputs = []
        for t in range(steps):
            outputs.append(network(_map(observation, lambda x, t=t: x[t]), memory))
            memory = restart(outputs[-1].memory, fresh, reset[t])
        logits, value, _ = zip(*outputs, strict=True)
        return PolicyOutput(torch.stack(logits), torch.stack(value), memory)
    flat = _map(observation, lambda x: x.flatten(0, 1))
    codes = network.encode(flat).unflatten(0, (steps, rows))
    features = []
    for t in range(steps):
        feature, memory = network.remember(codes[t], memory)
        features.append(feature)
        memory = restart(memory, fresh, reset[t])
    return _timed(PolicyOutput(*network.decide(torch.cat(features), flat), memory), steps)


def restart(memory: Tensor | None, fresh: Tensor | None, mask: Tensor) -> Tensor | None:
    """Replace the memory (B, ...) of the rows of a mask (B,) by a fresh one."""
    if memory is None or fresh is None:
        return memory
    return torch.where(mask.reshape(-1, *[1] * (memory.ndim - 1)), fresh, memory)


def part_of(observation: Any, key: str) -> Tensor:
    """The named part of an observation, or all of one that has no parts."""
    return observation[key] if isinstance(observation, dict) else observation


def choices(actions: int | Sequence[int]) -> tuple[int, ...] | None:
    """``nvec`` of a network that is told its actions: None where they are one choice."""
    return tuple(int(n) for n in actions) if isinstance(actions, Iterable) else None


def count_actions(actions: int | Sequence[int]) -> int:
    """Logits of a network that is told its actions."""
    return sum(choices(actions) or (int(actions),))


def make_head(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    """Two dense layers; a small gain of the last makes the first policy an even one."""
    head = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
    nn.init.orthogonal_(head[-1].weight, gain)
    nn.init.zeros_(head[-1].bias)
    return head


def _map(observation: Any, change: Any) -> Any:
    if isinstance(observation, dict):
        return {name: change(value) for name, value in observation.items()}
    return change(observation)


def _timed(output: PolicyOutput, steps: int) -> PolicyOutput:
    logits, value = (x.unflatten(0, (steps, -1)) for x in output[:2])
    return PolicyOutput(logits, value, output.memory)
