"""Poses: matrices and back, nudges of the size they say, and the distance between two."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.geometry.poses import (
    Nudges,
    Pose,
    after_every,
    distance_mm,
    from_matrices,
    nudged,
    nudges,
    to_matrices,
    transform,
)
from medrl.geometry.quaternions import from_vector

IDENTITY = Pose(torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1), torch.zeros(1, 3))


@pytest.fixture
def pose(torch_generator):
    draw = torch.randn(5, 7, generator=torch_generator)
    return Pose(from_vector(draw[:, :3]), 0.2 * draw[:, 3], 30 * draw[:, 4:])


def test_points_are_mapped_as_the_matrix_does(pose):
    points = torch.tensor([[1.0, 2, 3], [-40, 5, 0]])
    matrix = to_matrices(pose)
    wanted = points @ matrix[:, :3, :3].mT + matrix[:, None, :3, 3]
    torch.testing.assert_close(transform(pose, points), wanted)
    assert matrix[:, 3].tolist() == [[0, 0, 0, 1]] * 5


def test_matrices_and_back(pose):
    back = from_matrices(to_matrices(pose))
    torch.testing.assert_close(to_matrices(back), to_matrices(pose), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(back.log_scale, pose.log_scale, atol=1e-5, rtol=0)


def test_a_nudge_acts_in_the_second_frame(pose):
    """A nudge is a turn and a scaling of the linear part, and a shift: turns leave the origin where it is."""
    change = Nudges(from_vector(torch.tensor([[0.2, 0.1, -0.3]])), torch.tensor([0.1]), torch.tensor([[3.0, -2, 1]]))
    after, turn = to_matrices(nudged(pose, change)), to_matrices(Pose(*change))[0]
    torch.testing.assert_close(after[:, :3, :3], turn[:3, :3] @ to_matrices(pose)[:, :3, :3])
    torch.testing.assert_close(after[:, :3, 3], pose.translation_mm + torch.tensor([3.0, -2, 1]))


def test_a_nudge_and_its_opposite_cancel(pose):
    every = nudges(shifts_mm=(8.0, 2.0), turns_degrees=(10.0, 3.0), log_scales=(0.1, 0.05))
    for first in range(0, 28, 2):
        pair = [Nudges(*(value[n : n + 1] for value in every)) for n in (first, first + 1)]
        back = nudged(nudged(pose, pair[0]), pair[1])
        torch.testing.assert_close(to_matrices(back), to_matrices(pose), atol=1e-5, rtol=1e-5)


def test_sizes_of_nudges():
    every = nudges(shifts_mm=(8.0, 2.0), turns_degrees=(10.0, 3.0), log_scales=(0.1, 0.05))
    assert [len(value) for value in every] == [28, 28, 28]
    assert every.shift_mm[:6].tolist() == [[8, 0, 0], [-8, 0, 0], [0, 8, 0], [0, -8, 0], [0, 0, 8], [0, 0, -8]]
    degrees = 2 * every.turn[:, 0].clamp(max=1).acos() * 180 / math.pi
    assert degrees[6:12].tolist() == pytest.approx([10.0] * 6, abs=1e-3)
    assert degrees[20:26].tolist() == pytest.approx([3.0] * 6, abs=0.02)
    assert every.log_scale[[12, 13, 26, 27]].tolist() == pytest.approx([0.1, -0.1, 0.05, -0.05])
    assert (every.log_scale != 0).sum() == 4
    assert (every.shift_mm != 0).any(1).sum() == 12


def test_rigid_and_planar_nudges():
    rigid = nudges(shifts_mm=(8.0,), turns_degrees=(10.0,), log_scales=())
    assert len(rigid.log_scale) == 12
    assert not rigid.log_scale.any()
    planar = nudges(shifts_mm=(1.0,), turns_degrees=(1.0,), log_scales=(0.05,), planar=True)
    assert len(planar.log_scale) == 8  # tx, ty, angle, scale of Sun et al. 2018
    assert not planar.shift_mm[:, 2].any()
    assert not planar.turn[:, 1:3].any()
    half = math.radians(0.5)
    assert planar.turn[4:6, 3].tolist() == pytest.approx([math.sin(half), -math.sin(half)])


def test_after_every_is_each_nudge_of_each_pose(pose):
    every = nudges(shifts_mm=(8.0,), turns_degrees=(10.0,), log_scales=(0.1,))
    after = after_every(pose, every)
    assert after.quaternion.shape == (5, 14, 4)
    for k in (0, 7, 12):
        alone = nudged(pose, Nudges(*(value[k : k + 1] for value in every)))
        for whole, part in zip(after, alone, strict=True):
            assert torch.equal(whole[:, k], part)


def test_distances_by_hand():
    points = torch.tensor([[[3.0, 0, 0], [0, 4, 0], [0, 0, 5]]])
    shifted = IDENTITY._replace(translation_mm=torch.tensor([[0.0, 3, 4]]))
    assert distance_mm(shifted, IDENTITY, points).tolist() == [5.0]
    turned = IDENTITY._replace(quaternion=from_vector(torch.tensor([[0.0, 0, math.pi]])))
    assert float(distance_mm(turned, IDENTITY, points)) == pytest.approx((6 + 8 + 0) / 3, abs=1e-5)
    double = IDENTITY._replace(log_scale=torch.tensor([math.log(2.0)]))
    assert float(distance_mm(double, IDENTITY, points)) == pytest.approx(4, abs=1e-5)
    assert float(distance_mm(IDENTITY, double, points)) == pytest.approx(2, abs=1e-5)  # mm of the first frame
    many = Pose(*(torch.stack([a, b], 1) for a, b in zip(shifted, IDENTITY, strict=True)))
    assert distance_mm(many, IDENTITY, points).tolist() == [[5.0, 0.0]]
