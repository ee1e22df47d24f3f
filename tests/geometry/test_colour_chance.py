"""Chances of colours by hand, and what is remembered of an image."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.colour_chance import BINS, colour_bins, colour_chance, remembered_chance


def test_the_chance_of_a_colour_by_hand():
    before = torch.zeros(1, 3, 2, 2)
    before[0, 0] = torch.tensor([[0.9, 0.9], [0.9, 0.1]])  # three red cells, one black
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    now = torch.zeros(1, 3, 2, 2)
    now[0, 0, 0, 0], now[0, 1, 1, 1] = 0.8, 0.9  # red; black twice; green, which was not there
    chance = colour_chance(now, before, mask, bins=2, prior=2.0)[0, 0]
    red, black, unknown = (2 + 1) / (3 + 2), (0 + 1) / (1 + 2), 0.5
    assert chance.tolist() == [[pytest.approx(red), pytest.approx(black)], [pytest.approx(black), unknown]]


def test_bins_by_hand():
    image = torch.tensor([0.0, 0.99, 1.0]).reshape(1, 3, 1)
    assert colour_bins(image, 4).tolist() == [[3 * 4 + 3]]
    assert colour_bins(image.flip(1), 4).tolist() == [[(3 * 4 + 3) * 4]]


def test_what_is_remembered_by_hand():
    red, next_red, far_red, blue = (torch.tensor(c).reshape(1, 3, 1) / BINS for c in (
        [12.5, 0.5, 0.5], [13.5, 0.5, 0.5], [15.5, 0.5, 0.5], [0.5, 0.5, 12.5],
    ))  # fmt: skip
    known = colour_bins(torch.cat([red] * 8 + [blue] * 8, 2), BINS)
    mask = torch.cat([torch.ones(1, 8), torch.zeros(1, 8)], 1)
    now = colour_bins(torch.cat([red, next_red, far_red, blue], 2), BINS)
    coarse, fine = remembered_chance(now, known, mask)[0].tolist()
    # eight cells of one bin, two of the mean 1/2 beside them; the neighbour of twice the width is the same bin
    assert coarse == pytest.approx([9 / 10, 9 / 10, 0.5, 1 / 10])
    # the blur keeps 1/2 of red and 3/4 of either other channel, at the edge: 2.25 of 8 cells; the neighbour gets half
    assert fine == pytest.approx([2.5 / 2.75, 1.375 / 1.625, 0.5, 0.25 / 2.75])
