"""Known misalignments: their size, what is left to see of them, and the error of an answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.body import find_body
from medrl.data.misalignment import (
    LEVELS,
    body_lattice,
    draw_misalignment,
    image_centre,
    registration_error_mm,
    regrid,
)
from medrl.data.pair_phantoms import pair_phantom
from medrl.geometry.grids import spacing_of
from medrl.geometry.transforms import from_parameters, invert, resample, rotation_vector, transform_points
from medrl.types import InputError

EYE = torch.eye(4, dtype=torch.float64)


def as_image(voxels, affine):
    return MetaTensor(torch.as_tensor(voxels).float()[None], affine=torch.as_tensor(affine))


@pytest.fixture(scope="module")
def pair():
    """CT and MR of one phantom, both on oblique, anisotropic grids."""
    drawn = pair_phantom(np.random.default_rng(5), shape=(30, 28, 32), spacing_mm=6.0)
    return as_image(drawn.ct, drawn.ct_affine), as_image(drawn.mr, drawn.mr_affine)


def flipped(image, axes):
    """The same image stored from the other end along some axes; one or three make the storage left-handed."""
    matrix = EYE.clone()
    for axis in axes:
        matrix[axis, axis], matrix[axis, 3] = -1.0, image.shape[axis + 1] - 1
    affine = torch.as_tensor(image.affine).double() @ matrix
    return MetaTensor(image.as_tensor().flip([axis + 1 for axis in axes]), affine=affine)


@pytest.mark.parametrize("level", LEVELS)
def test_sizes_of_a_level(level, generator):
    most, centre = LEVELS[level], torch.tensor([10.0, -200.0, 30.0], dtype=torch.float64)
    drawn = [draw_misalignment(level, centre, generator) for _ in range(300)]
    angles, lengths, scales = (
        np.array([getattr(item, name) for item in drawn]) for name in ("angle_deg", "translation_mm", "scale")
    )
    assert angles.min() >= most.angle_deg / 2
    assert most.angle_deg * 0.98 < angles.max() <= most.angle_deg
    assert lengths.min() >= most.translation_mm / 2
    assert most.translation_mm * 0.98 < lengths.max() <= most.translation_mm
    assert np.log(scales).mean() == pytest.approx(0, abs=0.02)
    assert np.abs(np.log(scales)).max() == pytest.approx(math.log(most.scale), abs=0.01)
    axes = []
    for item in drawn:
        linear = item.matrix[:3, :3] / item.scale
        torch.testing.assert_close(linear @ linear.mT, EYE[:3, :3])
        vector = rotation_vector(linear)
        assert math.degrees(vector.norm()) == pytest.approx(item.angle_deg)
        moved = transform_points(item.matrix, centre[None])[0] - centre
        assert float(moved.norm()) == pytest.approx(item.translation_mm)
        axes.append(torch.cat([vector / vector.norm(), moved / moved.norm()]))
    axes = torch.stack(axes)
    assert float(axes.mean(0).abs().max()) < 0.15  # no direction is preferred
    assert float((axes.square().mean(0) - 1 / 3).abs().max()) < 0.08


def test_unknown_level(generator):
    with pytest.raises(InputError, match="expected one of small, medium, large, similarity"):
        draw_misalignment("huge", torch.zeros(3), generator)


def test_regridded_image_is_the_moved_one(pair, generator):
    _, moving = pair
    matrix = draw_misalignment("similarity", image_centre(moving), generator).matrix
    moved = regrid(moving, matrix, generator)
    linear = moved.affine[:3, :3]
    assert torch.equal(linear, torch.diag(linear.diagonal()))  # along the patient axes
    assert sorted(spacing_of(linear).tolist()) == pytest.approx(sorted(spacing_of(moving.affine).tolist()))
    assert float(moved.min()) == float(moving.min())
    # read where the moved places lie, it is the image before, but for the blur of one interpolation
    back = resample(moved[0].as_tensor(), moved.affine, matrix, tuple(moving.shape[1:]), moving.affine)
    inside = back[3:-3, 3:-3, 3:-3]
    assert bool(inside.isfinite().all())
    difference = (inside - moving[0, 3:-3, 3:-3, 3:-3].as_tensor()).abs()
    wrong = resample(moved[0].as_tensor(), moved.affine, EYE, tuple(moving.shape[1:]), moving.affine, outside=0.0)
    unregistered = (wrong[3:-3, 3:-3, 3:-3] - moving[0, 3:-3, 3:-3, 3:-3].as_tensor()).abs()
    assert float(difference.mean()) < 0.25 * float(unregistered.mean())


def test_grid_covers_the_moved_image_and_a_border(pair, generator):
    _, moving = pair
    ends = torch.tensor(moving.shape[1:], dtype=torch.float64) - 0.5
    corners = torch.cartesian_prod(*(torch.tensor([-0.5, float(end)], dtype=torch.float64) for end in ends))
    borders = []
    for _ in range(40):
        matrix = draw_misalignment("large", image_centre(moving), generator).matrix
        moved = regrid(moving, matrix, generator)
        voxel = transform_points(invert(moved.affine) @ matrix @ moving.affine, corners)
        size = voxel.amax(0) - voxel.amin(0)
        below, above = voxel.amin(0) + 0.5, torch.tensor(moved.shape[1:]) - 0.5 - voxel.amax(0)
        assert float(torch.minimum(below, above).min()) > -1e-6
        assert float((below / size).max()) <= 0.1
        assert float(((above - 1) / size).max()) <= 0.1  # the last voxel is a whole one
        borders.append(torch.stack([below / size, above / size]))
    assert float(torch.stack(borders).mean()) == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_storage_does_not_matter(pair, axes):
    fixed, moving = pair
    matrix = draw_misalignment("medium", image_centre(fixed), np.random.default_rng(1)).matrix
    first = regrid(moving, matrix, np.random.default_rng(2))
    second = regrid(flipped(moving, axes), matrix, np.random.default_rng(2))
    torch.testing.assert_close(first.affine, second.affine)
    difference = (first - second).as_tensor().abs()
    assert float((difference > 0.01).float().mean()) < 1e-3  # at the very edge of the field of view, rounding decides
    np.testing.assert_array_equal(find_body(flipped(fixed, axes)), np.flip(find_body(fixed), axes))
    points, other = body_lattice(fixed, moving), body_lattice(flipped(fixed, axes), flipped(moving, axes))
    assert abs(len(points) - len(other)) <= 0.05 * len(points)
    assert float((points.mean(0) - other.mean(0)).norm()) < 1.5  # a quarter of a voxel


def test_ball_has_no_edges(pair, generator):
    _, moving = pair
    matrix = draw_misalignment("similarity", image_centre(moving), generator).matrix
    state = generator.bit_generator.state
    box = regrid(moving, matrix, generator)
    generator.bit_generator.state = state
    ball = regrid(moving, matrix, generator, ball=True)
    assert torch.equal(box.affine, ball.affine)
    axes = [torch.arange(n, dtype=torch.float64) for n in ball.shape[1:]]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    old = transform_points(invert(matrix) @ ball.affine, index)
    radius_mm = float((spacing_of(moving.affine) * torch.tensor(moving.shape[1:])).min()) / 2
    inside = ((old - image_centre(moving)).norm(dim=1) <= radius_mm).reshape(ball.shape[1:])
    assert torch.equal(ball[0].as_tensor()[inside], box[0].as_tensor()[inside])
    assert bool((ball[0].as_tensor()[~inside] == float(moving.min())).all())
    assert float((box[0].as_tensor()[~inside] > float(moving.min())).float().mean()) > 0.1  # there was something


def test_body_of_known_size():
    """A closed, filled ball of 30 mm beside a smaller one, in HU, on an anisotropic grid."""
    spacing = torch.tensor([2.0, 2.5, 3.0], dtype=torch.float64)
    affine = torch.diag(torch.cat([spacing, torch.ones(1, dtype=torch.float64)]))
    axes = [torch.arange(n) * float(step) for n, step in zip((50, 40, 30), spacing, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    volume = torch.full((50, 40, 30), -1000.0)
    volume[((x - 40) ** 2 + (y - 50) ** 2 + (z - 45) ** 2) < 30**2] = 40.0
    volume[((x - 40) ** 2 + (y - 50) ** 2 + (z - 45) ** 2) < 10**2] = -900.0  # a lung
    volume[((x - 88) ** 2 + (y - 12) ** 2 + (z - 15) ** 2) < 8**2] = 40.0
    body = find_body(MetaTensor(volume[None], affine=affine))
    radius_mm = (body.sum() * float(spacing.prod()) * 3 / 4 / math.pi) ** (1 / 3)
    # smoothed by 2 mm, the edge from -1000 to 40 HU passes -300 HU 0.45 of them inside, and a ball shrinks by 4 / 30 mm
    assert radius_mm == pytest.approx(30 - 0.90 - 0.13, abs=0.2)
    assert body[20, 20, 15]
    assert not body[44, 4, 5]


def test_lattice_lies_in_both_bodies(pair):
    fixed, moving = pair
    points = body_lattice(fixed, moving)
    assert points.dtype == torch.float64
    assert 100 <= len(points) <= 512
    for image in pair:
        index = transform_points(invert(torch.as_tensor(image.affine).double()), points).round().long()
        assert find_body(image)[tuple(index.T.numpy())].all()
    # it fills the overlap evenly
    index = np.argwhere(find_body(fixed))
    world = transform_points(torch.as_tensor(fixed.affine).double(), torch.as_tensor(index).double())
    place = transform_points(invert(torch.as_tensor(moving.affine).double()), world).round().long()
    seen = ((place >= 0) & (place < torch.tensor(moving.shape[1:]))).all(1)
    assert float((points.mean(0) - world[seen].mean(0)).norm()) < 6.0
    far = MetaTensor(moving.as_tensor(), affine=torch.as_tensor(moving.affine).double().clone())
    far.affine[:3, 3] += 500.0
    with pytest.raises(InputError, match="hardly overlap"):
        body_lattice(fixed, far)


def test_error_by_hand():
    points = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]], dtype=torch.float64)
    truth = from_parameters(torch.tensor([[0, 0, 0, math.log(2.0), 4.0, 0, 0]], dtype=torch.float64), torch.zeros(3))[0]
    assert float(registration_error_mm(truth, truth, points)) == pytest.approx(0, abs=1e-12)
    # the identity, seen through the truth: x -> (x - 4) / 2, so 0 goes to -2 and 10 to 3
    assert float(registration_error_mm(EYE, truth, points)) == pytest.approx((2 + 7) / 2)
    shifted = truth.clone()
    shifted[1, 3] += 3.0  # 3 mm in the moving image are 1.5 mm in the fixed one
    batch = registration_error_mm(torch.stack([EYE, shifted]), truth, points)
    torch.testing.assert_close(batch, torch.tensor([4.5, 1.5], dtype=torch.float64))


def test_real_pair_keeps_the_alignment(real_data, generator):
    """Undoing the known transform restores the correlation of T1 and its contrast-enhanced copy."""
    from medrl.data.pairs import read_pair

    folder = real_data / "mri_ms_multicontrast" / "patient07"
    fixed, moving = read_pair(folder / "T1.nii.gz", folder / "T1POST.nii.gz")
    matrix = draw_misalignment("medium", image_centre(fixed), generator).matrix
    moved = regrid(moving, matrix, generator)
    body = torch.as_tensor(find_body(fixed))

    def correlation(answer):
        shape, affine = tuple(fixed.shape[1:]), torch.as_tensor(fixed.affine)
        values = resample(moved[0].as_tensor(), moved.affine, answer, shape, affine, outside=float(moving.min()))
        return float(torch.corrcoef(torch.stack([values[body], fixed[0].as_tensor()[body]]))[0, 1])

    aligned = float(torch.corrcoef(torch.stack([moving[0].as_tensor()[body], fixed[0].as_tensor()[body]]))[0, 1])
    assert correlation(matrix) > aligned - 0.03
    assert correlation(EYE) < aligned - 0.2
