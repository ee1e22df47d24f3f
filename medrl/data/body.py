"""Where the patient is in a CT or MR volume."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from medrl.data.regions import is_ct
from medrl.geometry.grids import spacing_of

TISSUE_HU = -300.0
TISSUE_SHARE = 0.10  # of the range from the 1 to the 99 % quantile of an MR image
SMOOTHING_MM = 2.0


def tissue_threshold(image: MetaTensor) -> float:
    """Value above which a voxel of an image (1, X, Y, Z) is tissue, not air."""
    if is_ct(image.as_tensor()):
        return TISSUE_HU
    low, high = np.percentile(image.as_tensor().cpu().numpy(), (1, 99))
    return float(low + TISSUE_SHARE * (high - low))


def find_body(image: MetaTensor) -> np.ndarray:
    """Find the body in an image (1, X, Y, Z): the largest part of what is bright, closed and without holes.

    Returns (X, Y, Z) bool; all False where nothing is brighter than the rest.
    """
    from scipy.ndimage import gaussian_filter, label

    voxels = image.as_tensor()[0].cpu().numpy()
    threshold = tissue_threshold(image)
    sigma = SMOOTHING_MM / spacing_of(torch.as_tensor(image.affine).double()).numpy()
    inside = np.pad(gaussian_filter(voxels, sigma, mode="nearest", truncate=3.0) > threshold, 3)
    closed = ~_dilate(~_dilate(inside))
    parts, count = label(closed)
    if count == 0:
        return np.zeros(voxels.shape, bool)
    body = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    rest, _ = label(~body)
    return (rest != rest[0, 0, 0])[3:-3, 3:-3, 3:-3]


def _dilate(inside: np.ndarray) -> np.ndarray:
    """Dilate by the ball of radius 2 voxels, which is a cube of 3 widened by one step along an axis."""
    for axis in range(3):
        inside = inside | np.roll(inside, 1, axis) | np.roll(inside, -1, axis)
    steps = [np.roll(inside, step, axis) for axis in range(3) for step in (1, -1)]
    return np.logical_or.reduce([inside, *steps])
