"""One file for every way in which an image can be wrong, and a DICOM series of a patient whose name must not leak."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SECRETS = ("Planted^Name", "MRN-4711", "19500203")


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


def write_series(folder: Path, voxels: np.ndarray, ras_from_voxel: np.ndarray) -> None:
    """Write int16 voxels (X, Y, Z) as a CT series with SECRETS in its tags; the third axis must be the slice normal."""
    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras_from_voxel
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    series = generate_uid()
    for index in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        item = FileDataset(str(folder / f"{index:03d}.dcm"), {}, file_meta=meta, preamble=bytes(128))
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.PatientName, item.PatientID, item.PatientBirthDate = SECRETS
        item.SeriesInstanceUID, item.ImageType = series, ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 1
        item.Columns, item.Rows = voxels.shape[:2]
        item.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        item.ImageOrientationPatient = [*lps[:3, 0] / spacing[0], *lps[:3, 1] / spacing[1]]
        item.ImagePositionPatient = [f"{number:.6f}" for number in (lps @ [0, 0, index, 1])[:3]]
        item.RescaleSlope, item.RescaleIntercept = 1, 0
        item.PixelData = np.ascontiguousarray(voxels[..., index].T).tobytes()
        item.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)
