"""Overlap of masks."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (B,) of bool masks (B, ...); two empty masks agree fully."""
    first, second = first.flatten(1).bool(), second.flatten(1).bool()
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union.clamp(min=1), 1.0)


def expected_iou(belief: Tensor, mask: Tensor) -> Tensor:
    """The intersection over union (B,) that bool masks (B, ...) may hope for if ``belief`` (B, ...) is right."""
    belief, mask = belief.flatten(1), mask.flatten(1)
    both = (belief * mask).sum(1)
    return both / (mask.sum(1) + belief.sum(1) - both).clamp(min=1e-6)


def dice(first: Tensor, second: Tensor) -> Tensor:
    """Dice coefficient (B,) of bool masks (B, ...); two empty masks agree fully."""
    overlap = iou(first, second)
    return 2 * overlap / (1 + overlap)
