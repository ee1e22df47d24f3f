"""Varied copies: the landmark moves with the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.data.cases import Source
from medrl.data.phantoms import random_affine
from medrl.data.variations import Variations
from medrl.geometry.grids import OUTSIDE
from medrl.geometry.similarity import apply, compose, rotation

BOX = (torch.full((3,), -40.0).double(), torch.full((3,), 40.0).double())


def blob_source(number: int) -> Source:
    """A bright blob at the first landmark on an oblique grid; the second landmark is unknown."""
    affine = torch.from_numpy(random_affine(np.random.default_rng(number), (1.5, 2.0, 2.5), origin_mm=1.0))
    shape = (56, 44, 36)
    affine[:3, 3] = -affine[:3, :3] @ (torch.tensor(shape).double() - 1) / 2
    voxel = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij"), -1)
    place = torch.tensor([6.0, -5.0, 4.0]).double() + number
    distance = (apply(affine, voxel) - place).norm(dim=-1)
    volume = 100 * torch.exp(-distance.square() / (2 * 4.0**2)) + 0.01 * (distance.sin())
    return Source(f"blob_{number}", volume.float(), affine, torch.stack([place, torch.full((3,), torch.nan).double()]))


def build(**options) -> Variations:
    frames = [
        compose(rotation(torch.tensor([0.1, 0.2, -0.1]).double()), 1.1, torch.tensor([2.0, -3.0, 1.0])),
        torch.eye(4, dtype=torch.float64),
    ]
    options = {"cut": 0.0, "bias": 0.0, "shift_mm": 8.0, "window": (0.0, 100.0)} | options
    return Variations([blob_source(0), blob_source(1)], frames, box_mm=BOX, spacing_mm=2.0, **options)


def centroid_mm(grid: torch.Tensor) -> torch.Tensor:
    """Centre (3,) of the bright part in mm from the grid's centre."""
    weight = (grid.double() - 90).clamp(min=0)
    axes = torch.meshgrid(*(torch.arange(n).double() - (n - 1) / 2 for n in grid.shape), indexing="ij")
    return torch.stack([(weight * a).sum() for a in axes]) / weight.sum() * 2.0


@pytest.mark.parametrize("deformation_mm", [0.0, 3.0])
def test_the_landmark_moves_with_the_image(deformation_mm, torch_generator):
    variations = build(rotation_degrees=20.0, deformation_mm=deformation_mm, noise=0.01)
    errors, places = [], []
    for number in range(20):
        grid, points = variations.draw(number % 2, torch_generator)
        errors.append((centroid_mm(grid) - points[0]).abs().max() / 2.0)
        places.append(points[0])
        assert points[1].isnan().all()
    assert float(torch.stack(errors).max()) < 0.65  # voxels; a thick slice may lean by half a voxel
    assert float(torch.stack(errors).median()) < 0.15
    assert float(torch.stack(places).std(0).min()) > 2.0  # it did move


def test_the_pool_knows_which_landmarks_are_cut_off(torch_generator):
    cases = build(cut=1.0).cases(12, torch_generator, labels=("blob", "other"), strides=(1, 2))
    assert cases.known[:, 0].all()
    assert not cases.known[:, 1].any()
    present = cases.present[:, 0]
    assert 0 < int(present.sum()) < 12
    for case in range(12):
        crop = cases.pyramid.crop(torch.tensor([case]), cases.points_mm[case, :1], 1)[0, 0]
        assert bool(crop.item() != OUTSIDE) == bool(present[case])
    assert not cases.present[:, 1].any()


def test_refresh_draws_some_cases_anew(torch_generator):
    variations = build()
    cases = variations.cases(4, torch_generator, labels=("blob", "other"), strides=(1, 2))
    before, volumes = cases.points_mm.clone(), cases.pyramid.flat[0].clone().reshape(4, -1)
    variations.refresh(cases, [1, 3], torch_generator)
    same = (cases.points_mm == before).all(-1).all(-1)
    assert same.tolist() == [True, False, True, False]
    assert (cases.pyramid.flat[0].reshape(4, -1) == volumes).all(1).tolist() == [True, False, True, False]


def test_equal_generators_draw_equal_copies():
    variations = build(cut=0.5, bias=0.2)
    one, two = (variations.draw(0, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1][0], two[1][0])
