"""Image files and DICOM folders -> MetaTensors in patient space (RAS mm)."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from medrl.data.dicom import is_dicom_folder, read_series
from medrl.data.slices import Policy
from medrl.types import InputError

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
ORTHONORMAL_TOLERANCE = 1e-3  # radians: 0.2 mm over 200 mm

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_image(path: Path | str, *, policy: Policy = "refuse", one_slice: bool = False) -> MetaTensor:
    """Read one volume.

    Args:
        path: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.
        policy: ``refuse`` a series with uneven or tilted slices, or ``resample`` it to a regular grid.
        one_slice: read a file of one slice too, (X, Y) as (X, Y, 1).

    Returns:
        (1, X, Y, Z) float32; ``affine`` is ras_from_voxel (float64, mm), ``meta`` holds geometry and file name only.

    Raises:
        InputError: missing or corrupt file, not one 3D volume, sheared or singular affine, NaN, or a constant image.
    """
    name = Path(path).name
    image = _load(Path(path), np.float32, policy, one_slice)
    if not bool(image.isfinite().all()):
        raise InputError(f"{name}: holds NaN or infinite values; expected finite intensities, repair the image")
    if bool(image.min() == image.max()):
        raise InputError(f"{name}: every voxel has the same value; expected an image, check the export")
    return image


def read_label_map(path: Path | str, *, one_slice: bool = False) -> MetaTensor:
    """Read one label map, (1, X, Y, Z) int32 with ``affine`` = ras_from_voxel; checks as in `read_image`.

    Raises:
        InputError: as `read_image` (a constant label is fine), values that are not whole numbers, or no label at all.
    """
    name = Path(path).name
    labels = _load(Path(path), np.float64, one_slice=one_slice)
    if not bool(labels.isfinite().all()) or bool((labels != labels.round()).any()):
        raise InputError(f"{name}: holds values that are not whole numbers; expected a label map, not an image")
    if not bool(labels.any()):
        raise InputError(f"{name}: the label map is empty; expected at least one voxel above 0")
    return labels.int()


def case_name(path: Path | str) -> str:
    """Return the case id of a file or DICOM folder: its name without the image suffix."""
    name = Path(path).name
    suffix = _image_suffix(name)
    return name[: -len(suffix)] if suffix else name


def find_cases(folder: Path | str) -> dict[str, Path]:
    """Find the cases of a folder: every image file, and every sub-folder that holds a DICOM series.

    Label maps are images too: keep them in another folder.  Hidden entries are left out.  A folder of nothing but
    slices is one case itself.

    Returns:
        case id -> path, sorted by case id.

    Raises:
        InputError: no such folder, no case in it, or two files with one case id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.name}: no such folder; expected a folder of images or DICOM series")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    images = [entry for entry in entries if _image_suffix(entry.name) and not entry.is_dir()]
    folders = [entry for entry in entries if entry.is_dir()]
    series = [entry for entry in folders if is_dicom_folder(entry)]
    if len(series) < len(folders):
        logger.warning("%d sub-folders without DICOM files were left out", len(folders) - len(series))
    cases: dict[str, Path] = {}
    for path in images + series:
        first = cases.setdefault(case_name(path), path)
        if first is not path:
            raise InputError(f"{first.name} and {path.name}: two inputs with one case id; rename or remove one")
    if not cases and is_dicom_folder(folder):
        return {case_name(folder): folder}
    if not cases:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise InputError(f"{folder.name}: holds no image; expected files ({suffixes}) or one folder per DICOM series")
    return dict(sorted(cases.items()))


def _load(path: Path, dtype: type[np.number], policy: Policy = "refuse", one_slice: bool = False) -> MetaTensor:
    if not path.exists():
        raise InputError(f"{path.name}: no such file or folder")
    if path.is_dir():
        array, ras_from_voxel = read_series(path, policy=policy)
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        array, ras_from_voxel = _read_nifti(path)
    elif _image_suffix(path.name):
        array, ras_from_voxel = _read_with_simpleitk(path)
    else:
        raise InputError(f"{path.name}: not an image file; expected one of {' '.join(IMAGE_SUFFIXES)}")
    array, ras_from_voxel = _as_volume(array, path.name, one_slice), _check_affine(ras_from_voxel, path.name)
    meta = {
        "filename_or_obj": str(path),
        "original_affine": torch.as_tensor(ras_from_voxel).clone(),
        "spatial_shape": np.asarray(array.shape),
        "space": "RAS",
        "original_channel_dim": "no_channel",
    }
    voxels = torch.as_tensor(np.ascontiguousarray(array, dtype=dtype))
    return MetaTensor(voxels[None], affine=torch.as_tensor(ras_from_voxel), meta=meta)


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    try:
        image = nibabel.load(path, mmap=False)
        if image.get_data_dtype().kind not in "biuf":
            raise InputError(f"{path.name}: voxels are colours or complex numbers; expected one number a voxel")
        ras_from_voxel = np.array(image.affine, dtype=np.float64)
        ras_from_voxel[:3] *= {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)  # metres, micrometres
        return np.asarray(image.dataobj), ras_from_voxel
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name}: cannot be read; the file is truncated or not NIfTI, export it again") from None


def _read_with_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{path.name}: cannot be read; the file is truncated or corrupt, export it again") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path.name}: has several values a voxel; expected one number a voxel")
    axes = image.GetDimension()
    lps_from_voxel = np.eye(4)
    if axes >= 3:
        direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
        lps_from_voxel[:3, :3] = direction * image.GetSpacing()[:3]
        lps_from_voxel[:3, 3] = image.GetOrigin()[:3]
    return SimpleITK.GetArrayFromImage(image).T, LPS_TO_RAS @ lps_from_voxel


def _as_volume(array: np.ndarray, name: str, one_slice: bool) -> np.ndarray:
    """Drop trailing axes of length 1 behind the third; anything else that is not 3D, or one slice, is refused."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if one_slice and array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or sorted(array.shape)[one_slice] < 2 or array.size == 0:
        size = " x ".join(map(str, array.shape))
        raise InputError(f"{name}: has size {size}; expected one 3D volume, split or stack the images first")
    return array


def _check_affine(ras_from_voxel: np.ndarray, name: str) -> np.ndarray:
    spacing_mm = np.linalg.norm(ras_from_voxel[:3, :3], axis=0)
    if not np.isfinite(ras_from_voxel).all() or spacing_mm.min() < 1e-6:
        raise InputError(f"{name}: the voxel-to-patient matrix is singular or not finite; expected a valid geometry")
    axes = ras_from_voxel[:3, :3] / spacing_mm
    if np.abs(axes.T @ axes - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
        raise InputError(f"{name}: the voxel axes are not at right angles (sheared); resample the image first")
    return ras_from_voxel


def _image_suffix(name: str) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
