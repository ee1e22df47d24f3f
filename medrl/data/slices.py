"""Slices anywhere in space -> one regular grid, or a refusal; never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medrl.types import InputError

Policy = Literal["refuse", "resample"]

GAP_TOLERANCE_MM = 0.01
GAP_TOLERANCE = 0.01  # of the slice distance; the larger of the two counts
TILT_TOLERANCE_MM = 0.1  # sideways drift over the whole stack; above the rounding of written orientations


@dataclass(frozen=True)
class Frame:
    """One slice: where its pixels are, and where it lies (patient space, mm)."""

    path: Path
    index: int  # in a multi-frame file
    size: tuple[int, int]  # columns, rows
    spacing_mm: np.ndarray  # (2,) along a row, along a column
    axes: np.ndarray  # (2, 3) unit vectors of these
    position: np.ndarray  # (3,) centre of the first pixel


def check_alike(frames: Sequence[Frame], where: str) -> None:
    """Check that slices can be stacked; InputError for a single one, or for mixed orientations, sizes or spacings."""
    first = frames[0]
    if len(frames) < 2:
        raise InputError(f"{where}: holds a single slice; expected a volume")
    if any(np.abs(frame.axes - first.axes).max() > 1e-3 for frame in frames):
        raise InputError(f"{where}: slices of different orientation; expected one volume, remove localizers")
    stretch = max(np.abs(frame.spacing_mm / first.spacing_mm - 1).max() for frame in frames)
    if stretch > 1e-3 or any(frame.size != first.size for frame in frames):
        raise InputError(f"{where}: slices of different size or pixel spacing; expected one volume")


def stacking_order(positions: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the order of slices along their normal; ``positions`` (N, 3) mm, ``axes`` (2, 3) unit vectors."""
    return np.argsort(positions @ np.cross(*axes), kind="stable")


def check_stack(positions: np.ndarray, axes: np.ndarray, where: str, *, policy: Policy = "refuse") -> bool:
    """Judge sorted slices: return whether they form a regular grid as they are.

    Args:
        positions: (N, 3) first pixel centres, mm, sorted by `stacking_order`.
        axes: (2, 3) unit vectors of the first and second image axis.
        where: name for the message.
        policy: ``resample`` answers False for uneven or tilted slices where ``refuse`` raises.

    Raises:
        InputError: a slice twice, or under ``refuse`` a missing slice, uneven distances or a gantry tilt.
    """
    normal = np.cross(*axes)
    along_mm = positions @ normal
    gaps_mm = np.diff(along_mm)
    typical_mm = float(np.median(gaps_mm))
    tolerance_mm = max(GAP_TOLERANCE_MM, GAP_TOLERANCE * typical_mm)
    if gaps_mm.min() <= tolerance_mm:
        count = int((gaps_mm <= tolerance_mm).sum())
        raise InputError(f"{where}: {count} slices lie where another one does; expected one volume, remove the copies")
    offsets = positions - positions[0]
    drift_mm = float(np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max())
    uneven = np.abs(gaps_mm - typical_mm) > tolerance_mm
    if not uneven.any() and drift_mm <= TILT_TOLERANCE_MM:
        return True
    if policy == "resample":
        return False
    if uneven.any():
        first = int(uneven.argmax())
        raise InputError(
            f"{where}: the gap after slice {first + 1} is {gaps_mm[first]:.2f} mm, elsewhere {typical_mm:.2f} mm; "
            "expected even slices: a slice is missing, export the series again or allow resampling"
        )
    degrees = np.degrees(np.arctan2(drift_mm, along_mm[-1] - along_mm[0]))
    raise InputError(
        f"{where}: slices are shifted sideways by {drift_mm:.2f} mm over the stack (gantry tilt of {degrees:.1f} "
        "degrees); expected a straight stack, allow resampling"
    )


def stack_grid(positions: np.ndarray, axes: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Return patient_from_voxel (4, 4) of a regular stack; ``spacing_mm`` (2,) along the first and second axis."""
    step_mm = (positions[-1] - positions[0]) @ np.cross(*axes) / (len(positions) - 1)
    return _matrix(positions[0], axes, (*spacing_mm, step_mm))


def resample_stack(
    slices: np.ndarray, positions: np.ndarray, axes: np.ndarray, spacing_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put uneven or tilted slices on a regular grid that covers all of them, linearly.

    Args:
        slices: (X, Y, N), sorted.
        positions, axes, spacing_mm: as in `check_stack` and `stack_grid`.

    Returns:
        the volume (X', Y', Z) float32, whose corners outside the slices hold the least value, and patient_from_voxel.
    """
    from scipy.ndimage import affine_transform

    along_mm = (positions - positions[0]) @ np.cross(*axes)
    # (N, 2) pixels, sideways; less than a thousandth is the header's rounding and must not cost a border row
    shifts = np.round((positions - positions[0]) @ axes.T / spacing_mm, 3)
    start = np.floor(shifts.min(axis=0)).astype(int)
    size = slices.shape[:2] + np.ceil(shifts.max(axis=0)).astype(int) - start
    step_mm = float(np.median(np.diff(along_mm)))
    count = int(np.floor(along_mm[-1] / step_mm + 0.5)) + 1
    least = float(slices.min())
    straight = np.stack(
        [
            affine_transform(
                slices[..., index].astype(np.float32), [1.0, 1.0], start - shift, tuple(size), order=1, cval=least
            )
            for index, shift in enumerate(shifts)
        ]
    )
    wanted_mm = np.minimum(np.arange(count) * step_mm, along_mm[-1])
    below = np.clip(np.searchsorted(along_mm, wanted_mm, side="right") - 1, 0, len(along_mm) - 2)
    weight = ((wanted_mm - along_mm[below]) / np.diff(along_mm)[below])[:, None, None].astype(np.float32)
    volume = (1 - weight) * straight[below] + weight * straight[below + 1]
    origin = positions[0] + (start * spacing_mm) @ axes
    return np.moveaxis(volume, 0, 2), _matrix(origin, axes, (*spacing_mm, step_mm))


def _matrix(origin: np.ndarray, axes: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    patient_from_voxel = np.eye(4)
    patient_from_voxel[:3, :3] = np.column_stack([*axes, np.cross(*axes)]) * spacing_mm
    patient_from_voxel[:3, 3] = origin
    return patient_from_voxel
