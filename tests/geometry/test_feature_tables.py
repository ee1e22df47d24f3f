"""Feature tables: trilinear values, borders, many volumes at once, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import embedding_bag, grid_sample

from medrl.geometry.feature_tables import FeatureTable, _Interpolate

SHAPES = [(4, 5, 6), (7, 3, 4), (2, 2, 9)]


@pytest.fixture
def volumes(torch_generator):
    return [torch.randn(3, *shape, generator=torch_generator) for shape in SHAPES]


def test_values_by_hand():
    volume = torch.zeros(1, 3, 3, 3)
    volume[0, 1, 1, 1], volume[0, 2, 1, 1] = 8.0, 4.0
    table = FeatureTable([volume], 2.0)  # voxel (1, 1, 1) lies at 0
    points = [[0.0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1], [3, 0, 0], [4, 0, 0], [50, 0, 0], [-50, 0, 0]]
    value, inside = table.sample(torch.zeros(1), torch.tensor([points]))
    # half a voxel beyond the last centre: half of its value; a whole voxel beyond: nothing
    assert value[0, :, 0].tolist() == [8, 4, 6, 4, 1.5, 2, 0, 0, 0]
    assert inside[0].tolist() == [True, True, True, True, True, False, False, False, False]


def test_values_are_those_of_grid_sample(volumes, torch_generator):
    table = FeatureTable(volumes, 4.0)
    case = torch.tensor([2, 0, 1, 0], dtype=torch.int16)
    points = 30 * torch.rand(4, 50, 3, generator=torch_generator) - 15
    value, inside = table.sample(case, points)
    assert value.shape == (4, 50, 3)
    for row, index in enumerate(case.tolist()):
        size = torch.tensor(SHAPES[index])
        unit = (2 * (points[row] / 4 + (size - 1) / 2) + 1) / size - 1
        wanted = grid_sample(volumes[index][None], unit.flip(-1)[None, :, None, None], align_corners=False)
        torch.testing.assert_close(value[row], wanted[0, :, :, 0, 0].T, atol=1e-5, rtol=1e-5)
        assert torch.equal(inside[row], (unit.abs() < 1).all(-1))
    assert inside.any()
    assert not inside.all()


def test_far_outside_is_nothing_and_stays_in_the_table(volumes):
    table = FeatureTable(volumes, 4.0)
    corners = torch.cartesian_prod(*[torch.tensor([-1e4, 1e4])] * 3)
    for case in range(3):
        value, inside = table.sample(torch.tensor([case]), corners[None])
        assert not value.any()
        assert not inside.any()


def test_leading_axes(volumes):
    table = FeatureTable(volumes, 4.0)
    points = torch.rand(2, 3, 5, 3) * 8 - 4
    value, inside = table.sample(torch.tensor([1, 2]), points)
    assert (value.shape, inside.shape) == ((2, 3, 5, 3), (2, 3, 5))
    alone, _ = table.sample(torch.tensor([2]), points[1:, 1])
    assert torch.equal(value[1, 1], alone[0])


def test_gradients_are_those_of_embedding_bag(torch_generator):
    def drawn(*shape):
        return torch.rand(*shape, generator=torch_generator, dtype=torch.float64)

    rows, weight, out = drawn(20, 4), drawn(6, 8), drawn(6, 4)
    index = torch.randint(20, (6, 8), generator=torch_generator)
    found = []
    for function in (_Interpolate.apply, lambda r, i, w: embedding_bag(i, r, per_sample_weights=w, mode="sum")):
        r, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        value = function(r, index, w)
        (value * out).sum().backward()
        found.append((value.detach(), r.grad, w.grad))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_the_gradient_of_a_place_is_the_slope(volumes):
    table = FeatureTable(volumes, 4.0)
    point = torch.tensor([[[1.0, -0.7, 2.1]]], requires_grad=True)
    table.sample(torch.tensor([0]), point)[0].sum().backward()
    for axis in range(3):
        step = torch.zeros(3)
        step[axis] = 0.05
        ends = [table.sample(torch.tensor([0]), point.detach() + sign * step)[0].sum() for sign in (1, -1)]
        assert float(point.grad[0, 0, axis]) == pytest.approx(float(ends[0] - ends[1]) / 0.1, abs=1e-3)
