"""Turn a public set of aligned image pairs into the folder that ``ct_mri_registration`` trains on.

    python data_scripts/prepare_pairs.py --set sts --input STS --output pairs/sts

| --set | layout of --input | pairs (fixed, moving) | reference |
|---|---|---|---|
| sts | STS_*/CT.nii.gz and MR_T1.nii.gz | CT, T1; without STS_019, whose images share no frame | silver |
| brats | <patient>/T1c.nii.gz and FLAIR.nii.gz | T1c, FLAIR | exact |
| ms | <patient>/T1.nii.gz, T1POST.nii.gz, T2.nii.gz, FLAIR.nii.gz | T1 with each of the others | exact |
| nichart | <subject>_T1.nii.gz and <subject>_FLAIR.nii.gz | T1, FLAIR | silver |

Writes dataset.json; the images stay where they are.  A silver reference is true to some millimetres only.  Subjects are
split at random by --seed, but for the validation patients of sts, which are always the same.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrl.data.dataset import SECTIONS, split_cases
from medrl.data.pairs import EXACT, SILVER, PairFiles, write_pair_dataset
from medrl.data.preparation import preparation_parser, run_script
from medrl.types import InputError


class Layout(NamedTuple):
    """How a set names its images, and how many of its subjects are held out."""

    fixed: str
    moving: tuple[str, ...]
    reference: str
    validation: float
    test: float


LAYOUTS = {
    "sts": Layout("*/CT.nii.gz", ("MR_T1",), SILVER, 1 / 6, 1 / 6),
    "brats": Layout("*/T1c.nii.gz", ("FLAIR",), EXACT, 0.25, 0.25),
    "ms": Layout("*/T1.nii.gz", ("T1POST", "T2", "FLAIR"), EXACT, 0.0, 0.5),
    "nichart": Layout("*_T1.nii.gz", ("FLAIR",), SILVER, 0.2, 0.2),
}
LEFT_OUT = ("STS_019",)
VALIDATION = ("STS_006", "STS_012", "STS_021", "STS_029", "STS_037", "STS_048")


def find_pairs(folder: Path, kind: str) -> list[PairFiles]:
    """Return the pairs of a set, by its layout."""
    layout = LAYOUTS[kind]
    pairs = []
    for fixed in sorted(folder.glob(layout.fixed)):
        subject = fixed.parent.name if "/" in layout.fixed else fixed.name.removesuffix("_T1.nii.gz")
        start = fixed.name.removesuffix(layout.fixed.rpartition("*")[2].lstrip("/"))  # of all files of the subject
        for name in layout.moving:
            moving = fixed.with_name(f"{start}_{name}.nii.gz" if start else f"{name}.nii.gz")
            if moving.is_file() and subject not in LEFT_OUT:
                case = f"{subject}_{name}" if len(layout.moving) > 1 else subject
                pairs.append(PairFiles(case, subject, fixed, moving, layout.reference))
    if not pairs:
        raise InputError(f"{folder.name}: no pair found; check --input and --set")
    return pairs


def split(subjects: Sequence[str], kind: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """Split subjects into sections; sts has validation patients of its own."""
    fixed = [subject for subject in subjects if kind == "sts" and subject in VALIDATION]
    drawn = [subject for subject in subjects if subject not in fixed]
    test = options.test * len(subjects) / len(drawn)
    validation = 0.0 if fixed else options.validation
    parts = split_cases(drawn, validation=validation, test=test, generator=np.random.default_rng(options.seed))
    return parts | {"validation": fixed or parts["validation"]}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write dataset.json; returns its path."""
    parser = preparation_parser(__doc__)
    parser.add_argument("--set", required=True, choices=sorted(LAYOUTS), help="layout of --input")
    parser.set_defaults(validation=None, test=None)
    options = parser.parse_args(arguments)
    layout = LAYOUTS[options.set]
    options.validation = layout.validation if options.validation is None else options.validation
    options.test = layout.test if options.test is None else options.test
    pairs = find_pairs(options.input, options.set)
    parts = split(sorted({pair.subject for pair in pairs}), options.set, options)
    sections = {section: [pair for pair in pairs if pair.subject in parts[section]] for section in SECTIONS}
    counts = ", ".join(f"{len(sections[section])} {section}" for section in SECTIONS)
    logging.info("%s: pairs of %d subjects; %s", options.set, len({pair.subject for pair in pairs}), counts)
    return write_pair_dataset(options.output, options.set, sections)


if __name__ == "__main__":
    run_script(main)
