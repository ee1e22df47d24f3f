"""Synthetic pairs: one anatomy, two modalities, two fields of view."""

from __future__ import annotations

import numpy as np
import torch

from medrl.data.body import find_body
from medrl.data.pair_phantoms import pair_phantom, write_pair_phantoms
from medrl.data.pairs import find_pairs, pair_files, read_pair, read_pairs
from medrl.data.phantoms import ORGANS, draw_patient, random_affine, render
from medrl.geometry.grids import spacing_of
from medrl.geometry.transforms import invert, resample, transform_points


def test_written_pairs_are_aligned(tmp_path, generator):
    path = write_pair_phantoms(tmp_path, 5, generator, shape=(28, 26, 30), spacing_mm=6.0)
    assert path == tmp_path / "dataset.json"
    assert [len(read_pairs(tmp_path, section)) for section in ("training", "validation", "test")] == [3, 1, 1]
    cases = find_pairs(tmp_path)
    assert len(cases) == 5
    cut = 0
    for folder in cases.values():
        fixed, moving = read_pair(*pair_files(folder))
        body = torch.as_tensor(find_body(fixed))
        other = torch.as_tensor(find_body(moving)).float()

        def overlap(shift_mm, body=body, other=other, fixed=fixed, moving=moving):
            """Dice of the two bodies inside the moving field of view, and whether that cuts the body."""
            matrix = torch.eye(4, dtype=torch.float64)
            matrix[:3, 3] = torch.as_tensor(shift_mm)
            seen = resample(other, moving.affine, matrix, tuple(fixed.shape[1:]), fixed.affine)
            inside = seen.isfinite()
            total = body[inside].sum() + (seen > 0.5)[inside].sum()
            return float(2 * (body & (seen > 0.5))[inside].sum() / total), bool(body[~inside].any())

        aligned, is_cut = overlap((0.0, 0.0, 0.0))
        cut += is_cut
        assert aligned > 0.75
        for axis in range(3):
            for step_mm in (-15.0, 15.0):
                assert overlap(np.eye(3)[axis] * step_mm)[0] < aligned
        # the boxes tell nothing of the alignment
        axes = (invert(torch.as_tensor(fixed.affine)) @ moving.affine)[:3, :3]
        axes = axes * spacing_of(torch.as_tensor(fixed.affine))[:, None] / spacing_of(torch.as_tensor(moving.affine))
        assert float(axes.abs().amax(0).min()) < 0.9995
    assert cut == 5


def test_same_seed_same_pair():
    first, second = (pair_phantom(np.random.default_rng(4), shape=(16, 16, 16), spacing_mm=10.0) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_patient_in_two_modalities(generator):
    """Organs are where they are said to be, in both modalities and on any grid."""
    first = random_affine(generator, (5.0, 6.0, 4.5))
    patient = draw_patient(generator, shape=(40, 34, 46), ras_from_voxel=first)
    middle = transform_points(torch.as_tensor(first), torch.tensor([[19.5, 16.5, 22.5]], dtype=torch.float64))[
        0
    ].numpy()
    second = random_affine(generator, (4.0, 4.0, 7.0))
    second[:3, 3] = middle - second[:3, :3] @ np.array([24.5, 24.5, 14.5])
    for modality, shape, affine in (("ct", (40, 34, 46), first), ("mr", (50, 50, 30), second)):
        voxels = render(patient, generator, shape=shape, ras_from_voxel=affine, modality=modality)
        places = np.stack([np.linalg.inv(affine) @ [*patient.position_mm(name), 1] for name in ORGANS])
        values = voxels[tuple(np.rint(places[:, :3]).astype(int).T)]
        brightness = [getattr(organ, modality) for organ in ORGANS.values()]
        assert np.corrcoef(values, brightness)[0, 1] > 0.95  # MR has a gain and a bias field
        if modality == "ct":
            np.testing.assert_allclose(values, brightness, atol=75)
