"""Overlap of masks, by hand."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.overlap import dice, iou


def test_masks_by_hand():
    first, second = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    first[0, :2], second[0, 1:3] = 1, 1  # 8 and 8 voxels, 4 in common
    second[1, 0] = 1
    assert iou(first, second).tolist() == pytest.approx([1 / 3, 0, 1])  # two empty masks agree
    assert dice(first, second).tolist() == pytest.approx([0.5, 0, 1])
