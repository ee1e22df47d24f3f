"""Random fields: smooth as they say, and pairs whose truth is exact."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.data.pair_cases import COARSE_MM, FINE_MM
from medrl.data.pair_fields import Field, draw_pair, draw_truth, places
from medrl.geometry.feature_tables import FeatureTable
from medrl.geometry.poses import from_matrices, transform


def test_a_field_forgets_over_its_length(torch_generator):
    """Correlations fall as exp(-distance^2 / (2 length^2)), and values have a variance of 1."""
    field = Field(4000, torch_generator, length_mm=10.0)
    place = torch.tensor([[3.0, -4.0, 5.0]]) + torch.tensor([[0.0, 0, 0], [5, 0, 0], [0, 10, 0], [0, 0, 40]])
    product = (field(place[:1]) * field(place)).mean(-1)
    wanted = [math.exp(-(d**2) / 200) for d in (0, 5, 10, 40)]
    assert product.tolist() == pytest.approx(wanted, abs=0.06)


def test_places_of_grids():
    assert places((3, 2), 2.0).tolist() == [[[-2, -1, 0], [-2, 1, 0]], [[0, -1, 0], [0, 1, 0]], [[2, -1, 0], [2, 1, 0]]]
    assert places((2, 3, 4), 4.0).reshape(-1, 3).mean(0).tolist() == [0, 0, 0]


def test_truths_stay_in_their_range(torch_generator):
    for planar in (False, True):
        drawn = [draw_truth(torch_generator, degrees=30.0, shift_mm=5.0, scale=1.2, planar=planar) for _ in range(200)]
        angle = torch.cat([2 * t.quaternion[:, 0].clamp(max=1).acos() * 180 / math.pi for t in drawn])
        assert 25 < float(angle.max()) <= 30.01
        assert 4.5 < float(torch.cat([t.translation_mm for t in drawn]).abs().max()) <= 5
        assert 0.15 < float(torch.cat([t.log_scale for t in drawn]).abs().max()) <= math.log(1.2) + 1e-6
        out_of_plane = torch.cat([torch.cat([t.quaternion[:, 1:3], t.translation_mm[:, 2:]], 1) for t in drawn])
        assert bool(out_of_plane.any()) != planar


def test_both_images_of_a_pair_have_the_same_feature_at_a_place(torch_generator):
    pair = draw_pair(torch_generator, counts=(50, 200), degrees=120.0)
    truth = from_matrices(pair.moving_from_fixed[None])
    there = transform(truth, pair.coarse.place_mm)
    value, inside = FeatureTable([pair.moving_coarse], COARSE_MM).sample(torch.zeros(1), there)
    product = (value[0] * pair.coarse.feature).sum(-1)[inside[0]]
    assert inside.float().mean() > 0.9
    assert float(product.median()) > 0.9
    # the grey values of one are a function of those of the other
    there = transform(truth, pair.fine_mm)
    value, inside = FeatureTable([pair.moving_grey[None]], FINE_MM).sample(torch.zeros(1), there)
    assert inside.float().mean() > 0.9
    wanted = (1.7 * (pair.grey - 0.35).abs()).clamp(0, 1)
    assert float((value[0, :, 0] - wanted)[inside[0]].abs().median()) < 0.02
    assert pair.lattice_mm.shape == (16, 3)
    assert 0 <= float(pair.moving_grey.min()) < float(pair.moving_grey.max()) <= 1
