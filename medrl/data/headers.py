"""Whether the header of an image file says where its voxels lie."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from medrl.data.read import NIFTI_SUFFIXES
from medrl.types import InputError

logger = logging.getLogger(__name__)

SPACING_FIELDS = re.compile(rb"^\s*(spacings|space directions|ElementSpacing|ElementSize|TransformMatrix)\s*[:=]", re.M)
HEADER_BYTES = 65536


def check_geometry_known(path: Path | str) -> None:
    """Check that a NIfTI, NRRD or MetaImage file states its voxel size; a DICOM series always does.

    A NIfTI file with a voxel size but without orientation is let through with a warning: its left and right are a
    guess of the reader.  Files that cannot be read are left to `read_image`.

    Raises:
        InputError: no voxel size, so that lengths in mm mean nothing.
    """
    path = Path(path)
    if not path.is_file():
        return
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        header = _nifti_header(path)
        if header is None or int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0:
            return
        sizes = [float(size) for size in header["pixdim"][1:4]]
        if all(size > 0 for size in sizes) and sizes != [1.0, 1.0, 1.0]:
            logger.warning("%s: has a voxel size but no orientation; left and right are a guess", path.name)
            return
    else:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
        if SPACING_FIELDS.search(start) or not start.startswith((b"NRRD", b"ObjectType", b"NDims", b"Comment")):
            return
    raise InputError(f"{path.name}: its header says nothing about geometry; expected voxel sizes, convert it again")


def _nifti_header(path: Path) -> Any:
    import nibabel

    try:
        return nibabel.load(path).header
    except Exception:  # whatever it is, reading the voxels says it better
        return None
