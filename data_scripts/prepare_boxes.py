"""Turn pictures with VOC or COCO boxes into the folder that ``object_localisation`` trains on.

    python data_scripts/prepare_boxes.py --input boxes_bccd_voc --category WBC --output boxes/wbc
    python data_scripts/prepare_boxes.py --input pictures --coco annotations.json --category cat --output boxes/cats

VOC: every ``<name>.xml`` beside its picture, or in ``Annotations/`` with pictures in ``JPEGImages/``.  Writes
dataset.json, which names the pictures where they are; a split by pictures, from the seed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medrl.data.box_files import find_images, read_coco, read_picture, read_voc
from medrl.data.dataset import relative_path, split_cases
from medrl.data.preparation import preparation_parser, run_script
from medrl.data.write import write_json
from medrl.types import InputError


def read_annotations(folder: Path, coco: Path | None) -> list[dict[str, Any]]:
    """Annotations with the path of each picture under ``path``."""
    pictures = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    if coco is not None:
        found = read_coco(coco)
        for entry in found:
            entry["path"] = pictures / entry["image"]
    else:
        answers = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
        by_name = {path.stem: path for path in sorted(answers.glob("*.xml"))}
        if not by_name:
            raise InputError(f"{folder.name}: holds no VOC annotation (.xml); check --input, or give --coco")
        found = []
        for case, path in find_images(pictures).items():
            if case not in by_name:
                raise InputError(f"{path.name}: has no annotation; expected {case}.xml, remove the picture or add it")
            found.append(read_voc(by_name.pop(case)) | {"path": path})
        if by_name:
            raise InputError(f"{next(iter(by_name))}.xml: its picture is missing; remove the annotation or add it")
    for entry in found:
        height, width = read_picture(entry["path"]).shape[:2]
        if (width, height) != tuple(entry["size"]):
            size = " x ".join(map(str, entry["size"]))
            raise InputError(f"{entry['path'].name}: has {width} x {height} pixels, its annotation says {size}")
    return found


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write dataset.json; returns its path."""
    parser = preparation_parser(__doc__)
    parser.add_argument("--category", required=True, help="name of the class to find")
    parser.add_argument("--coco", type=Path, help="COCO annotation file (default: VOC files beside the pictures)")
    parser.set_defaults(validation=0.15, test=0.25)
    options = parser.parse_args(arguments)
    found = {entry["path"].stem: entry for entry in read_annotations(options.input, options.coco)}
    counts = {name: sum(kind == options.category for kind, _ in entry["boxes"]) for name, entry in found.items()}
    if not any(counts.values()):
        have = sorted({kind for entry in found.values() for kind, _ in entry["boxes"]})
        raise InputError(f"no picture has a box of {options.category}; expected one of {', '.join(have)}")
    parts = split_cases(
        sorted(found), validation=options.validation, test=options.test, generator=np.random.default_rng(options.seed)
    )
    document: dict[str, Any] = {"name": f"boxes of {options.category}", "classes": [options.category]}
    for section, names in parts.items():
        document[section] = [
            {
                "image": relative_path(found[name]["path"], options.output),
                "boxes": [
                    {"category": kind, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                    for kind, box in found[name]["boxes"] if kind == options.category
                ],
            }
            for name in names
        ]  # fmt: skip
        logging.info("%s: %d pictures, %d boxes", section, len(names), sum(counts[name] for name in names))
    path = options.output / "dataset.json"
    write_json(path, document)
    return path


if __name__ == "__main__":
    run_script(main)
