"""Resampling along the axes of a volume, one after the other: linear, and low-passed where nodes lie far apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SLAB = 16_000_000  # voxels that are converted to float at once


class Line(NamedTuple):
    """Nodes at ``origin + step * k``, k < ``count``, in indices of the axis that is read; ``step`` may be negative."""

    count: int
    origin: float
    step: float

    def inverse(self, size: int) -> Line:
        """The line of the ``size`` indices that are read, seen from the nodes."""
        return Line(size, -self.origin / self.step, 1 / self.step)


def line_weights(line: Line, size: int) -> tuple[Tensor, Tensor]:
    """Weights (count, size) float32 of the values of an axis at the nodes of a line, and which nodes (count,) it holds.

    Values are boxes: an axis reaches half a step beyond its outermost indices, with the outermost value.  Linear
    interpolation, averaged over sqrt(step^2 - 1) indices where nodes lie further apart than one index, so that linear
    functions are kept and what is too fine for the nodes is not.  Rows outside are 0.
    """
    place = line.origin + line.step * torch.arange(line.count, dtype=torch.float64)
    inside = (place >= -0.5 - 1e-6) & (place <= size - 0.5 + 1e-6)
    width = max(0.0, line.step**2 - 1) ** 0.5
    pad = int(width / 2) + 2  # indices beyond the ends, which have the outermost value
    distance = torch.arange(-pad, size + pad, dtype=torch.float64) - place.clamp(-0.5, size - 0.5)[:, None]
    if width < 1e-3:
        padded = (1 - distance.abs()).clamp(min=0)
    else:
        padded = (_hat_integral(distance + width / 2) - _hat_integral(distance - width / 2)) / width
    weights = padded[:, pad:-pad].clone()
    weights[:, 0] += padded[:, :pad].sum(1)
    weights[:, -1] += padded[:, -pad:].sum(1)
    weights = torch.where((weights < 1e-9) | ~inside[:, None], 0.0, weights)  # rounding of nodes that fall on an index
    return weights.float(), inside


def _hat_integral(place: Tensor) -> Tensor:
    """Integral of the interpolation's hat function, 1 - |x| on [-1, 1], up to a place."""
    place = place.clamp(-1, 1)
    return torch.where(place < 0, (place + 1) ** 2, 2 - (1 - place) ** 2) / 2


def resample_lines(volume: Tensor, lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """Read a volume (X, Y, Z) of any number type on three lines: float32 values and bool ``inside``, (counts).

    Only the part that has a weight is read, and only a slab of it is converted at once.
    """
    weights, inside = zip(*(line_weights(line, n) for line, n in zip(lines, volume.shape, strict=True)), strict=True)
    counts = tuple(line.count for line in lines)
    within = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    used = [weight.any(0).nonzero()[:, 0] for weight in weights]
    if min(map(len, used)) == 0:
        return torch.zeros(counts, device=volume.device), within.to(volume.device)
    ranges = [(int(places[0]), int(places[-1]) + 1) for places in used]
    first, second, third = (
        weight[:, low:high].to(volume.device) for weight, (low, high) in zip(weights, ranges, strict=True)
    )
    part = volume[tuple(slice(low, high) for low, high in ranges)]
    depth = max(1, SLAB // (part.shape[1] * part.shape[2]))
    slabs = [_apply(second, _apply(third, slab.float(), 2), 1) for slab in part.split(depth)]
    return _apply(first, torch.cat(slabs), 0), within.to(volume.device)


def _apply(weight: Tensor, volume: Tensor, axis: int) -> Tensor:
    """Multiply along an axis, unless the axis is read as it is."""
    if weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight), device=weight.device)):
        return volume
    return torch.tensordot(volume, weight, dims=([axis], [1])).movedim(-1, axis)
