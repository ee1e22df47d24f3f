"""Turn images with label maps into a landmark data set: centroids, or six extreme points, of named structures.

    python data_scripts/prepare_label_centroids.py --input malf --output brain \
        --image-suffix _T1_brain --label-suffix _labels

An image <id><image-suffix>.nii.gz belongs to the label map <id><label-suffix>.nii.gz, in --input or in --labels.
Names come from --names, a JSON object {"47": "hippocampus_R"} or a CSV table with the columns value,name; without it
the numbers of the Neuromorphometrics atlas, which MUSE shares, are taken.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from medrl.data.landmarks import landmarks_from_labels
from medrl.data.preparation import preparation_parser, prepare_dataset, run_script
from medrl.data.read import find_cases, read_label_map
from medrl.types import InputError

NEUROMORPHOMETRICS = {
    47: "hippocampus_R",
    48: "hippocampus_L",
    31: "amygdala_R",
    32: "amygdala_L",
    59: "thalamus_R",
    60: "thalamus_L",
    36: "caudate_R",
    37: "caudate_L",
    57: "putamen_R",
    58: "putamen_L",
    55: "pallidum_R",
    56: "pallidum_L",
    51: "lateral_ventricle_R",
    52: "lateral_ventricle_L",
    4: "third_ventricle",
    11: "fourth_ventricle",
    35: "brain_stem",
}


def read_names(path: Path) -> dict[int, str]:
    """Read label value -> name from a JSON object or a CSV table with the columns value,name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            pairs = list(json.loads(text).items())
        else:
            pairs = [(row["value"], row["name"]) for row in csv.DictReader(text.splitlines())]
        names = {int(value): str(name) for value, name in pairs}
    except (OSError, ValueError, KeyError, AttributeError):
        raise InputError(f'{path.name}: expected JSON {{"47": "name"}} or a CSV table value,name') from None
    if len(set(names.values())) < len(pairs):
        raise InputError(f"{path.name}: a value or a name occurs twice; expected every one once")
    return names


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the data set folder; returns the path of dataset.json."""
    parser = preparation_parser(__doc__)
    parser.add_argument("--labels", type=Path, help="folder of the label maps (default: --input)")
    parser.add_argument("--image-suffix", default="", help="end of an image's name (default: none)")
    parser.add_argument("--label-suffix", default="_labels", help="end of a label map's name (default: %(default)s)")
    parser.add_argument("--names", type=Path, help="JSON or CSV of label values and names")
    parser.add_argument("--kind", choices=["centroid", "extreme"], default="centroid")
    parser.add_argument("--name", default="label_landmarks", help="of the data set (default: %(default)s)")
    options = parser.parse_args(arguments)
    names = read_names(options.names) if options.names else NEUROMORPHOMETRICS
    label_maps = find_cases(options.labels or options.input)
    landmarks = {}
    for case, path in find_cases(options.input).items():
        if path in label_maps.values() and case.endswith(options.label_suffix):
            continue
        if not case.endswith(options.image_suffix):
            continue
        label_map = label_maps.get(case.removesuffix(options.image_suffix) + options.label_suffix)
        if label_map is None:
            raise InputError(f"{path.name}: has no label map; expected one that ends with {options.label_suffix}")
        landmarks[path] = landmarks_from_labels(read_label_map(label_map), names, kind=options.kind)
    return prepare_dataset(options, options.name, landmarks)


if __name__ == "__main__":
    run_script(main)
