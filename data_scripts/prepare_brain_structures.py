"""Make the training folder of ``brain_mri_landmark_detection`` from skull-stripped and whole T1 heads.

    python data_scripts/prepare_brain_structures.py --stripped FOLDER --whole FOLDER --output OUT
        [--validation NAME ...] [--test NAME ...]

``--stripped``: ``<id>_T1_brain.nii.gz`` with ``<id>_landmarks.csv`` (centroids of named structures, LPS mm), as in the
OASIS volumes of the MICCAI 2012 multi-atlas challenge.  ``--whole``: ``<id>_T1.nii.gz`` with ``<id>_T1_labels.nii.gz``
(MUSE numbering), as NiChart's examples; each head is used whole and, through its label map, skull-stripped.
Landmarks of the whole heads are the centroids of the same structures.  Images stay where they are; OUT gets the
landmarks, the stripped copies and ``dataset.json``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from medrl.data.dataset import write_dataset
from medrl.data.landmarks import landmarks_from_labels
from medrl.data.read import read_image, read_label_map
from medrl.data.write import write_image, write_truth_csv
from medrl.types import InputError

STRUCTURES = {
    47: "hippocampus_R", 48: "hippocampus_L", 31: "amygdala_R", 32: "amygdala_L", 59: "thalamus_R", 60: "thalamus_L",
    36: "caudate_R", 37: "caudate_L", 57: "putamen_R", 58: "putamen_L", 55: "pallidum_R", 56: "pallidum_L",
    51: "lateral_ventricle_R", 52: "lateral_ventricle_L", 4: "third_ventricle", 11: "fourth_ventricle",
    35: "brain_stem",
}  # fmt: skip
VALIDATION = ("1006", "Subj10")
TEST = ("1002", "1010", "1101", "1113", "Subj7", "Subj19")


def prepare(
    stripped: Path | None, whole: Path | None, output: Path, validation: tuple[str, ...], test: tuple[str, ...]
) -> Path:
    """Write OUT/dataset.json; returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[tuple[Path, Path | None]]] = {"training": [], "validation": [], "test": []}

    def add(case: str, image: Path, landmarks: Path) -> None:
        section = "test" if case in test else "validation" if case in validation else "training"
        sections[section].append((image, landmarks))

    for image in sorted(stripped.glob("*_T1_brain.nii.gz")) if stripped else []:
        case = image.name.removesuffix("_T1_brain.nii.gz")
        add(case, image, stripped / f"{case}_landmarks.csv")
    for image in sorted(whole.glob("*_T1.nii.gz")) if whole else []:
        case = image.name.removesuffix("_T1.nii.gz")
        label_map = read_label_map(whole / f"{case}_T1_labels.nii.gz")
        landmarks = output / f"{case}_landmarks.csv"
        write_truth_csv(landmarks, landmarks_from_labels(label_map, STRUCTURES))
        volume = read_image(image)
        if volume.shape != label_map.shape:
            raise InputError(f"{case}: image and label map differ in size; expected one grid, resample the label map")
        add(case, image, landmarks)
        bare = output / f"{case}_T1_stripped.nii.gz"
        brain = _widen(label_map[0].numpy() > 0)
        write_image(bare, np.where(brain, volume[0].numpy(), 0).astype(np.float32), np.asarray(volume.affine))
        add(case, bare, landmarks)
    if not sections["training"]:
        raise InputError("no training images found; expected <id>_T1_brain.nii.gz or <id>_T1.nii.gz")
    return write_dataset(output, "brain structures, T1", list(STRUCTURES.values()), sections)


def _widen(mask: np.ndarray) -> np.ndarray:
    """One voxel more on every side: automatic labels leave out the outermost layer of the brain."""
    out = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            out |= np.roll(mask, step, axis)
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stripped", type=Path)
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--validation", nargs="*", default=list(VALIDATION))
    parser.add_argument("--test", nargs="*", default=list(TEST))
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = prepare(options.stripped, options.whole, options.output, tuple(options.validation), tuple(options.test))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    logging.info("wrote %s", path)


if __name__ == "__main__":
    main()
