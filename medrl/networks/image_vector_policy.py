"""A policy over a small image and a vector of numbers beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medrl.networks.policy import Policy, choices, count_actions, make_head


class ImageVectorPolicy(Policy):
    """Two convolutions and a dense layer read ``observation["image"]`` (B, C, n, n), bytes as 0..1.

    What they say is joined with ``observation["vector"]`` (B, F); both heads read the same features.

    Args:
        channels: C.
        size: n, a multiple of 4.
        features: F.
        actions: how many, or how many of each of several choices.
        recurrent: whether a gated recurrent unit remembers.
    """

    def __init__(
        self, *, channels: int, size: int, features: int, actions: int | Sequence[int], hidden: int = 128,
        width: int = 16, recurrent: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.nvec = choices(actions)
        self.hidden, self.recurrent = hidden, recurrent
        self.look = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(1, 2 * width), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, hidden),
        )  # fmt: skip
        self.join = nn.Sequential(
            nn.Linear(hidden + features, hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(),
        )  # fmt: skip
        self.cell = nn.GRUCell(hidden, hidden) if recurrent else None
        total = count_actions(actions)
        self.policy_head, self.value_head = make_head(hidden, hidden, total, 0.01), make_head(hidden, hidden, 1, 1.0)

    def initial_memory(self, batch: int, device: torch.device | str) -> Tensor | None:
        """Zeros (B, hidden), if recurrent."""
        return torch.zeros(batch, self.hidden, device=device) if self.recurrent else None

    def encode(self, observation: Any) -> Tensor:
        """Codes (B, hidden)."""
        seen = self.look(observation["image"].float() / 255)
        return self.join(torch.cat([seen, observation["vector"].float()], 1))

    def remember(self, code: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The code plus what is remembered, (B, hidden)."""
        memory = self.cell(code, memory)
        return code + memory, memory

    def decide(self, features: Tensor, observation: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, A) of all choices in turn, and values (B,)."""
        return self.policy_head(features), self.value_head(features)[:, 0]
