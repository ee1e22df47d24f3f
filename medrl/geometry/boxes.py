"""Axis-aligned boxes (..., 2 D) in two or three dimensions: the low corner, then the high one.

Axes are x, y(, z); pixel or voxel i covers [i, i + 1), so that a box from 0 to the size is the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corners(box: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high corners (..., D)."""
    dims = box.shape[-1] // 2
    return box[..., :dims], box[..., dims:]


def volume(box: Tensor) -> Tensor:
    """Area or volume (...) of boxes; 0 of inverted ones."""
    low, high = corners(box)
    return (high - low).clamp(min=0).prod(-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (...) of boxes that broadcast; 0 where both are empty.

    Every overlap is clamped before the product: two boxes apart in two axes have no common area.
    """
    (low, high), (other_low, other_high) = corners(first), corners(second)
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    return shared / (volume(first) + volume(second) - shared).clamp(min=1e-9)


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of each of N boxes with each of M."""
    return iou(first[..., :, None, :], second[..., None, :, :])


def middle_and_size(box: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and side lengths (..., D)."""
    low, high = corners(box)
    return (low + high) / 2, high - low


def from_middle_and_size(middle: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 2 D) of centres and side lengths (..., D)."""
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def clip(box: Tensor, size: Tensor) -> Tensor:
    """Parts of boxes inside images of ``size`` (..., D); a box outside becomes an empty one at the border."""
    low, high = corners(box)
    zero = torch.zeros_like(size)
    return torch.cat([torch.maximum(torch.minimum(low, size), zero), torch.maximum(torch.minimum(high, size), zero)], -1)


def moved(box: Tensor, change: Tensor) -> Tensor:
    """Boxes (..., 2 D) whose corners are moved by ``change`` (..., 2 D), in units of the present box's sides."""
    _, size = middle_and_size(box)
    return box + change * torch.cat([size, size], -1)


def grown(box: Tensor, margin: Tensor | float) -> Tensor:
    """Boxes with a margin on every side, in the unit of the boxes."""
    low, high = corners(box)
    return torch.cat([low - margin, high + margin], -1)
