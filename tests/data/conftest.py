"""Oblique, flipped, permuted and anisotropic geometries for the file tests."""

from __future__ import annotations

import numpy as np
import pytest

from medrl.data.phantoms import random_affine

LAS = np.array([[-1.5, 0, 0, 60], [0, 1.5, 0, -40], [0, 0, 1.5, 12.5], [0, 0, 0, 1]])
PERMUTED = np.array([[0, 0, 2.5, -30], [0.7, 0, 0, 8], [0, -0.7, 0, 90], [0, 0, 0, 1]])
OBLIQUE = random_affine(np.random.default_rng(3), (0.8, 1.1, 3.0), oblique_degrees=25.0)


@pytest.fixture(params=[LAS, PERMUTED, OBLIQUE], ids=["las", "permuted", "oblique"])
def affine(request) -> np.ndarray:
    """A ras_from_voxel (4, 4), mm; rounded to float32, the precision of a NIfTI header."""
    return request.param.astype(np.float32).astype(np.float64)
