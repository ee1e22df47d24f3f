"""Similarity transforms by hand-computed numbers, and volumes resampled through them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medrl.data.phantoms import random_affine
from medrl.geometry.similarity import random_rotations, rotation
from medrl.geometry.transforms import (
    from_parameters,
    invert,
    resample,
    rotation_vector,
    to_parameters,
    transform_points,
)


def draw(count, generator):
    """Parameters (count, 7) of turns up to half a turn, sizes of 0.6 to 1.6, and their centres."""
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1)
    angle = torch.rand(count, 1, generator=generator, dtype=torch.float64) * math.pi
    rest = torch.randn(count, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 60.0, 60.0, 60.0])
    return torch.cat([axis * angle, rest], 1), torch.randn(count, 3, generator=generator, dtype=torch.float64) * 200


def test_a_quarter_turn_about_a_centre():
    parameters = torch.tensor([[0.0, 0.0, math.pi / 2, math.log(2.0), 1.0, 2.0, 3.0]], dtype=torch.float64)
    matrix = from_parameters(parameters, torch.tensor([10.0, 20.0, 30.0]))
    points = torch.tensor([[10.0, 20.0, 30.0], [11.0, 20.0, 30.0], [10.0, 20.0, 31.0]], dtype=torch.float64)
    moved = transform_points(matrix, points)
    expected = torch.tensor([[[11.0, 22.0, 33.0], [11.0, 24.0, 33.0], [11.0, 22.0, 35.0]]], dtype=torch.float64)
    torch.testing.assert_close(moved, expected)


def test_rotation_is_the_exponential(torch_generator):
    vector = torch.randn(200, 3, generator=torch_generator, dtype=torch.float64) * 2
    x, y, z = vector.T
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    torch.testing.assert_close(rotation(vector), torch.linalg.matrix_exp(skew), rtol=0, atol=1e-13)


def test_parameters_come_back(torch_generator):
    parameters, centre = draw(500, torch_generator)
    torch.testing.assert_close(
        to_parameters(from_parameters(parameters, centre), centre), parameters, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("exponent", [0, 3, 6, 9, 12, 20])
def test_logarithm_near_no_turn_and_near_half_a_turn(exponent, torch_generator):
    axis = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch_generator, dtype=torch.float64), dim=1)
    small = axis * 10.0**-exponent
    torch.testing.assert_close(rotation_vector(rotation(small)), small, rtol=1e-9, atol=1e-15)
    large = axis * (math.pi - 10.0**-exponent)
    found = rotation_vector(rotation(large))
    found = torch.where((found * large).sum(1, keepdim=True) < 0, -found, found)  # at half a turn both are right
    torch.testing.assert_close(found, large, rtol=0, atol=1e-9)


def test_logarithm_of_any_rotation(torch_generator):
    turns = random_rotations(300, torch_generator)
    vector = rotation_vector(turns)
    assert vector.norm(dim=1).max() <= math.pi + 1e-12
    torch.testing.assert_close(rotation(vector), turns, rtol=0, atol=1e-12)


def test_parameters_have_gradients_at_the_identity():
    parameters = torch.zeros(2, 7, requires_grad=True)
    point = torch.tensor([[0.0, 1.0, 0.0]])
    transform_points(from_parameters(parameters, torch.zeros(3)), point).sum((0, 1)).dot(
        torch.tensor([1.0, 10.0, 100.0])
    ).backward()
    # d(R x)/d(vector) = vector x (0, 1, 0): -1 in x for a turn about z, 1 in z for one about x; scale: the point
    torch.testing.assert_close(parameters.grad, torch.tensor([100.0, 0.0, -1.0, 10.0, 1.0, 10.0, 100.0]).expand(2, 7))


def test_inverse_and_composition(torch_generator):
    parameters, centre = draw(100, torch_generator)
    matrix = from_parameters(parameters, centre)
    points = torch.randn(100, 7, 3, generator=torch_generator, dtype=torch.float64) * 100
    torch.testing.assert_close(transform_points(invert(matrix), transform_points(matrix, points)), points)
    sheared = torch.eye(4, dtype=torch.float64)
    sheared[0, 1], sheared[1, 1], sheared[:3, 3] = 0.7, -3.0, torch.tensor([5.0, -6.0, 7.0])
    torch.testing.assert_close(invert(sheared), torch.linalg.inv(sheared))
    both = matrix[:50] @ matrix[50:]
    torch.testing.assert_close(
        transform_points(both, points[:50]), transform_points(matrix[:50], transform_points(matrix[50:], points[:50]))
    )


def field(points):
    """A function of the place that trilinear interpolation keeps."""
    return 50 + points @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def grid_points(shape, ras_from_voxel):
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    return transform_points(ras_from_voxel, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))


@pytest.mark.parametrize("flip", [False, True], ids=["stored", "flipped"])
def test_resampling_reads_the_moving_place(flip, generator, torch_generator):
    shape, target = (30, 28, 26), (9, 11, 8)
    ras_from_voxel = torch.as_tensor(random_affine(generator, (2.0, 2.5, 3.0)))
    volume = field(grid_points(shape, ras_from_voxel)).reshape(shape)
    if flip:  # the same volume, stored from the other end
        other = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
        other[0, 3] = shape[0] - 1
        volume, ras_from_voxel = volume.flip(0), ras_from_voxel @ other
    grid = torch.as_tensor(random_affine(generator, (1.5, 1.0, 2.0)))
    middle = transform_points(ras_from_voxel, torch.tensor([[14.5, 13.5, 12.5]], dtype=torch.float64))[0]
    grid[:3, 3] = middle - grid[:3, :3] @ torch.tensor([4.0, 5.0, 3.5], dtype=torch.float64)
    parameters = torch.tensor([[0.3, -0.2, 0.25, 0.1, 2.0, -1.0, 3.0]], dtype=torch.float64)
    matrix = from_parameters(parameters, middle)[0]
    found = resample(volume, ras_from_voxel, matrix, target, grid)
    expected = field(transform_points(matrix, grid_points(target, grid))).reshape(target)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)


def test_outside_of_the_field_of_view():
    volume = torch.arange(8.0).reshape(2, 2, 2)
    eye = torch.eye(4, dtype=torch.float64)
    shift = eye.clone()
    shift[0, 3] = 1.0
    assert resample(volume, eye, shift, (2, 2, 2), eye, outside=-5.0)[:, 0, 0].tolist() == [4.0, -5.0]
    assert bool(resample(volume, eye, shift, (2, 2, 2), eye)[1].isnan().all())
    assert np.isfinite(resample(volume, eye, eye, (2, 2, 2), eye).numpy()).all()
