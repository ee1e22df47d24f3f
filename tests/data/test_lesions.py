"""Synthetic volumes with an object: seeded, varied, and with a mask that fits."""

from __future__ import annotations

import numpy as np
import pytest

from medrl.data.dataset import SECTIONS
from medrl.data.lesions import lesion, write_lesions
from medrl.data.masks import read_mask_cases
from medrl.data.regions import is_ct


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_objects_stand_out_and_vary(modality):
    shares = []
    for seed in range(12):
        voxels, _, mask = lesion(np.random.default_rng(seed), shape=(24, 24, 20), spacing_mm=3.0, modality=modality)
        again, _, mask_again = lesion(
            np.random.default_rng(seed), shape=(24, 24, 20), spacing_mm=3.0, modality=modality
        )
        np.testing.assert_array_equal(voxels, again)
        np.testing.assert_array_equal(mask, mask_again)
        assert voxels.dtype == np.int16
        assert 0 < mask.mean() < 0.5
        shares.append(float(mask.mean()))
        if modality == "mr":
            assert voxels.min() >= 0
    assert max(shares) > 4 * min(shares)


def test_contrast_has_both_signs():
    differences = []
    for seed in range(20):
        voxels, _, mask = lesion(np.random.default_rng(seed), shape=(24, 24, 24), spacing_mm=3.0)
        differences.append(float(np.median(voxels[mask]) - 50.0))
    assert min(differences) < -25 < 25 < max(differences)
    assert np.mean(np.abs(differences) > 20) > 0.8


@pytest.mark.parametrize("shape", [(40, 36, 1), (40, 1, 36), (1, 40, 36)])
def test_slices_can_be_drawn(shape, generator):
    voxels, matrix, mask = lesion(generator, shape=shape, affine="random")
    assert voxels.shape == mask.shape == shape
    assert 0 < mask.mean() < 0.6
    assert np.linalg.det(matrix[:3, :3]) != 0


def test_written_sets_are_read_back(tmp_path, generator):
    path = write_lesions(tmp_path, 6, generator, shape=(14, 12, 10), spacing_mm=4.0)
    assert path == tmp_path / "dataset.json"
    cases = [case for section in SECTIONS for case in read_mask_cases(tmp_path, section)]
    assert len(cases) == 6
    by_turns = {case.name[-3:]: is_ct(case.image) for case in cases}
    assert not any(by_turns[f"{number:03d}"] for number in (1, 3, 5))
    assert sum(by_turns.values()) >= 2  # a CT that sees no air cannot be told from MR
    flips = set()
    for case in cases:
        axes = case.image.affine[:3, :3]
        assert float((axes / axes.norm(dim=0)).abs().amax(0).max()) < 1 - 1e-4  # oblique
        flips.add(tuple(int(axis) for axis in axes.abs().argmax(0)))
        assert case.mask.any()
    assert len(flips) > 1  # axes in several orders
