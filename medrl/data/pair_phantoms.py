"""Synthetic patients seen by CT and by MR, aligned in world space, for tests, smoke trainings and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrl.data.dataset import split_cases
from medrl.data.pairs import PairFiles, write_pair_dataset
from medrl.data.phantoms import draw_patient, random_affine, render
from medrl.data.write import write_image

FIELD = 0.6  # mean side of the MR field of view as a share of that of the CT
OFFSET = 0.06  # of its middle, as a share of the CT's sides


class PairPhantom(NamedTuple):
    """A CT and an MR image of one patient, (X, Y, Z) int16, with ras_from_voxel (4, 4) of each."""

    ct: np.ndarray
    ct_affine: np.ndarray
    mr: np.ndarray
    mr_affine: np.ndarray


def pair_phantom(
    generator: np.random.Generator, *, shape: Sequence[int] = (48, 48, 48), spacing_mm: float = 4.0
) -> PairPhantom:
    """Draw one patient, and render the same anatomy as CT and as MR (see `medrl.data.phantoms`).

    The CT holds the whole body.  The MR has another, smaller field of view with other voxels and axes, which cuts the
    body; so no edge of one image is one of the other.  Both lie in one world: the right registration is the identity.
    """
    ct_affine = random_affine(generator, spacing_mm * generator.uniform(0.8, 1.25, 3))
    patient = draw_patient(generator, shape=shape, ras_from_voxel=ct_affine)
    ct = render(patient, generator, shape=shape, ras_from_voxel=ct_affine, modality="ct")
    spacing = spacing_mm * generator.uniform(0.8, 1.25, 3)
    mr_affine = random_affine(generator, spacing)
    sides_mm = np.linalg.norm(ct_affine[:3, :3], axis=0) * shape
    field_mm = FIELD * generator.uniform(0.85, 1.15, 3) * sides_mm.mean()
    mr_shape = tuple(int(count) for count in np.ceil(field_mm / spacing))
    middle = ct_affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + ct_affine[:3, 3]
    middle = middle + generator.uniform(-OFFSET, OFFSET, 3) * sides_mm.mean()
    mr_affine[:3, 3] = middle - mr_affine[:3, :3] @ ((np.asarray(mr_shape) - 1) / 2)
    mr = render(patient, generator, shape=mr_shape, ras_from_voxel=mr_affine, modality="mr")
    return PairPhantom(ct, ct_affine, mr, mr_affine)


def write_pair_phantoms(
    folder: Path | str,
    count: int,
    generator: np.random.Generator,
    *,
    shape: Sequence[int] = (48, 48, 48),
    spacing_mm: float = 4.0,
    validation: float = 0.2,
    test: float = 0.2,
) -> Path:
    """Write ``<case>/fixed.nii.gz`` (CT) and ``<case>/moving.nii.gz`` (MR) of ``count`` patients, and dataset.json.

    ``folder`` may be used as the folder of cases of an inference, too.  Returns the path of dataset.json.
    """
    folder = Path(folder)
    cases = [f"patient_{number:03d}" for number in range(count)]
    split = split_cases(cases, validation=validation, test=test, generator=generator)
    files = {}
    for case in cases:
        pair = pair_phantom(generator, shape=shape, spacing_mm=spacing_mm)
        files[case] = PairFiles(case, case, folder / case / "fixed.nii.gz", folder / case / "moving.nii.gz")
        write_image(files[case].fixed, pair.ct, pair.ct_affine)
        write_image(files[case].moving, pair.mr, pair.mr_affine)
    sections = {section: [files[case] for case in members] for section, members in split.items()}
    return write_pair_dataset(folder, "pair_phantoms", sections)
