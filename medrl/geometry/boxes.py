"""Axis-aligned boxes (..., 2 D) in two or three dimensions: the low corner, then the high one.

Axes are x, y(, z); pixel or voxel i covers [i, i + 1), so that a box from 0 to the size is the whole image.
"""

from __future__ import annotations

from functools import cache

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
    return torch.cat([torch.minimum(low, size).clamp(min=0), torch.minimum(high, size).clamp(min=0)], -1)


def moved(box: Tensor, change: Tensor) -> Tensor:
    """Boxes (..., 2 D) whose corners are moved by ``change`` (..., 2 D), in units of the present box's sides."""
    _, size = middle_and_size(box)
    return box + change * torch.cat([size, size], -1)


def grown(box: Tensor, margin: Tensor | float) -> Tensor:
    """Boxes with a margin on every side, in the unit of the boxes."""
    low, high = corners(box)
    return torch.cat([low - margin, high + margin], -1)


def grown_by_share(box: Tensor, share: float) -> Tensor:
    """Boxes with a margin of a share of their sides on every side."""
    low, high = corners(box)
    margin = share * (high - low)
    return torch.cat([low - margin, high + margin], -1)


def keep_valid(box: Tensor, size: Tensor, least: float) -> Tensor:
    """Boxes clipped to images of ``size`` (..., D), with sides of at least ``least`` (or the image's), never inverted.

    A box that is too thin grows about its centre, and is pushed back inside where it sticks out.
    """
    low, high = corners(clip(box, size))
    side = torch.maximum(high - low, size.clamp(max=least))
    low = torch.minimum(((low + high) / 2 - side / 2).clamp(min=0), size - side)
    return torch.cat([low, low + side], -1)


def suppress(box: Tensor, score: Tensor, *, overlap: float = 0.5, limit: int = 100) -> Tensor:
    """Indices, best first, of boxes (N, 2 D) that no better one overlaps by more than ``overlap``."""
    order = score.argsort(descending=True)
    apart = iou_matrix(box[order], box[order]) <= overlap
    kept: list[int] = []
    for place in range(len(order)):
        if len(kept) < limit and bool(apart[place, kept].all()):
            kept.append(place)
    return order[kept]


def crosses(place: Tensor, box: Tensor, *, share: float = 1 / 3) -> Tensor:
    """Where on grids the crosses of boxes (B, K, 2 D) lie, (B, N, N[, N]) with x first; an empty box has none.

    ``place`` (B, D, N) are the grids' coordinates along each axis.  A cross is the union of one bar an axis through the
    middle: a bar runs the whole length of its axis and all bars are equally broad in units of the box's sides, so that
    the cross covers ``share`` of the box [Caicedo and Lazebnik 2015].
    """
    middle, size = middle_and_size(box)  # (B, K, D)
    dims, cells = place.shape[1:]
    away = (place[:, None] - middle[..., None]).abs()  # (B, K, D, N)
    long = (away <= size[..., None] / 2) & (size > 0).all(-1)[..., None, None]
    narrow = (away <= bar_breadth(dims, share) / 2 * size[..., None]) & long
    hidden = torch.zeros(1, dtype=torch.bool, device=place.device)
    for bar in range(dims):
        part = torch.ones(1, dtype=torch.bool, device=place.device)
        for axis in range(dims):
            shape = [*box.shape[:2], *(cells if n == axis else 1 for n in range(dims))]
            part = part & (long if axis == bar else narrow)[:, :, axis].reshape(shape)
        hidden = hidden | part
    return hidden.any(1)


@cache
def bar_breadth(dims: int, share: float) -> float:
    """Breadth of the bars of `crosses` in units of the box's sides that cover ``share`` of it, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        # along each axis a bar, all of which share the cube in the middle
        covered = dims * middle ** (dims - 1) - (dims - 1) * middle**dims
        low, high = (middle, high) if covered < share else (low, middle)
    return high
