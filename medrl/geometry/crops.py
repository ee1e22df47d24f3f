"""Crops of images under boxes, resized by area: each cell of a crop is the mean of what it covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.boxes import corners


def coverage(low: Tensor, high: Tensor, cells: int, length: int) -> Tensor:
    """Weights (B, cells, length): the share of each cell between low and high (B,) that each pixel fills.

    Rows sum to 1 inside an axis of ``length`` pixels, to less where a cell reaches out of it.  A cell narrower than a
    pixel is read between two pixel centres, as linear interpolation does.
    """
    step = ((high - low) / cells).clamp(min=1e-6)
    at = torch.arange(cells, device=low.device, dtype=low.dtype)
    middle = low[:, None] + (at + 0.5) * step[:, None]
    half = step.clamp(min=1.0)[:, None] / 2
    pixel = torch.arange(length, device=low.device, dtype=low.dtype)
    first = torch.maximum((middle - half)[..., None], pixel)
    last = torch.minimum((middle + half)[..., None], pixel + 1)
    return (last - first).clamp_(min=0) / (2 * half)[..., None]


def crop_boxes(images: Tensor, index: Tensor, box: Tensor, size: Sequence[int], *, outside: float = 0.0) -> Tensor:
    """Contents (B, C, *size) of boxes (B, 2 D) of the images ``index`` (B,) of (N, C, *S), as floats.

    Axes of boxes are x, y(, z); those of 2D images are (C, Y, X), as pictures are stored, those of volumes (C, X, Y,
    Z).  Outside an image there is ``outside``.  Costs a copy of each row's image: meant for small images.
    """
    low, high = corners(box)
    dims = low.shape[-1]
    axes = range(dims) if dims == 3 else reversed(range(dims))
    value = images[index.long()].to(box.dtype)
    inside = None
    for place, axis in reversed(list(enumerate(axes))):  # the last axis first: it lies together in memory
        weights = coverage(low[:, axis], high[:, axis], size[place], images.shape[2 + place])
        value = _resize(value, weights, 2 + place)
        if outside:
            shape = [len(box), 1, *[1] * dims]
            shape[2 + place] = size[place]
            known = weights.sum(-1).reshape(shape)
            inside = known if inside is None else inside * known
    return value if inside is None else value + outside * (1 - inside)


def _resize(value: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Values (B, C, ..., L, ...) to (B, C, ..., S, ...) by weights (B, S, L), without moving axes about."""
    if axis == value.ndim - 1:
        return value @ weights.mT.reshape(len(value), *[1] * (value.ndim - 3), *weights.mT.shape[1:])
    behind = value.shape[axis + 1 :]
    flat = weights.reshape(len(value), *[1] * (axis - 1), *weights.shape[1:]) @ value.flatten(axis + 1)
    return flat.unflatten(-1, behind)
