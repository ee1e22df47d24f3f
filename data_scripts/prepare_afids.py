"""Turn a BIDS data set with AFIDs (anatomical fiducials; Taha et al. 2023) into a landmark data set.

    python data_scripts/prepare_afids.py --input ds004470 --output afids

Expects, anywhere below --input, sub-<id>_..._T1w.nii.gz and sub-<id>_..._afids.fcsv (the ground truth where a subject
has several).  The 32 points get the names of the protocol.  https://doi.org/10.1038/s41597-023-02330-9
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medrl.data.landmarks import read_landmarks
from medrl.data.preparation import preparation_parser, prepare_dataset, run_script
from medrl.types import InputError

AFIDS = (
    "AC", "PC", "infracollicular_sulcus", "pontomesencephalic_junction", "superior_interpeduncular_fossa",
    "superior_lateral_mesencephalic_sulcus_R", "superior_lateral_mesencephalic_sulcus_L",
    "inferior_lateral_mesencephalic_sulcus_R", "inferior_lateral_mesencephalic_sulcus_L", "culmen",
    "intermammillary_sulcus", "mammillary_body_R", "mammillary_body_L", "pineal_gland", "lateral_ventricle_at_AC_R",
    "lateral_ventricle_at_AC_L", "lateral_ventricle_at_PC_R", "lateral_ventricle_at_PC_L", "corpus_callosum_genu",
    "corpus_callosum_splenium", "anterolateral_temporal_horn_R", "anterolateral_temporal_horn_L",
    "superior_anteromedial_temporal_horn_R", "superior_anteromedial_temporal_horn_L",
    "inferior_anteromedial_temporal_horn_R", "inferior_anteromedial_temporal_horn_L", "indusium_griseum_origin_R",
    "indusium_griseum_origin_L", "ventral_occipital_horn_R", "ventral_occipital_horn_L", "olfactory_sulcal_fundus_R",
    "olfactory_sulcal_fundus_L",
)  # fmt: skip


def find_by_subject(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """Group the files below a folder by the sub-<id> of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(pattern)):
        subject = re.match(r"sub-[A-Za-z0-9]+", path.name)
        if subject:
            found.setdefault(subject[0], []).append(path)
    return found


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the data set folder; returns the path of dataset.json."""
    parser = preparation_parser(__doc__)
    options = parser.parse_args(arguments)
    if not options.input.is_dir():
        raise InputError(f"{options.input.name}: no such folder")
    images = find_by_subject(options.input, "sub-*_T1w.nii*")
    landmarks, subjects = {}, {}
    for subject, tables in find_by_subject(options.input, "sub-*afids.fcsv").items():
        tables = [path for path in tables if "groundtruth" in path.name] or tables
        scans = [path for path in images.get(subject, []) if not re.search("_(space|desc)-", path.name)]
        if len(tables) != 1 or len(scans) != 1:
            raise InputError(f"{subject}: {len(scans)} T1w images and {len(tables)} AFIDs tables; expected one each")
        points = read_landmarks(tables[0])
        unknown = set(points) - {str(number + 1) for number in range(len(AFIDS))}
        if unknown:
            raise InputError(f"{tables[0].name}: label {min(unknown)}; expected the AFIDs numbers 1 to {len(AFIDS)}")
        landmarks[scans[0]] = {AFIDS[int(label) - 1]: points[label] for label in sorted(points, key=int)}
        subjects[scans[0]] = subject
    return prepare_dataset(options, "afids", landmarks, subjects=subjects)


if __name__ == "__main__":
    run_script(main)
