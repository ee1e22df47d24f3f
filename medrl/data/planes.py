"""Planes of a volume in patient axes, for pictures and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medrl.geometry.grids import sample
from medrl.types import MISSING, InputError, Landmark


def as_volume(image: Any, ras_from_voxel: Any) -> tuple[Tensor, Tensor]:
    """Return an image (1, X, Y, Z) or (X, Y, Z) as a CPU tensor (X, Y, Z) and its matrix (4, 4) as float64.

    Raises InputError if a shape is wrong or the matrix cannot be inverted.
    """
    if isinstance(image, Tensor):
        volume = torch.as_tensor(image.detach().cpu().numpy())  # drops what a MetaTensor carries
    else:
        array = np.asarray(image)  # may be read-only, flipped or of the other byte order, as files map into memory
        volume = torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    shape = tuple(volume.shape)
    volume = volume[0] if volume.ndim == 4 and volume.shape[0] == 1 else volume
    if volume.ndim != 3 or volume.numel() == 0:
        raise InputError(f"image has shape {shape}, expected (1, X, Y, Z) or (X, Y, Z): pass one channel of one volume")
    matrix = torch.as_tensor(ras_from_voxel).detach().cpu().double()
    if matrix.shape != (4, 4) or not matrix.isfinite().all() or float(torch.linalg.det(matrix[:3, :3])) == 0:
        raise InputError("ras_from_voxel is not an invertible 4x4 matrix: pass the affine of the image (RAS mm)")
    return volume, matrix


def present_landmarks(landmarks: Sequence[Landmark]) -> list[Landmark]:
    """Return the landmarks that are not missing.  Raises InputError if one of them has no finite position."""
    present = [mark for mark in landmarks if mark.status != MISSING]
    for mark in present:
        if not np.isfinite(mark.position_mm).all():
            raise InputError(f"landmark {mark.label} has no finite position; expected three numbers or status missing")
    return present


def display_window(volume: Tensor, window: tuple[float, float] | None = None) -> tuple[float, float]:
    """Return the intensities shown black and white; by default the 0.5 and 99.5 % quantiles of the finite voxels."""
    low, high = window or finite_quantiles(volume, 0.005, 0.995)
    if window and not low < high:
        raise InputError(f"window ({low:g}, {high:g}) is empty; expected (low, high) with low < high")
    return low, high if high > low else low + 1.0


def finite_quantiles(volume: Tensor, *shares: float) -> list[float]:
    """Quantiles of about a million evenly spread finite voxels; zeros if there is none."""
    values = volume.flatten()
    values = values[:: max(1, len(values) // 1_000_000)].float()
    values = values[values.isfinite()]
    return torch.quantile(values, torch.tensor(shares)).tolist() if len(values) else [0.0] * len(shares)


def cut_plane(
    volume: Tensor, ras_from_voxel: Tensor, point_mm: Any, across: int, up: int, box_mm: tuple[Any, Any], step_mm: float
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Sample the plane through a point that two RAS axes span; one sample lies exactly on the point.

    Returns values (up, across), NaN outside the volume, and the extent in RAS mm (low and high across, low and high
    up) of the samples as squares of ``step_mm``, as matplotlib's ``imshow(origin="lower")`` takes it.
    """
    point = np.asarray(point_mm, np.float64)
    first = [math.floor((float(box_mm[0][a]) - point[a]) / step_mm) for a in (across, up)]
    last = [math.ceil((float(box_mm[1][a]) - point[a]) / step_mm) for a in (across, up)]
    ras_from_plane = torch.eye(4, dtype=torch.float64)
    ras_from_plane[:3, :3] = 0
    ras_from_plane[:3, 3] = torch.from_numpy(point)
    for column, axis in enumerate((across, up)):
        ras_from_plane[axis, column] = step_mm
        ras_from_plane[axis, 3] += first[column] * step_mm
    shape = (last[0] - first[0] + 1, last[1] - first[1] + 1, 1)
    values = sample(volume, torch.linalg.inv(ras_from_voxel) @ ras_from_plane, shape)[..., 0].T.numpy()
    left, low = (float(point[axis] + (k - 0.5) * step_mm) for axis, k in zip((across, up), first, strict=True))
    return values, (left, left + shape[0] * step_mm, low, low + shape[1] * step_mm)
