"""Quaternions: the rotations of SciPy, whichever way round."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from medrl.geometry.quaternions import from_matrix, from_vector, multiply, spread_turns, to_matrix


@pytest.fixture
def vectors(torch_generator):
    axis = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch_generator, dtype=torch.float64), dim=1)
    angle = torch.linspace(0, math.pi - 1e-4, 200, dtype=torch.float64)[:, None]
    return axis * angle


def test_matrices_are_those_of_scipy(vectors):
    wanted = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    torch.testing.assert_close(to_matrix(from_vector(vectors)), wanted, atol=1e-9, rtol=0)


def test_a_quarter_turn_by_hand():
    quaternion = from_vector(torch.tensor([[0.0, 0.0, math.pi / 2]]))
    torch.testing.assert_close(quaternion, torch.tensor([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]]))
    torch.testing.assert_close(to_matrix(quaternion)[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(vectors, dtype):
    quaternion = from_vector(vectors).to(dtype)
    back = from_matrix(to_matrix(quaternion))
    assert (back[:, 0] >= 0).all()
    torch.testing.assert_close(back, quaternion, atol=1e-5 if dtype == torch.float32 else 1e-10, rtol=0)


def test_half_turns_keep_their_rotation():
    quaternion = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0]])
    torch.testing.assert_close(to_matrix(from_matrix(to_matrix(quaternion))), to_matrix(quaternion))


def test_composition_is_that_of_the_matrices(vectors):
    first, second = from_vector(vectors), from_vector(vectors.flip(0))
    torch.testing.assert_close(to_matrix(multiply(first, second)), to_matrix(first) @ to_matrix(second))


def test_ten_thousand_turns_do_not_drift():
    turn = from_vector(torch.tensor([[0.1, -0.2, 0.3]]))
    quaternion = turn
    for _ in range(10_000):
        quaternion = multiply(turn, quaternion)
    matrix = to_matrix(quaternion)[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-5, rtol=0)


def test_the_gradient_at_nothing_is_half():
    vector = torch.zeros(1, 3, requires_grad=True)
    from_vector(vector)[0, 1:].sum().backward()
    assert vector.grad.tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("degrees", [45.0, 110.0, 180.0])
def test_turns_fill_the_ball_evenly(degrees, turned, torch_generator):
    first = torch.nn.functional.normalize(torch.randn(4, generator=torch_generator), dim=0) if turned else None
    turns = spread_turns(150, degrees, first)
    assert turns.shape == (150, 4)
    assert turns[0].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(turns.norm(dim=1), torch.ones(150, dtype=torch.float64))
    angles = 2 * turns[:, 0].abs().clamp(max=1).acos().rad2deg()
    assert float(angles.max()) <= degrees + 1e-9
    apart = 2 * (turns @ turns.T).abs().clamp(max=1).acos().rad2deg() + 360 * torch.eye(150)
    share = (math.radians(degrees) - math.sin(math.radians(degrees))) / math.pi
    assert float(apart.amin(1).median()) > 0.5 * 40 * share ** (1 / 3)  # 150 even ones of all lie 40 degrees apart


def test_a_turned_pattern_has_other_turns():
    first = torch.tensor([0.5, 0.5, 0.5, 0.5])
    shared = (spread_turns(50, 120.0)[1:] @ spread_turns(50, 120.0, first)[1:].T).abs() > 0.9999
    assert shared.sum() < 5
