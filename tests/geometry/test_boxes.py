"""Boxes, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.boxes import (
    bar_breadth,
    clip,
    crosses,
    from_middle_and_size,
    grown,
    grown_by_share,
    iou,
    iou_matrix,
    keep_valid,
    middle_and_size,
    moved,
    suppress,
    volume,
)


def box(*numbers):
    return torch.tensor([numbers], dtype=torch.float32)


def test_overlap_by_hand():
    assert float(iou(box(0, 0, 10, 10), box(5, 0, 15, 10))) == pytest.approx(50 / 150)
    assert float(iou(box(0, 0, 10, 10), box(20, 20, 30, 30))) == 0  # two negative overlaps are no positive area
    assert float(iou(box(0, 0, 0, 0), box(0, 0, 0, 0))) == 0
    assert float(iou(box(0, 0, 0, 2, 2, 2), box(1, 1, 1, 3, 3, 3))) == pytest.approx(1 / 15)
    many = iou_matrix(torch.cat([box(0, 0, 10, 10), box(0, 0, 5, 10)]), box(0, 0, 10, 10))
    assert many[:, 0].tolist() == [1.0, 0.5]
    assert volume(box(3, 3, 1, 9)).item() == 0


def test_middle_and_size_round_trip():
    first = box(1, 2, 5, 10)
    middle, size = middle_and_size(first)
    assert middle.tolist() == [[3, 6]]
    assert size.tolist() == [[4, 8]]
    assert torch.equal(from_middle_and_size(middle, size), first)
    assert grown(first, 2).tolist() == [[-1, 0, 7, 12]]
    assert grown_by_share(first, 0.5).tolist() == [[-1, -2, 7, 14]]
    assert moved(first, box(0.5, 0, 0.5, 0.25)).tolist() == [[3, 2, 7, 12]]
    assert clip(box(-3, 2, 5, 30), torch.tensor([[4.0, 20.0]])).tolist() == [[0, 2, 4, 20]]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 3, 8, 9), (2, 3, 8, 9)), ((-5, -5, 25, 15), (0, 0, 20, 10)), ((5, 5, 5, 5), (4, 4, 6, 6)),
        ((8, 2, 6, 4), (6, 2, 8, 4)), ((19.5, 9.5, 30, 30), (18, 8, 20, 10)), ((40, 40, 50, 50), (18, 8, 20, 10)),
        ((-9, 3, -4, 5), (0, 3, 2, 5)),
    ],
)  # fmt: skip
def test_valid_boxes(before, after):
    kept = keep_valid(box(*before), torch.tensor([[20.0, 10.0]]), 2.0)
    assert kept.tolist() == [list(map(float, after))]
    assert keep_valid(kept, torch.tensor([[20.0, 10.0]]), 2.0).tolist() == kept.tolist()


def test_an_image_smaller_than_the_least_side():
    assert keep_valid(box(0, 0, 1, 1), torch.tensor([[3.0, 50.0]]), 5.0).tolist() == [[0, 0, 3, 5]]


def test_suppression_keeps_the_better_of_two():
    boxes = torch.cat([box(0, 0, 10, 10), box(1, 0, 11, 10), box(20, 0, 30, 10), box(21, 1, 31, 11)])
    assert suppress(boxes, torch.tensor([0.1, 0.9, 0.5, 0.4])).tolist() == [1, 2]
    assert suppress(boxes, torch.tensor([0.1, 0.9, 0.5, 0.4]), limit=1).tolist() == [1]
    assert suppress(boxes[:0], torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("dims", [2, 3])
def test_crosses_cover_a_third(dims):
    cells = 300 if dims == 2 else 90
    place = ((torch.arange(cells) + 0.5) / cells * 40).expand(1, dims, cells)
    whole = torch.tensor([[[10.0] * dims + [30.0] * dims, [0.0] * 2 * dims]])
    hidden = crosses(place, whole)
    assert hidden.shape == (1, *[cells] * dims)
    inside = (20 / 40) ** dims
    assert float(hidden.float().mean()) / inside == pytest.approx(1 / 3, abs=0.035)
    middle = cells // 2
    if dims == 2:
        assert hidden[0, middle].float().mean() == pytest.approx(0.5, abs=0.01)  # a bar of the whole box's length
        assert not hidden[0, cells // 4 + 2, cells // 4 + 2]
    assert not crosses(place, torch.zeros(1, 2, 2 * dims)).any()


def test_bars():
    assert bar_breadth(2, 1.0) == pytest.approx(1.0)
    assert bar_breadth(2, 1 / 3) == pytest.approx(1 - (2 / 3) ** 0.5, abs=1e-6)
