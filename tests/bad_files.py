"""One file for every way in which an image can be wrong, and a DICOM series of a patient whose name must not leak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SECRETS = ("Planted^Name", "MRN-4711", "19500203")
SERIES = generate_uid()
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_bad_images(folder: Path) -> dict[str, str]:
    """Write bad images into a folder; returns case id -> words of the reason that is expected."""
    folder.mkdir(parents=True, exist_ok=True)
    good = np.random.default_rng(0).integers(0, 200, (20, 22, 24)).astype(np.int16)
    with_nan, flat = good.astype(np.float32), np.full(good.shape, 7, np.int16)
    with_nan[3, 3, 3] = np.nan
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 0.7
    straight = np.diag([2.0, 2.0, 2.0, 1.0])
    for name, voxels, affine in (
        ("four_d", np.stack([good, good], -1), straight), ("two_d", good[..., 0], straight),
        ("with_nan", with_nan, straight), ("constant", flat, straight), ("sheared", good, sheared),
        ("truncated", good, straight),
    ):  # fmt: skip
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, code=1)  # a qform cannot hold shear
        nibabel.save(image, folder / f"{name}.nii.gz")
    whole = (folder / "truncated.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "no_image.nrrd").write_text("this is not an image")
    return {
        "four_d": "expected one 3D volume", "two_d": "expected one 3D volume", "with_nan": "NaN",
        "constant": "every voxel has the same value", "sheared": "not at right angles", "truncated": "cannot be read",
        "no_image": "cannot be read",
    }  # fmt: skip


def data_set(path: Path, storage: str = CTImageStorage) -> FileDataset:
    """A DICOM object of the patient, without pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    item = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    item.PatientName, item.PatientID, item.PatientBirthDate = SECRETS
    item.SeriesInstanceUID, item.ImageType = SERIES, ["ORIGINAL", "PRIMARY", "AXIAL"]
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 1
    return item


def write_slices(
    folder: Path,
    voxels: np.ndarray,
    ras_from_voxel: np.ndarray,
    shifts_mm: np.ndarray | None = None,
    edit: Callable[[int, FileDataset], object] | None = None,
    *,
    rescale: tuple[int, int] = (2, -1000),
) -> Path:
    """Write int16 voxels (X, Y, Z) as a CT series, one file a slice in random order of names; returns the folder.

    The third axis must be the slice normal; ``shifts_mm`` (N, 3) moves slices, ``edit(index, item)`` changes tags, and
    ``rescale`` is slope and intercept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps_from_voxel = LPS @ ras_from_voxel
    spacing = np.linalg.norm(lps_from_voxel[:3, :3], axis=0)
    names = np.random.default_rng(1).permutation(voxels.shape[2])
    for index, name in enumerate(names):
        item = data_set(folder / f"{name:03d}.dcm")
        item.Columns, item.Rows = voxels.shape[:2]
        item.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        item.ImageOrientationPatient = [*lps_from_voxel[:3, 0] / spacing[0], *lps_from_voxel[:3, 1] / spacing[1]]
        position = (lps_from_voxel @ [0, 0, index, 1])[:3]
        position = position if shifts_mm is None else position + shifts_mm[index]
        item.ImagePositionPatient = [f"{number:.6f}" for number in position]
        item.RescaleSlope, item.RescaleIntercept = rescale
        item.PixelData = np.ascontiguousarray(voxels[..., index].T).tobytes()
        if edit:
            edit(index, item)
        item.save_as(folder / f"{name:03d}.dcm")
    return folder
