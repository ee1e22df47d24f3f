"""Strict ingest of one DICOM series: a folder of slices, or of enhanced multi-frame files, -> one volume.

Common readers accept a series with a missing, repeated or tilted slice and give it a wrong geometry without a word;
this one refuses, or resamples when asked.  Messages name tags and counts, never a patient tag's value.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medrl.data.slices import (
    Frame,
    Policy,
    check_alike,
    check_stack,
    resample_stack,
    stack_grid,
    stacking_order,
)
from medrl.types import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
HEADER = [
    "SeriesInstanceUID", "ImageType", "NumberOfFrames", "SamplesPerPixel", "Rows", "Columns",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


def is_dicom_folder(folder: Path) -> bool:
    """Return whether a folder holds a DICOM file (one with the DICM mark), at its top level."""
    return any(_is_dicom(path) for path in sorted(folder.iterdir()) if path.is_file())


def read_series(folder: Path | str, *, policy: Policy = "refuse") -> tuple[np.ndarray, np.ndarray]:
    """Read the one image series of a folder.

    Args:
        folder: DICOM files of one series; other files are left out.
        policy: ``refuse`` an uneven or tilted stack, or ``resample`` it linearly to a regular grid.

    Returns:
        the voxels (X, Y, Z) float32 in units of the modality (HU for CT), and ras_from_voxel (4, 4) in mm.

    Raises:
        InputError: no image, several series, a localizer, mixed orientations or sizes, colour, a repeated slice, and
            under ``refuse`` a missing slice or a gantry tilt; unreadable or undecodable files.
    """
    folder = Path(folder)
    where = folder.name
    with warnings.catch_warnings(action="ignore"):  # pydicom's warnings quote the values of tags
        frames = _find_frames(folder)
        check_alike(frames, where)
        axes, spacing_mm = frames[0].axes, frames[0].spacing_mm
        order = stacking_order(np.stack([frame.position for frame in frames]), axes)
        frames = [frames[index] for index in order]
        positions = np.stack([frame.position for frame in frames])
        regular = check_stack(positions, axes, where, policy=policy)
        voxels = _read_pixels(frames)
    if regular:
        return voxels, LPS_TO_RAS @ stack_grid(positions, axes, spacing_mm)
    voxels, lps_from_voxel = resample_stack(voxels, positions, axes, spacing_mm)
    logger.warning("uneven or tilted slices were resampled to a grid of %s voxels", " x ".join(map(str, voxels.shape)))
    return voxels, LPS_TO_RAS @ lps_from_voxel


def _find_frames(folder: Path) -> list[Frame]:
    headers: list[tuple[Path, Dataset]] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if _is_dicom(path):
            header = _read_file(path, stop_before_pixels=True, specific_tags=HEADER)
            if "Rows" in header:  # reports and presentation states have no pixels
                headers.append((path, header))
        elif path.name.lower().endswith(DICOM_SUFFIXES):
            raise InputError(f"{path.name}: not a DICOM file, or cut short; export the series again")
    if not headers:
        raise InputError(f"{folder.name}: holds no DICOM image; expected the files of one series")
    series = Counter(str(header.get("SeriesInstanceUID", "")) for _, header in headers)
    if len(series) > 1:
        counts = ", ".join(map(str, sorted(series.values(), reverse=True)))
        raise InputError(f"{folder.name}: holds {len(series)} series (of {counts} files); expected one a folder")
    if any("LOCALIZER" in (header.get("ImageType") or []) for _, header in headers):
        raise InputError(f"{folder.name}: holds a localizer; expected the slices of one volume, remove it")
    if any(header.get("SamplesPerPixel", 1) != 1 for _, header in headers):
        raise InputError(f"{folder.name}: holds colour images; expected one value a pixel")
    try:
        return [frame for path, header in headers for frame in _frames_of(path, header)]
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder.name}: a geometry tag cannot be read; export the series again") from None


def _frames_of(path: Path, header: Dataset) -> Iterator[Frame]:
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != int(header.get("NumberOfFrames") or 1) and (groups or header.get("NumberOfFrames", 1) != 1):
        raise InputError(f"{path.name}: a multi-frame file without a position for every frame; convert it to slices")
    for index, group in enumerate(groups or [{}]):

        def look_up(sequence: str, tag: str, count: int, group: Any = group) -> np.ndarray:
            for holder in (group, shared):
                item = (holder.get(sequence) or [{}])[0]
                if tag in item:
                    return _numbers(item[tag].value, tag, count, path)
            return _numbers(header.get(tag), tag, count, path)

        axes = look_up("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
            raise InputError(f"{path.name}: ImageOrientationPatient is not two unit vectors at right angles")
        axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
        spacing_mm = look_up("PixelMeasuresSequence", "PixelSpacing", 2)[::-1]  # DICOM: between rows, between columns
        position = look_up("PlanePositionSequence", "ImagePositionPatient", 3)
        if spacing_mm.min() <= 0:
            raise InputError(f"{path.name}: PixelSpacing is not positive")
        yield Frame(path, index, (int(header.Columns), int(header.Rows)), spacing_mm, axes, position)


def _read_pixels(frames: list[Frame]) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    columns, rows = frames[0].size
    voxels = np.empty((columns, rows, len(frames)), dtype=np.float32)
    path, dataset, pixels = None, None, np.empty(0)
    for number, frame in enumerate(frames):
        if frame.path != path:
            path, dataset = frame.path, _read_file(frame.path)
            try:
                pixels = dataset.pixel_array.reshape(-1, rows, columns)
            except (AttributeError, ValueError, RuntimeError, NotImplementedError):
                raise InputError(
                    f"{path.name}: its pixels cannot be decoded; the file is cut short, or compressed in a way that "
                    "needs another decoder (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg)"
                ) from None
        voxels[..., number] = apply_modality_lut(pixels[frame.index], _rescale_of(dataset, frame.index)).T
    return voxels


def _rescale_of(dataset: Dataset, index: int) -> Dataset:
    """Return what holds RescaleSlope and RescaleIntercept of a frame: a functional group or the data set."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[index : index + 1], *shared]:
        if group.get("PixelValueTransformationSequence"):
            return group.PixelValueTransformationSequence[0]
    return dataset


def _read_file(path: Path, **kwargs: Any) -> Dataset:
    import pydicom

    try:
        return pydicom.dcmread(path, **kwargs)
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, pydicom.errors.InvalidDicomError):
        raise InputError(f"{path.name}: cannot be read; the file is cut short or not DICOM, export it again") from None


def _numbers(value: Any, tag: str, count: int, path: Path) -> np.ndarray:
    try:
        numbers = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"{path.name}: {tag} is missing or wrong; expected {count} numbers, export the series again")
    return numbers


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        raise InputError(f"{path.name}: cannot be opened; check its permissions") from None
