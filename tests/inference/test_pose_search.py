"""Proposals and climbing find a known pose on synthetic features, step by step."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.data.pair_cases import PairCases
from medrl.data.pair_fields import draw_pair
from medrl.geometry.poses import Nudges, Pose, nudged
from medrl.geometry.quaternions import from_vector
from medrl.inference.climbing import climb, sized_nudges
from medrl.inference.pose_proposals import distinct, look_at, propose, spread

ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.fixture(scope="module")
def cases() -> PairCases:
    """One pair, turned by some 60 degrees."""
    pair = draw_pair(torch.Generator().manual_seed(4), side=8, counts=(100, 400), degrees=100.0)
    return PairCases([pair], scale=20.0)


def degrees_of(quaternion):
    return 2 * quaternion[:, 0].abs().clamp(max=1).acos() * 180 / math.pi


def displaced(cases, vector, growth, shift_mm):
    change = Nudges(from_vector(torch.tensor([vector])), torch.tensor([growth]), torch.tensor([shift_mm]))
    return nudged(cases.truth, change)


def test_climbed_proposals_find_the_pose(cases):
    drawn = torch.Generator().manual_seed(0)
    assert degrees_of(cases.truth.quaternion) > 40
    pose = propose(cases, drawn, orientations=120, degrees=120.0, keep=6, scales=(0.9, 1.1))
    error = cases.error_mm(ZERO, Pose(*(value[None] for value in pose)))[0]
    assert len(error) == 6
    assert error.min() < 20
    score = look_at(cases, pose)
    assert torch.equal(score, score.sort(descending=True).values)
    climbed, reached = climb(
        lambda p: look_at(cases, p), pose, sizes_mm=(12.0, 4.0), scaled=True, budget=30
    )
    assert (reached >= score).all()
    torch.testing.assert_close(reached, look_at(cases, climbed))
    best = Pose(*(value[reached.argmax()][None] for value in climbed))
    assert float(cases.error_mm(ZERO, best)) < 5


def test_orientations_are_spread_evenly():
    turn = spread(2000, 120.0, torch.Generator().manual_seed(0))
    assert turn.shape == (2000, 4)
    assert turn[0].tolist() == [1, 0, 0, 0]
    angle = degrees_of(turn)[1:]
    assert float(angle.max()) <= 120.001
    # the share of turns below an angle grows as angle - sin(angle)
    for limit in (60.0, 90.0):
        first, whole = math.radians(limit), math.radians(120.0)
        wanted = (first - math.sin(first)) / (whole - math.sin(whole))
        assert float((angle < limit).float().mean()) == pytest.approx(wanted, abs=0.03)
    assert turn[1:, 1:].mean(0).abs().max() < 0.05


@pytest.mark.parametrize("degrees", [2.0, 15.0, 40.0, 180.0])
def test_as_many_orientations_as_asked_for(degrees):
    turn = spread(100, degrees, torch.Generator().manual_seed(0))
    assert turn.shape == (100, 4)
    assert 0.8 * degrees < float(degrees_of(turn).max()) <= degrees + 0.05


def test_no_two_of_the_best_are_alike():
    turn = from_vector(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.5, 0, 0], [0.0, 0, 0]]))
    pose = Pose(turn, torch.zeros(4), torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 40, 0]]))
    score = torch.tensor([1.0, 4, 2, 3])
    assert distinct(pose, score, 4).tolist() == [1, 3, 2]  # the first is within 20 degrees and 30 mm of the second
    assert distinct(pose, score, 2).tolist() == [1, 3]
    flipped = pose._replace(quaternion=-turn)  # the same rotations
    both = Pose(*(torch.cat(pair) for pair in zip(pose, flipped, strict=True)))
    assert len(distinct(both, score.repeat(2), 8)) == 3


def test_the_climb_ends_where_no_nudge_helps(cases):
    """On a bowl whose bottom is a pose: within the finest nudge of it in every parameter."""
    start = Pose(*(torch.cat([a, b]) for a, b in zip(
        displaced(cases, (0.5, -0.3, 0.2), 0.1, (20.0, -10.0, 5.0)), cases.truth, strict=True)))  # fmt: skip

    def bowl(pose):
        return -cases.error_mm(torch.zeros(len(pose.log_scale), dtype=torch.int64), pose)

    pose, score = climb(bowl, start, sizes_mm=(16.0, 4.0, 1.0), scaled=True, budget=100)
    assert score[0] > -1.0
    assert float(score[1]) == pytest.approx(0.0, abs=1e-4)
    every = sized_nudges((1.0,), scaled=True)
    for number in range(len(every.log_scale)):
        near = nudged(pose, Nudges(*(value[number : number + 1] for value in every)))
        assert (bowl(near) <= score + 1e-5).all()
    unmoved, same = climb(bowl, start, sizes_mm=(16.0,), scaled=True, budget=0)
    assert torch.equal(unmoved.translation_mm, start.translation_mm)
    torch.testing.assert_close(same, bowl(start))


def test_a_rigid_climb_keeps_the_size(cases):
    start = displaced(cases, (0.3, 0.0, 0.1), 0.2, (10.0, 0.0, 0.0))
    sizes_mm = (8.0, 4.0)
    pose, _ = climb(lambda p: look_at(cases, p), start, sizes_mm=sizes_mm, scaled=False, budget=12)
    assert torch.equal(pose.log_scale, start.log_scale)
