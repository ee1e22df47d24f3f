"""The polish: of several starts the right one wins, and another size is believed only where it is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.misalignment import body_lattice, image_centre, registration_error_mm, regrid
from medrl.data.pair_phantoms import pair_phantom
from medrl.geometry.transforms import from_parameters
from medrl.inference.pose_polish import polish, rigid_parts
from medrl.inference.registration_grids import GridPair
from medrl.types import InputError

pytest.importorskip("SimpleITK")

LEAST = 0.03


@pytest.fixture(scope="module")
def images():
    phantom = pair_phantom(np.random.default_rng(3), shape=(48, 48, 48), spacing_mm=4.0)
    return tuple(
        MetaTensor(torch.as_tensor(voxels.astype(np.float32))[None], affine=torch.as_tensor(affine))
        for voxels, affine in ((phantom.ct, phantom.ct_affine), (phantom.mr, phantom.mr_affine))
    )


def parameters(vector, log_scale, shift_mm):
    return torch.tensor([*vector, log_scale, *shift_mm], dtype=torch.float64)


def case(images, scale):
    """A misaligned pair as grids, its truth, starts of which the second is the nearest, and where errors count."""
    fixed, moving = images
    centre = image_centre(fixed)
    truth = from_parameters(parameters((0.2, -0.3, 0.1), np.log(scale), (9.0, -5.0, 6.0)), centre)
    near = from_parameters(parameters((0.08, 0.05, -0.06), np.log(1.08 / scale), (5.0, 4.0, -4.0)), centre)
    far = from_parameters(parameters((1.5, 0.8, 0.0), 0.0, (30.0, 10.0, 0.0)), centre)
    pair = GridPair(fixed, regrid(moving, truth, np.random.default_rng(0)))
    return pair, truth, torch.stack([truth @ far, truth @ near, far]), body_lattice(fixed, moving)


@pytest.mark.parametrize("scale", [1.0, 1.16, 0.88])
def test_the_nearest_start_wins_with_the_true_size(images, scale):
    pair, truth, starts, lattice = case(images, scale)
    found = polish(pair, starts, scaled="auto", least_information=LEAST)
    size = float(torch.linalg.det(found.matrix[:3, :3])) ** (1 / 3)
    assert found.start == 1
    assert float(registration_error_mm(found.matrix, truth, lattice)) < 3.0
    assert size == pytest.approx(scale, abs=0.08)
    if scale == 1.0:
        assert size == pytest.approx(1.0, abs=1e-6)
    assert found.information > 0.1


def test_rigid_or_free_on_request(images):
    pair, truth, starts, lattice = case(images, 1.16)
    rigid = polish(pair, starts, scaled=False, least_information=LEAST)
    torch.testing.assert_close(torch.linalg.det(rigid.matrix[:3, :3]), torch.tensor(1.0, dtype=torch.float64))
    assert float(registration_error_mm(rigid.matrix, truth, lattice)) > 4.0  # the size is missing
    free = polish(pair, starts, scaled=True, least_information=LEAST)
    assert float(registration_error_mm(free.matrix, truth, lattice)) < 3.0
    assert free.information > rigid.information + LEAST


def test_starts_beside_the_image_are_refused(images):
    pair, _, starts, _ = case(images, 1.0)
    starts = starts.clone()
    starts[:, :3, 3] += 5000.0
    with pytest.raises(InputError, match="no start lays one on the other"):
        polish(pair, starts, scaled="auto", least_information=LEAST)


def test_rigid_parts_keep_the_centre():
    centre = torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    matrix = from_parameters(parameters((0.4, 0.1, -0.2), 0.3, (3.0, 4.0, 5.0)), torch.zeros(3))
    rigid = rigid_parts(matrix[None], centre)[0]
    torch.testing.assert_close(rigid[:3, :3] @ rigid[:3, :3].T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rigid[:3, :3] @ centre + rigid[:3, 3], matrix[:3, :3] @ centre + matrix[:3, 3])
