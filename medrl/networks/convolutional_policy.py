"""A policy over images that remembers in maps, as in A3C with a ConvLSTM [Sun 2018]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medrl.networks.policy import Policy, choices, count_actions, make_head, part_of

REDUCTION = 4  # voxels of the image a voxel of the memory, along each axis


class ConvolutionalPolicyNet(Policy):
    """A small convolutional policy over images (B, C, *S), or observations with such a part named ``key``.

    Bytes are read as 0..1.  The memory is a map of its own at a quarter of the resolution; both heads read features
    pooled to ``pooled`` cells an axis, so that they know where something is.

    Args:
        channels: C.
        actions: A; or how many of each of several choices.
        size: S.
        dims: 2 or 3.
        recurrent: whether a cell remembers.
        cell: "gru" or "lstm".
        width: channels of the first convolution; the memory has twice as many.
    """

    def __init__(
        self, *, channels: int, actions: int | Sequence[int], size: Sequence[int], dims: int = 2,
        recurrent: bool = True,
        cell: str = "gru", width: int = 16, hidden: int = 128, pooled: int = 3, key: str = "image",
    ) -> None:  # fmt: skip
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {sorted(CELLS)}, not {cell!r}")
        if dims not in (2, 3) or len(size) != dims:
            raise ValueError(f"dims must be 2 or 3 and fit the image of size {tuple(size)}, not {dims}")
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        pool = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d
        self.recurrent, self.key, self.code = recurrent, key, 2 * width
        self.map = tuple(-(-n // REDUCTION) for n in size)
        self.trunk = nn.Sequential(
            convolution(channels, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            convolution(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(1, 2 * width), nn.SiLU(),
        )  # fmt: skip
        self.cell = CELLS[cell](self.code, dims) if recurrent else None
        cells = tuple(min(pooled, n) for n in self.map)
        count = self.code * torch.Size(cells).numel()
        self.pool = nn.Sequential(pool(cells), nn.Flatten(), nn.LayerNorm(count))
        self.nvec, total = choices(actions), count_actions(actions)
        self.policy_head, self.value_head = make_head(count, hidden, total, 0.01), make_head(count, hidden, 1, 1.0)

    def initial_memory(self, batch: int, device: torch.device | str) -> Tensor | None:
        """Zeros (B, parts, 2 * width, *S / 4), if recurrent."""
        return torch.zeros(batch, self.cell.parts, self.code, *self.map, device=device) if self.recurrent else None

    def encode(self, observation: Any) -> Tensor:
        """Maps (B, 2 * width, *S / 4)."""
        image = part_of(observation, self.key)
        return self.trunk(image.float() / 255 if image.dtype == torch.uint8 else image.float())

    def remember(self, code: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The map plus what is remembered."""
        memory = self.cell(code, memory)
        return code + memory[:, 0], memory

    def decide(self, features: Tensor, observation: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,)."""
        features = self.pool(features)
        return self.policy_head(features), self.value_head(features)[:, 0]


class ConvolutionalGRU(nn.Module):
    """Maps (B, C, *S) and a memory (B, 1, C, *S) in, the next memory out [Ballas 2016]."""

    parts = 1

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.gates = convolution(2 * channels, 2 * channels, 3, padding=1)
        self.candidate = convolution(2 * channels, channels, 3, padding=1)

    def forward(self, code: Tensor, memory: Tensor) -> Tensor:
        """One step."""
        hidden = memory[:, 0]
        reset, update = self.gates(torch.cat([code, hidden], 1)).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat([code, reset * hidden], 1)).tanh()
        return torch.lerp(candidate, hidden, update)[:, None]


class ConvolutionalLSTM(nn.Module):
    """Maps (B, C, *S) and a memory (B, 2, C, *S), the output and the cell, in; the next memory out [Shi 2015]."""

    parts = 2

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.gates = convolution(2 * channels, 4 * channels, 3, padding=1)

    def forward(self, code: Tensor, memory: Tensor) -> Tensor:
        """One step."""
        hidden, cell = memory.unbind(1)
        take, forget, give, candidate = self.gates(torch.cat([code, hidden], 1)).chunk(4, 1)
        # one more: a new cell keeps what it has
        cell = (forget + 1).sigmoid() * cell + take.sigmoid() * candidate.tanh()
        return torch.stack([give.sigmoid() * cell.tanh(), cell], 1)


CELLS = {"gru": ConvolutionalGRU, "lstm": ConvolutionalLSTM}
