"""Canonical grids: every storage of one body gives the same grid, in the patient's axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.data.phantoms import random_affine
from medrl.geometry.grids import (
    OUTSIDE,
    bounding_box,
    canonical,
    check_contrast,
    coarsen,
    grey_window,
    sample,
    smooth,
    spacing_of,
    thin,
    to_grey,
)  # fmt: skip
from medrl.geometry.similarity import apply, compose, rotation

WINDOW = (0.0, 100.0)


def body(ras: torch.Tensor) -> torch.Tensor:
    """A smooth body without any symmetry: intensity 0..100 at RAS mm (..., 3)."""
    total = torch.zeros(ras.shape[:-1], dtype=torch.float64)
    for centre, width, height in [((10, 5, -8), 14, 70), ((-12, -6, 4), 10, 50), ((4, -14, 12), 8, 60)]:
        total += height * torch.exp(-(ras - torch.tensor(centre)).square().sum(-1) / (2 * width**2))
    return total


def stored(ras_from_voxel: torch.Tensor, reach_mm: float = 44.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The body on a storage grid of these axes and spacings, centred on the origin: volume, ras_from_voxel."""
    spacing = spacing_of(ras_from_voxel)
    shape = (2 * reach_mm / spacing).round().long()
    matrix = ras_from_voxel.clone()
    matrix[:3, 3] = -matrix[:3, :3] @ ((shape.double() - 1) / 2)
    voxel = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"), -1)
    return body(apply(matrix, voxel)).float(), matrix


def read(grid: torch.Tensor, ras_from_centre: torch.Tensor, spacing_mm: float, ras: torch.Tensor) -> torch.Tensor:
    """Grey values of a canonical grid at RAS points (P, 3), trilinearly."""
    place = apply(torch.linalg.inv(ras_from_centre), ras) / spacing_mm + (torch.tensor(grid.shape) - 1) / 2
    low = place.floor().long()
    total = torch.zeros(len(ras), dtype=torch.float64)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        weight = torch.where(corner.bool(), place - low, 1 - (place - low)).prod(1)
        x, y, z = (low + corner).T
        total += weight * grid[x, y, z]
    return total


def storages() -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(4)
    las = torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    permuted = torch.zeros(4, 4, dtype=torch.float64)
    permuted[0, 2], permuted[1, 0], permuted[2, 1], permuted[3, 3] = 2.0, -1.5, 2.5, 1.0
    return {
        "las": las,
        "permuted": permuted,
        "oblique": torch.from_numpy(random_affine(generator, 2.0, oblique_degrees=25.0)),
        "anisotropic": torch.diag(torch.tensor([1.0, -1.4, 3.0, 1.0], dtype=torch.float64)),
        "fine": torch.from_numpy(random_affine(generator, (0.7, 0.9, 1.0), oblique_degrees=10.0)),
    }


@pytest.mark.parametrize("name", storages())
def test_every_storage_gives_the_same_grey_values(name, torch_generator):
    """SlicerAutomatedDentalTools: agents that ignore the direction cosines fail on LAS scans."""
    points = (torch.rand(400, 3, generator=torch_generator, dtype=torch.float64) * 2 - 1) * 28
    truth = 1 + 254 * body(points) / 100
    grid, ras_from_centre = canonical(*stored(storages()[name]), spacing_mm=2.0, window=WINDOW)
    assert torch.equal(ras_from_centre[:3, :3], torch.eye(3, dtype=torch.float64))
    error = (read(grid, ras_from_centre, 2.0, points) - truth).abs()
    assert float(error.max()) < 5  # of 255; a mirrored or shifted copy is wrong by 40 and more
    assert float(error.mean()) < 1.5


def test_a_frame_turns_scales_and_crops(torch_generator):
    frame_from_ras = compose(
        rotation(torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)), 1.2, torch.tensor([3, -4, 5.0])
    )
    box = (torch.tensor([-30.0, -30, -30]).double(), torch.tensor([30.0, 26, 31]).double())
    grid, ras_from_centre = canonical(
        *stored(storages()["oblique"]), spacing_mm=2.0, frame_from_ras=frame_from_ras, box_mm=box, window=WINDOW,
        multiple=4,
    )  # fmt: skip
    assert grid.shape == (32, 28, 32)
    torch.testing.assert_close(frame_from_ras @ ras_from_centre, compose(torch.eye(3), 1, (box[0] + box[1]) / 2))
    points = apply(ras_from_centre, (torch.rand(300, 3, generator=torch_generator).double() * 2 - 1) * 20)
    error = read(grid, ras_from_centre, 2.0, points) - (1 + 254 * body(points) / 100)
    assert float(error.abs().max()) < 5


def test_fine_patterns_vanish_before_they_alias():
    """Sub-sampling without a low-pass turns a fine pattern into a coarse one."""
    pattern = torch.zeros(64, 64, 64)
    pattern[::2] = 100.0  # period 1 mm
    affine = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64))
    grid, _ = canonical(pattern, affine, spacing_mm=2.0, window=WINDOW)
    assert set(grid.unique().tolist()) <= {127, 128, 129}


def test_outside_is_told_from_air_and_covers_only_what_is_outside():
    volume, affine = torch.zeros(20, 20, 20), torch.eye(4, dtype=torch.float64)
    volume[10, 10, 10] = 50
    box = (torch.full((3,), -12.25).double(), torch.full((3,), 11.75).double())
    grid, ras_from_centre = canonical(volume, affine, spacing_mm=1.0, box_mm=box, window=WINDOW)
    corner = apply(torch.linalg.inv(ras_from_centre), torch.zeros(1, 3).double()) + 11.5
    assert grid.shape == (24, 24, 24)
    inside = torch.zeros(24, 24, 24, dtype=torch.bool)
    inside[12:, 12:, 12:] = True  # voxel 0 of the volume is at 0 mm, grid voxel 11.75
    torch.testing.assert_close(corner, torch.full((1, 3), 11.75).double())
    assert torch.equal(grid != OUTSIDE, inside)
    assert int(grid[inside].min()) == 1


def test_bounding_box_counts_whole_voxels():
    affine = torch.diag(torch.tensor([-2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    lower, upper = bounding_box(affine, (10, 4, 2), torch.eye(4, dtype=torch.float64))
    assert lower.tolist() == [-19, -0.5, -1.5]
    assert upper.tolist() == [1, 3.5, 4.5]


def test_thin_keeps_every_point_in_place():
    affine = torch.from_numpy(random_affine(np.random.default_rng(0), (0.5, 1.0, 2.0)))
    volume, thinned = thin(*stored(affine, 20.0), 2.0)
    fine, matrix = stored(affine, 20.0)
    assert spacing_of(thinned).tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert volume.shape == (fine.shape[0] // 4, fine.shape[1] // 2, fine.shape[2])
    torch.testing.assert_close(apply(thinned, torch.zeros(3)), apply(matrix, torch.tensor([1.5, 0.5, 0.0])))
    ramp = torch.arange(8.0)[:, None, None].expand(8, 8, 8)
    mean, _ = thin(ramp, torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64)), 1.0)
    assert mean[:, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_sample_interpolates_and_marks_outside(torch_generator):
    volume = torch.rand(6, 5, 4, generator=torch_generator)
    out = sample(volume, torch.eye(4, dtype=torch.float64), (7, 5, 4))
    torch.testing.assert_close(out[:6], volume)
    assert out[6].isnan().all()
    half = torch.eye(4, dtype=torch.float64)
    half[0, 3] = 0.5
    torch.testing.assert_close(sample(volume, half, (5, 5, 4)), (volume[:5] + volume[1:]) / 2)
    shift = torch.zeros(5, 5, 4, 3)
    shift[..., 0] = 0.5
    torch.testing.assert_close(sample(volume, torch.eye(4).double(), (5, 5, 4), shift), (volume[:5] + volume[1:]) / 2)


def test_grey_values_span_the_window():
    grey = to_grey(torch.tensor([-10.0, 0.0, 50.0, 100.0, 110.0, torch.nan]), 0.0, 100.0)
    assert grey.tolist() == [1, 1, 128, 255, 255, OUTSIDE]


def test_grey_window_follows_gain_and_offset(torch_generator):
    volume = torch.rand(30, 30, 30, generator=torch_generator).square()
    low, high = grey_window(volume)
    other = grey_window(300 * volume + 40)
    assert other == pytest.approx((300 * low + 40, 300 * high + 40), rel=1e-4)
    assert grey_window(volume, (5, 7)) == (5.0, 7.0)


def test_images_without_contrast_are_refused():
    affine = torch.eye(4, dtype=torch.float64)
    for volume, words in [(torch.full((8, 8, 8), 3), "same value"), (torch.full((8, 8, 8), torch.nan), "finite")]:
        for window in (None, WINDOW):
            with pytest.raises(ValueError, match=words):
                canonical(volume, affine, spacing_mm=1.0, window=window)
    one = torch.full((70, 71, 72), 3, dtype=torch.int16)
    one[69, 1, 41] = 4  # contrast that a look at some voxels does not see
    check_contrast(one)
    with pytest.raises(ValueError, match="too large"):
        canonical(torch.arange(8.0).reshape(2, 2, 2), affine, spacing_mm=0.001)


def test_a_nan_background_is_outside():
    volume = torch.full((12, 12, 12), torch.nan)
    volume[2:10, 2:10, 2:10] = torch.arange(512.0).reshape(8, 8, 8)
    grid, _ = canonical(volume, torch.eye(4, dtype=torch.float64), spacing_mm=1.0)
    assert not grid[volume.isnan()].any()
    assert int(grid[3:9, 3:9, 3:9].min()) > OUTSIDE  # interpolation may cost a voxel at the border


def test_coarsen_and_smooth_average_inside_only():
    grid = torch.full((8, 8, 8), 100, dtype=torch.uint8)
    grid[:4] = OUTSIDE
    assert torch.equal(smooth(grid), grid)  # neither the border nor the outside darkens the inside
    assert torch.equal(coarsen(grid), grid[::2, ::2, ::2])
    grid[3, :, :] = 100  # a coarse voxel half inside counts, with the mean of its inside
    assert coarsen(grid)[:, 0, 0].tolist() == [0, 100, 100, 100]
    spike = torch.ones(5, 5, 5, dtype=torch.uint8)
    spike[2, 2, 2] = 129
    assert smooth(spike)[:, 2, 2].tolist() == [1, 9, 17, 9, 1]  # 128 * (1, 2, 1) / 4 * 1/2 * 1/2, plus 1
