"""Masks put back under boxes, boxes of masks, agreement of outlines."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.crops import crop_boxes
from medrl.geometry.pasting import boxes_of_masks, mark_box, outline_agreement, paste_boxes


def test_pasting_fills_the_box_and_nothing_else():
    box = torch.tensor([[2.0, 1.0, 6.0, 5.0], [-2.0, 3.0, 2.0, 8.0]])
    pasted = paste_boxes(torch.ones(2, 8, 8), box, (6, 9))
    inside = torch.zeros(2, 6, 9)
    inside[0, 1:5, 2:6] = 1
    inside[1, 3:, :2] = 1
    assert torch.equal(pasted, inside)


def test_pasting_undoes_a_crop_of_whole_cells(torch_generator):
    image = torch.rand(1, 1, 12, 10, generator=torch_generator)
    box = torch.tensor([[3.0, 2.0, 9.0, 8.0]])
    pasted = paste_boxes(crop_boxes(image, torch.tensor([0]), box, (6, 6))[:, 0], box, (12, 10))
    assert torch.allclose(pasted[0, 2:8, 3:9], image[0, 0, 2:8, 3:9], atol=1e-5)
    assert float(pasted.abs().sum()) == pytest.approx(float(image[0, 0, 2:8, 3:9].sum()), abs=1e-3)


def test_pasting_interpolates():
    ramp = torch.tensor([[[0.0, 1.0]]])  # two cells side by side, centres at 2 and 6
    row = paste_boxes(ramp, torch.tensor([[0.0, 0.0, 8.0, 1.0]]), (1, 8))[0, 0]
    assert row.tolist() == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_boxes_of_masks():
    mask = torch.zeros(3, 6, 8, dtype=torch.bool)
    mask[0, 2:4, 1:7] = True
    mask[2, 5, 7] = True
    box, there = boxes_of_masks(mask)
    assert box.tolist() == [[1, 2, 7, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
    assert there.tolist() == [True, False, True]


def test_marks_are_shares_of_cells():
    marked = mark_box(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 2)
    assert marked[0, 0].tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_outlines_agree_within_the_tolerance():
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[0, 5:12, 5:12] = True
    masks[1, 5:12, 6:13] = True  # one to the right
    masks[2, 5:12, 13:20] = True  # far away
    truth = masks[:1].expand(4, 20, 20)
    value = outline_agreement(masks, truth, tolerance=1)
    assert value[:3].tolist() == [1.0, 1.0, 0.0]
    assert value[3] == 0
    assert outline_agreement(masks[1:2], truth[:1], tolerance=0)[0] < 0.7
    assert outline_agreement(masks[3:], masks[3:], tolerance=1)[0] == 1
