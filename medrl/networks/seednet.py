"""A fully convolutional network for seeding agents: values of every cell, the object, and how good the mask is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

MASK, POTENTIAL = 1, 2  # channels of the observation that the heads read again


class SeedHeads(NamedTuple):
    """What a network says of B observations."""

    q: Tensor  # (B, 1, 1, A) action values
    mask_logits: Tensor  # (B, V) of the object
    quality: Tensor  # (B,) logit of the present mask's IoU


class SeedNet(nn.Module):
    """A U-Net at half resolution over observations (B, 6, *S) uint8 of ``medrl.tasks.seeding``, in 2D or 3D.

    Its features, pooled onto the grid of cells, are joined by what the segmentation head believes there and what the
    random walker's potential is, and a convolutional head gives the advantage of both labels in every cell: a map, so
    any image size and any grid will do.  The value and the stop action come from globally pooled features (dueling).
    The quality head also sees the overlap of the believed object with the present mask.

    ``forward`` returns one tensor (B, A + V + 1); ``split`` names its parts.  While training, batches are mirrored at
    random along the first axis (left to right), and the answers back, and every image has its own gamma: the data
    vary at no cost.
    """

    def __init__(
        self, *, dims: int = 2, grid: Sequence[int] = (20, 20), channels: int = 6, width: int = 32, stop: bool = True
    ) -> None:
        super().__init__()
        if len(grid) != dims:
            raise ValueError(f"a grid of {len(grid)} axes does not fit images of {dims}")
        self.dims, self.grid, self.stop = dims, tuple(grid), stop
        self.cells = math.prod(self.grid)
        self.actions = 2 * self.cells + int(stop)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        pool = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d
        parts = 2**dims
        self.stem = _block(channels * parts, width, dims)
        self.down1 = _block(width, 2 * width, dims, stride=2)
        self.down2 = _block(2 * width, 4 * width, dims, stride=2)
        self.deep = _block(4 * width, 4 * width, dims)
        self.up1 = _block(6 * width, 2 * width, dims)
        self.up0 = _block(3 * width, width, dims)
        self.object = convolution(width, parts, 1)
        self.to_grid = pool(self.grid)
        self.value_head = nn.ModuleDict(
            {
                "near": _block(width + 2 * width + 6, 2 * width, dims),
                "wide": _block(2 * width, 2 * width, dims, dilation=2),
                "advantage": convolution(2 * width, 2, 1),
                "whole": nn.Sequential(nn.Linear(6 * width + 4, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2)),
            }
        )
        self.quality = nn.Sequential(nn.Linear(4 * width + 4, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.value_head["advantage"].weight)
        nn.init.constant_(self.object.bias, -2.0)

    def forward(self, image: Tensor) -> Tensor:
        """Observations (B, 6, *S) uint8 -> (B, A + V + 1)."""
        shape = image.shape[2:]
        image = image.float() / 255
        mirrored = [-self.dims] if self.training and torch.rand(()) < 0.5 else []
        if self.training:
            gamma = (0.3 * torch.randn(len(image), *[1] * (self.dims + 1), device=image.device)).exp()
            image = torch.cat([image[:, :1] ** gamma, image[:, 1:]], 1).flip(mirrored)
        x0 = self.stem(_fold(image))
        x1 = self.down1(x0)
        x2 = self.deep(self.down2(x1))
        y1 = self.up1(torch.cat([_resize(x2, x1.shape[2:]), x1], 1))
        y0 = self.up0(torch.cat([_resize(y1, x0.shape[2:]), x0], 1))
        logits = _unfold(self.object(y0).float(), shape)
        believed = logits.detach().sigmoid()[:, None]
        now = image[:, MASK : POTENTIAL + 1]
        seen = torch.cat([believed, now, (believed - now[:, :1]).relu(), (now[:, :1] - believed).relu(),
                          believed * (1 - believed)], 1)  # fmt: skip
        local = torch.cat([self.to_grid(y0), self.to_grid(y1), self.to_grid(seen)], 1)
        local = self.value_head["near"](local)
        local = local + self.value_head["wide"](local)
        advantage = self.value_head["advantage"](local).float().flip(mirrored).flatten(1)  # label, then cell
        pooled, overlap = _mean(x2), _overlap(believed[:, 0], now[:, 0], image[:, -1])
        value, stop = self.value_head["whole"](torch.cat([pooled, _mean(local), overlap], 1)).float().unbind(1)
        if self.stop:
            advantage = torch.cat([advantage, stop[:, None]], 1)
        q = value[:, None] + advantage - advantage.mean(1, keepdim=True)
        quality = self.quality(torch.cat([pooled, overlap], 1)).float()
        return torch.cat([q, logits.flip(mirrored).flatten(1), quality], 1)

    def split(self, output: Tensor) -> SeedHeads:
        """Name the parts of ``forward``'s answer."""
        q, logits, quality = output.split([self.actions, output.shape[1] - self.actions - 1, 1], 1)
        return SeedHeads(q[:, None, None], logits, quality[:, 0])

    def action_values(self, output: Tensor, scale: Tensor | None = None) -> Tensor:
        """Action values (B, 1, A)."""
        return output[:, None, : self.actions]


def _block(inputs: int, outputs: int, dims: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    layers: list[nn.Module] = []
    for n in range(2):
        layers += [
            convolution(inputs if n == 0 else outputs, outputs, 3, stride=stride if n == 0 else 1, padding=dilation,
                        dilation=dilation, bias=False),
            norm(outputs), nn.SiLU(inplace=True),
        ]  # fmt: skip
    return nn.Sequential(*layers)


def _fold(image: Tensor) -> Tensor:
    """Halve the resolution, (B, C, *S) -> (B, C * 2^d, *ceil(S / 2)), losing nothing."""
    rest = [n for size in reversed(image.shape[2:]) for n in (0, size % 2)]
    image = pad(image, rest)
    for axis in range(2, image.ndim):
        image = image.unflatten(axis, (-1, 2)).movedim(axis + 1, 2).flatten(1, 2)
    return image


def _unfold(parts: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo ``_fold`` for one channel: (B, 2^d, *ceil(S / 2)) -> (B, *S)."""
    for axis in range(parts.ndim - 1, 1, -1):
        parts = parts.unflatten(1, (-1, 2)).movedim(2, axis + 1).flatten(axis, axis + 1)
    parts = parts[:, 0]
    for axis, size in enumerate(shape):
        parts = parts.narrow(axis + 1, 0, size)
    return parts


def _resize(image: Tensor, shape: Sequence[int]) -> Tensor:
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return interpolate(image, tuple(shape), mode=mode, align_corners=False)


def _mean(image: Tensor) -> Tensor:
    return image.flatten(2).mean(-1)


def _overlap(believed: Tensor, mask: Tensor, left: Tensor) -> Tensor:
    """(B, 4): soft IoU of the believed object with the mask, both sizes, and the share of seeds left."""
    believed, mask = believed.flatten(1), mask.flatten(1)
    both, either = torch.minimum(believed, mask).sum(1), torch.maximum(believed, mask).sum(1)
    sizes = [x.mean(1).clamp(min=1e-4).log() / 5 for x in (believed, mask)]
    return torch.stack([both / either.clamp(min=1e-3), *sizes, left.flatten(1)[:, 0]], 1)
