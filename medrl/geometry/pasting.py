"""Masks and boxes: what was seen in a box put back into its image, the boxes of masks, and how well outlines agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from medrl.geometry.boxes import corners


def paste_boxes(values: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    """Put contents (B, h, w) of boxes (B, 4) into images (B, H, W) of ``size``; 0 where a pixel's centre is outside.

    The values lie at the centres of h x w equal cells of the box; between them they are interpolated linearly.
    """
    low, high = corners(box)
    rows = _weights(low[:, 1], high[:, 1], values.shape[1], size[0])
    columns = _weights(low[:, 0], high[:, 0], values.shape[2], size[1])
    return rows @ values @ columns.mT


def mark_box(box: Tensor, context: Tensor, size: int) -> Tensor:
    """(B, 1, n, n): the share of each cell of context boxes (B, 4) that lies in object boxes (B, 4)."""
    (low, high), (start, end) = corners(box), corners(context)
    step = (end - start) / size  # (B, 2)
    at = torch.arange(size, device=box.device)
    first = start[:, :, None] + at * step[:, :, None]
    overlap = torch.minimum(first + step[:, :, None], high[:, :, None]) - torch.maximum(first, low[:, :, None])
    share = (overlap / step[:, :, None]).clamp(0, 1)  # (B, 2, n)
    return (share[:, 1, :, None] * share[:, 0, None, :])[:, None]


def boxes_of_masks(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tight boxes (B, 4) float32 round masks (B, H, W) bool, and whether there is one (B,); 0 of an empty mask."""
    ends = []
    for axis in (1, 2):  # columns x, then rows y
        line = mask.any(axis)
        at = torch.arange(line.shape[1], device=mask.device)
        ends.append((torch.where(line, at, line.shape[1]).amin(1), torch.where(line, at + 1, 0).amax(1)))
    box = torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], 1).float()
    there = mask.flatten(1).any(1)
    return torch.where(there[:, None], box, 0.0), there


def outline_agreement(mask: Tensor, truth: Tensor, *, tolerance: int) -> Tensor:
    """F measure (B,) of the outlines of masks (B, H, W) bool; pixels within ``tolerance`` (a square) of one agree.

    Two empty masks agree fully.  Source: Perazzi et al. 2016, with a square in the place of their disc.
    """
    edges = [_outline(m) for m in (mask, truth)]
    near = [_grown(edge, tolerance) for edge in edges]
    total = [edge.flatten(1).sum(1) for edge in edges]
    found = [(edges[n] & near[1 - n]).flatten(1).sum(1) / total[n].clamp(min=1) for n in range(2)]
    both = 2 * found[0] * found[1] / (found[0] + found[1]).clamp(min=1e-9)
    return torch.where((total[0] == 0) & (total[1] == 0), 1.0, both)


def _weights(low: Tensor, high: Tensor, cells: int, length: int) -> Tensor:
    """(B, length, cells): how much of each cell a pixel takes."""
    pixel = torch.arange(length, device=low.device) + 0.5
    share = (pixel - low[:, None]) / (high - low).clamp(min=1e-6)[:, None]  # (B, length) of the way through the box
    place = (share * cells - 0.5).clamp(0, cells - 1)
    weight = (1 - (place[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return weight * ((share >= 0) & (share < 1))[..., None]


def _outline(mask: Tensor) -> Tensor:
    """Pixels of masks with a neighbour outside; the border of the image is no outline."""
    inner = ~_grown(~mask, 1)
    return mask & ~inner


def _grown(mask: Tensor, by: int) -> Tensor:
    return max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0
