"""Crops by area, against numbers worked by hand and against a plain mean."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.crops import coverage, crop_boxes


def test_a_cell_is_the_mean_of_what_it_covers():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    whole = crop_boxes(image, torch.zeros(1), torch.tensor([[0.0, 0, 4, 4]]), [2, 2])
    assert whole[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    part = crop_boxes(image, torch.zeros(1), torch.tensor([[0.5, 0, 2.5, 1]]), [1, 1])
    assert part.item() == pytest.approx((0.5 * 0 + 1 + 0.5 * 2) / 2)
    assert torch.equal(crop_boxes(image, torch.zeros(1), torch.tensor([[0.0, 0, 4, 4]]), [4, 4]), image)


def test_x_comes_first_in_boxes_and_last_in_pictures():
    image = torch.zeros(1, 1, 6, 10)
    image[0, 0, 1:3, 5:9] = 7
    assert (crop_boxes(image, torch.zeros(1), torch.tensor([[5.0, 1, 9, 3]]), [2, 4]) == 7).all()
    volume = torch.zeros(1, 1, 6, 10, 8)
    volume[0, 0, 1:3, 5:9, 2:4] = 7
    assert (crop_boxes(volume, torch.zeros(1), torch.tensor([[1.0, 5, 2, 3, 9, 4]]), [2, 4, 2]) == 7).all()


@pytest.mark.parametrize("shape", [(9, 11), (7, 9, 8)])
def test_against_a_plain_mean(shape):
    generator = torch.Generator().manual_seed(0)
    dims = len(shape)
    images = torch.rand(3, 2, *shape, generator=generator)
    low = torch.randint(0, 3, (4, dims), generator=generator).float()
    box = torch.cat([low, low + 4], 1)
    index = torch.tensor([2, 0, 1, 2])
    crops = crop_boxes(images, index, box, [2] * dims)
    for row in range(4):
        first = low[row].long().tolist()
        first = first if dims == 3 else first[::-1]
        part = images[index[row]][(slice(None), *(slice(n, n + 4) for n in first))]
        pooled = part.unflatten(1, (2, 2)).unflatten(3, (2, 2))
        pooled = pooled.unflatten(5, (2, 2)).mean((2, 4, 6)) if dims == 3 else pooled.mean((2, 4))
        torch.testing.assert_close(crops[row], pooled)


def test_outside_is_what_was_said():
    image = torch.full((1, 1, 4, 4), 10.0)
    box = torch.tensor([[-4.0, 0, 4, 4]])
    assert crop_boxes(image, torch.zeros(1), box, [1, 4])[0, 0, 0].tolist() == [0, 0, 10, 10]
    assert crop_boxes(image, torch.zeros(1), box, [1, 4], outside=3.0)[0, 0, 0].tolist() == [3, 3, 10, 10]
    half = crop_boxes(image, torch.zeros(1), torch.tensor([[-1.0, 0, 1, 4]]), [1, 1], outside=2.0)
    assert half.item() == pytest.approx(6.0)


def test_weights_of_narrow_cells_interpolate():
    weights = coverage(torch.tensor([1.25]), torch.tensor([1.75]), 1, 4)
    assert weights[0, 0].tolist() == [0, 1.0, 0, 0]
    weights = coverage(torch.tensor([1.75]), torch.tensor([2.25]), 1, 4)
    assert weights[0, 0].tolist() == [0, 0.5, 0.5, 0]
