"""Turn a public set of images with object masks into the folder that ``seednet_interactive_segmentation`` trains on.

    python data_scripts/prepare_masks.py --set hippocampus --input Task04_Hippocampus --output masks/hippocampus

| --set | layout of --input | object |
|---|---|---|
| hippocampus | imagesTr/ and labelsTr/, or images/ and labels/, with equal names | hippocampus (labels 1 and 2) |
| sarcoma_ct, sarcoma_mr | <patient>/CT.nii.gz, CT_mask.nii.gz, MR_T1.nii.gz, MR_T1_mask.nii.gz | tumour |
| brats | <patient>/FLAIR.nii.gz and seg.nii.gz | whole tumour |
| flat | images/ and labels/ with equal names | every label above 0 |

Writes images/, labels/ (uint8, 0 and 1) and dataset.json.  A hash of the patient's name decides the section, so CT and
MR of one patient fall into the same section.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medrl.data.dataset import split_subjects
from medrl.data.masks import MaskFiles, crop_to_mask, read_mask, write_mask, write_mask_dataset
from medrl.data.preparation import preparation_parser, run_script
from medrl.data.read import case_name, find_cases, read_image
from medrl.data.write import whole_file, write_image
from medrl.types import InputError

OBJECTS = {
    "hippocampus": "hippocampus", "sarcoma_ct": "tumour", "sarcoma_mr": "tumour", "brats": "tumour", "flat": "object",
}  # fmt: skip
PATIENT_FILES = {
    "sarcoma_ct": ("CT", "CT_mask"), "sarcoma_mr": ("MR_T1", "MR_T1_mask"), "brats": ("FLAIR", "seg"),
}  # fmt: skip

ONE_FILE = (".nii.gz", ".nii", ".nrrd", ".mha")


def find_pairs(folder: Path, kind: str) -> dict[str, MaskFiles]:
    """Return case id -> files, in the layout of a set."""
    if kind in PATIENT_FILES:
        image, label = PATIENT_FILES[kind]
        patients = sorted(path.parent for path in folder.glob(f"*/{image}.nii.gz"))
        pairs = {
            f"{patient.name}_{image}": MaskFiles(patient / f"{image}.nii.gz", patient / f"{label}.nii.gz", patient.name)
            for patient in patients
        }
    else:
        suffix = "Tr" if (folder / "imagesTr").is_dir() else ""
        label_maps = find_cases(folder / f"labels{suffix}")
        images = find_cases(folder / f"images{suffix}")
        pairs = {case: MaskFiles(path, label_maps.get(case, path.parent), case) for case, path in images.items()}
    if not pairs:
        raise InputError(f"{folder.name}: no image found; check --input and --set")
    for files in pairs.values():
        if not files.label.is_file():
            raise InputError(
                f"{files.image.name} of {files.subject}: has no mask; expected one beside it or in labels/"
            )
    return pairs


def prepare_pair(case: str, files: MaskFiles, options: argparse.Namespace) -> MaskFiles:
    """Write image and mask of one case; an image of one file is copied as it is unless it is cropped."""
    image = read_image(files.image, one_slice=True)
    mask = read_mask(files.label, image)
    label_path = options.output / "labels" / f"{case}.nii.gz"
    suffix = files.image.name[len(case_name(files.image)) :]
    if options.crop_mm is None and suffix.lower() in ONE_FILE:
        image_path = options.output / "images" / f"{case}{suffix}"
        with whole_file(image_path) as part:
            shutil.copyfile(files.image, part)
    else:
        if options.crop_mm is not None:
            image, mask = crop_to_mask(image, mask, options.crop_mm)
        image_path = options.output / "images" / f"{case}.nii.gz"
        write_image(image_path, image[0].numpy(), np.asarray(image.affine))
    write_mask(label_path, mask, image)
    return MaskFiles(image_path, label_path, files.subject)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the data set folder; returns the path of dataset.json."""
    parser = preparation_parser(__doc__)
    parser.add_argument("--set", required=True, choices=sorted(OBJECTS), help="layout of --input")
    parser.add_argument("--crop-mm", type=float, help="keep the object's box and this margin only (default: all)")
    options = parser.parse_args(arguments)
    pairs = find_pairs(options.input, options.set)
    subjects = {files.subject for files in pairs.values()}
    parts = split_subjects(subjects, validation=options.validation, test=options.test, seed=options.seed)
    written = {case: prepare_pair(case, files, options) for case, files in pairs.items()}
    sections = {
        section: [files for files in written.values() if files.subject in members] for section, members in parts.items()
    }
    counts = ", ".join(f"{len(cases)} {section}" for section, cases in sections.items())
    logging.info("%s: %s cases", options.set, counts)
    return write_mask_dataset(options.output, options.set, OBJECTS[options.set], sections)


if __name__ == "__main__":
    run_script(main)
