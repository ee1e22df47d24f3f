"""Turn the mouse CT atlas (Maga et al. 2017: heads of many strains, 45 skull landmarks each) into a data set.

    python data_scripts/prepare_mouse_skull.py --input mouse_CT_atlas/data --output mouse_skull

Expects targets/<strain>.nii.gz and target_LMs/<strain>.mrk.json below --input, as published, or both kinds in --input
itself, the landmarks also as <strain>_landmarks.csv or <strain>.fcsv.  A '_' at the end of a name does not count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medrl.data.landmarks import read_landmarks
from medrl.data.preparation import preparation_parser, prepare_dataset, run_script
from medrl.data.read import find_cases
from medrl.types import InputError

LANDMARK_SUFFIXES = (".mrk.json", ".fcsv", "_landmarks.csv")


def find_landmark_files(folder: Path) -> dict[str, Path]:
    """Return strain -> landmark file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in LANDMARK_SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is None:
            continue
        strain = path.name.removesuffix(suffix).rstrip("_")
        if strain in found:
            raise InputError(f"{path.name} and {found[strain].name}: two landmark files of one strain; remove one")
        found[strain] = path
    return found


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the data set folder; returns the path of dataset.json."""
    options = preparation_parser(__doc__).parse_args(arguments)
    published = (options.input / "targets").is_dir()
    images = find_cases(options.input / "targets" if published else options.input)
    tables = find_landmark_files(options.input / "target_LMs" if published else options.input)
    landmarks = {}
    for case, path in images.items():
        if case.rstrip("_") in tables:
            landmarks[path] = read_landmarks(tables[case.rstrip("_")])
        else:
            logging.warning("%s: left out, it has no landmark file", path.name)
    return prepare_dataset(options, "mouse_skull", landmarks)


if __name__ == "__main__":
    run_script(main)
