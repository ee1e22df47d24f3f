"""Mutual information: phantoms of known misalignment, stored oblique and flipped; limits and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.misalignment import body_lattice, image_centre, registration_error_mm, regrid
from medrl.data.pair_phantoms import pair_phantom
from medrl.geometry.similarity import compose
from medrl.geometry.transforms import from_parameters
from medrl.inference.mutual_information import (
    multi_start,
    polish,
    register_mutual_information,
)
from medrl.types import InputError

SimpleITK = pytest.importorskip("SimpleITK")

MOST_MM = 2.0  # the greatest mutual information of these small, noisy phantoms lies 1 to 2 mm from the truth


def as_image(voxels, ras_from_voxel) -> MetaTensor:
    return MetaTensor(torch.as_tensor(voxels.astype(np.float32))[None], affine=torch.as_tensor(ras_from_voxel))


@pytest.fixture(scope="module")
def pair() -> tuple[MetaTensor, MetaTensor, torch.Tensor]:
    """CT and MR of one patient, aligned, both oblique and flipped, and the points at which errors are measured."""
    phantom = pair_phantom(np.random.default_rng(3), shape=(64, 64, 64), spacing_mm=3.0)
    fixed, moving = as_image(phantom.ct, phantom.ct_affine), as_image(phantom.mr, phantom.mr_affine)
    return fixed, moving, body_lattice(fixed, moving)


def misaligned(pair, degrees, shift_mm, scale=1.0):
    """The moving image turned about (1, 2, -2) / 3, moved and scaled; and the matrix of it."""
    fixed, moving, _ = pair
    vector = np.radians(degrees) * torch.tensor([1.0, 2.0, -2.0]) / 3
    parameters = torch.cat([vector, torch.tensor([np.log(scale)]), torch.tensor(shift_mm)]).double()
    truth = from_parameters(parameters, image_centre(fixed))
    return regrid(moving, truth, np.random.default_rng(0)), truth


def flipped(image: MetaTensor) -> MetaTensor:
    """The same image stored with its axes in another order, the first one backwards."""
    voxels, matrix = image.as_tensor()[0], torch.as_tensor(image.affine).double()
    change = torch.zeros(4, 4, dtype=torch.float64)
    change[2, 0], change[0, 1], change[1, 2], change[3, 3] = -1.0, 1.0, 1.0, 1.0
    change[2, 3] = voxels.shape[2] - 1
    return MetaTensor(voxels.permute(2, 0, 1).flip(0)[None], affine=matrix @ change)


def test_small_misalignment_is_undone_and_storage_does_not_matter(pair):
    fixed, _, points = pair
    moving, truth = misaligned(pair, 12.0, [8.0, -6.0, 5.0])
    found, information = register_mutual_information(fixed, moving)
    assert found.dtype == torch.float64
    assert float(registration_error_mm(found, truth, points)) < MOST_MM
    assert information > 0.5
    same, _ = register_mutual_information(flipped(fixed), flipped(moving))
    assert float(registration_error_mm(same, found, points)) < 0.05


def test_the_answer_is_rigid_or_a_similarity(pair):
    fixed, _, points = pair
    moving, truth = misaligned(pair, 10.0, [5.0, 5.0, 0.0], scale=1.12)
    rigid, _ = register_mutual_information(fixed, moving)
    assert torch.allclose(rigid[:3, :3] @ rigid[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    scaled, _ = register_mutual_information(fixed, moving, scaled=True)
    assert float(torch.linalg.det(scaled[:3, :3])) ** (1 / 3) == pytest.approx(1.12, abs=0.06)
    assert float(registration_error_mm(scaled, truth, points)) < 1.5 * MOST_MM


def test_many_starts_find_a_turn_that_one_start_misses(pair):
    fixed, _, points = pair
    moving, truth = misaligned(pair, 100.0, [20.0, -15.0, 10.0])
    one, low = register_mutual_information(fixed, moving)
    many, high = multi_start(fixed, moving, orientations=60, climbs=(12, 4, 2))
    assert float(registration_error_mm(one, truth, points)) > 20.0
    assert float(registration_error_mm(many, truth, points)) < MOST_MM
    assert high > low
    started, same = register_mutual_information(fixed, moving, start=one, starts=[truth])
    assert float(registration_error_mm(started, truth, points)) < MOST_MM
    assert same == pytest.approx(high, abs=0.01)


def test_polish_sharpens_and_keeps_to_its_limit(pair):
    fixed, _, points = pair
    moving, truth = misaligned(pair, 30.0, [10.0, 0.0, -20.0])
    off = compose(torch.eye(3), 1.0, torch.tensor([4.0, -3.0, 2.0])) @ truth
    before = float(registration_error_mm(off, truth, points))
    better, moved_mm = polish(fixed, moving, off)
    assert before == pytest.approx(29**0.5, abs=1e-4)
    assert float(registration_error_mm(better, truth, points)) < MOST_MM
    assert 0.5 * before < moved_mm < 8.0
    kept, moved_mm = polish(fixed, moving, off, limit_mm=0.1)
    assert torch.equal(kept, off)
    assert moved_mm == 0.0


def test_polish_keeps_a_start_beyond_the_image(pair):
    away = torch.eye(4, dtype=torch.float64)
    away[:3, 3] = 5000.0
    kept, moved_mm = polish(pair[0], pair[1], away)
    assert torch.equal(kept, away)
    assert moved_mm == 0.0
    with pytest.raises(InputError, match="no start lays one on the other"):
        register_mutual_information(pair[0], pair[1], start=away)


def test_an_image_of_air_is_refused(pair):
    air = MetaTensor(torch.full((1, 20, 20, 20), -1000.0), affine=torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])))
    air[0, 0, 0, 0] = -990.0
    with pytest.raises(InputError, match="the fixed image: shows nothing but air"):
        register_mutual_information(air, pair[1])


def test_nothing_global_changes(pair):
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first = polish(pair[0], pair[1], torch.eye(4))
    second = polish(pair[0], pair[1], torch.eye(4))
    assert torch.allclose(first[0], second[0], rtol=0, atol=1e-9)
    assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
