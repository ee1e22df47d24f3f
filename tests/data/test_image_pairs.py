"""Pairs of images: warped to where the truth says, in 2D and 3D, on any voxels."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.data.image_pairs import ImagePairs
from medrl.data.pair_fields import draw_image_pairs, places
from medrl.geometry.poses import Pose, distance_mm
from medrl.types import InputError

IDENTITY = Pose(torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1), torch.zeros(1, 3))
ZERO = torch.zeros(1, dtype=torch.int16)


def coded(axis: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> torch.Tensor:
    """An image (1, 1, *S) whose values tell the place along an axis: 0.5 + mm / 200."""
    line = 0.5 + (torch.arange(shape[axis]) - (shape[axis] - 1) / 2) * spacing_mm[axis] / 200
    return line.reshape([-1 if n == axis else 1 for n in range(len(shape))]).expand(shape)[None, None].contiguous()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_values_come_from_where_the_pose_leads(axis):
    """Turned, resized and shifted at once, with other shapes and voxels that are not cubes."""
    spacing_mm = (2.0, 3.0, 1.5)
    fixed, moving = coded(axis, (12, 10, 14), spacing_mm), coded(axis, (20, 16, 30), spacing_mm)
    truth = torch.eye(4)
    cosine, sine = math.cos(0.3), math.sin(0.3)
    truth[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    truth[:3, :3] *= 1.1
    truth[:3, 3] = torch.tensor([3.0, -2.0, 1.0])
    cases = ImagePairs(fixed, moving, spacing_mm=spacing_mm, truth=truth[None])
    value, inside = cases.warp(ZERO, cases.truth)
    assert value.shape == inside.shape == (1, 1, 12, 10, 14)
    assert inside.all()
    place = torch.stack([200 * (coded(n, (12, 10, 14), spacing_mm)[0, 0] - 0.5) for n in range(3)], -1)
    wanted = 0.5 + (place @ truth[:3, :3].T + truth[:3, 3])[..., axis] / 200
    deep = (slice(2, -2),) * 3
    torch.testing.assert_close(value[0, 0][deep], wanted[deep], atol=1e-4, rtol=0)


def test_a_slice_turned_by_a_quarter():
    moving = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3) * 10
    quarter = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # x to y
    cases = ImagePairs(torch.zeros_like(moving), moving, spacing_mm=(2.0, 2.0), truth=quarter)
    value, inside = cases.warp(ZERO, cases.truth)
    # fixed (i, j) is at (x, y), and shows what the moving image has at (-y, x): its voxel (2 - j, i)
    wanted = torch.tensor([[float(moving[0, 0, 2 - j, i]) for j in range(3)] for i in range(3)])
    torch.testing.assert_close(value[0, 0], wanted, atol=1e-3, rtol=0)
    assert inside.all()


def test_a_shift_by_hand_and_what_is_outside():
    moving = torch.arange(1, 6, dtype=torch.uint8).reshape(1, 1, 5, 1) * 10
    cases = ImagePairs(torch.zeros(1, 1, 5, 1, dtype=torch.uint8), moving, spacing_mm=(2.0, 2.0))
    pose = IDENTITY._replace(translation_mm=torch.tensor([[2.7, 0, 0]]))  # 1.35 voxels
    value, inside = cases.warp(ZERO, pose)
    # half a voxel of the last one is still inside; beyond that nothing is
    assert value.flatten().tolist() == pytest.approx([23.5, 33.5, 43.5, 50, 0], abs=1e-3)
    assert inside.flatten().tolist() == [True] * 4 + [False]


def test_planar_truths_and_the_lattice():
    image = torch.rand(2, 1, 20, 10)
    matrix = torch.eye(3).repeat(2, 1, 1)
    matrix[0, :2, :2] *= 1.2
    matrix[1, :2, 2] = torch.tensor([3.0, 4.0])
    cases = ImagePairs(image, image, spacing_mm=(1.0, 2.0), truth=matrix)
    assert cases.truth.log_scale.tolist() == pytest.approx([math.log(1.2), 0], abs=1e-6)
    assert cases.lattice_mm.shape == (2, 25, 3)
    assert cases.lattice_mm.amax((0, 1)).tolist() == [8, 8, 0]
    still = Pose(*(value.expand(2, *value.shape[1:]) for value in IDENTITY))
    assert cases.error_mm(torch.tensor([1]), IDENTITY).tolist() == [5.0]
    error = cases.error_mm(torch.arange(2), still)
    torch.testing.assert_close(error, distance_mm(still, cases.truth, cases.lattice_mm))
    assert ImagePairs(image, image, spacing_mm=(1.0, 2.0)).error_mm(ZERO, IDENTITY).isnan().all()


@pytest.mark.parametrize("size", [(32, 28), (16, 14, 12)])
def test_drawn_pairs_lie_on_each_other_at_the_truth(size, torch_generator):
    cases = draw_image_pairs(3, torch_generator, size=size, shift_mm=8.0, degrees=25.0, scale=1.2)
    index = torch.arange(3)
    still = Pose(*(value.expand(3, *value.shape[1:]) for value in IDENTITY))
    deep = places(size, 1.0).norm(dim=-1) < 0.16 * min(size)
    # the contrast is reversed: inside of the body both add up to white
    off = [
        (cases.warp(index, pose)[0] + cases.fixed - 255)[:, 0, deep].abs().mean(1) for pose in (cases.truth, still)
    ]
    assert off[0].max() < 15
    assert (off[1] > 1.5 * off[0] + 3).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fixed": torch.rand(1, 3, 3)}, "shapes"),
        ({"moving": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "types"),
        ({"fixed": 300 * torch.rand(1, 1, 4, 4)}, "outside of"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "spacing_mm"),
    ],
)
def test_wrong_images_are_refused(change, words):
    image = torch.rand(1, 1, 4, 4)
    with pytest.raises(InputError, match=words):
        ImagePairs(**({"fixed": image, "moving": image, "spacing_mm": (1.0, 1.0)} | change))
