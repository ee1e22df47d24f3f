"""Turn the hippocampus task of the Medical Segmentation Decathlon (Task04) into a landmark data set.

    python data_scripts/prepare_hippocampus.py --input Task04_Hippocampus --output hippocampus

Expects imagesTr/ and labelsTr/, or images/ and labels/, with equal file names.  Landmarks: the centroids of head
(label 1) and body with tail (label 2), the foremost point of the head and the hindmost point of the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medrl.data.landmarks import landmarks_from_labels
from medrl.data.preparation import preparation_parser, prepare_dataset, run_script
from medrl.data.read import find_cases, read_label_map
from medrl.types import InputError

NAMES = {1: "head", 2: "body"}
TIPS = {"anterior_tip": "head_anterior", "posterior_tip": "body_posterior"}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the data set folder; returns the path of dataset.json."""
    options = preparation_parser(__doc__).parse_args(arguments)
    suffix = "Tr" if (options.input / "imagesTr").is_dir() else ""
    label_maps = find_cases(options.input / f"labels{suffix}")
    landmarks = {}
    for case, path in find_cases(options.input / f"images{suffix}").items():
        if case not in label_maps:
            raise InputError(f"{path.name}: has no label map of that name")
        label_map = read_label_map(label_maps[case])
        extremes = landmarks_from_labels(label_map, NAMES, kind="extreme")
        tips = {name: extremes[extreme] for name, extreme in TIPS.items() if extreme in extremes}
        landmarks[path] = landmarks_from_labels(label_map, NAMES) | tips
    return prepare_dataset(options, "hippocampus", landmarks)


if __name__ == "__main__":
    run_script(main)
