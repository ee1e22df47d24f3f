"""Lists of sequences for training: DATASET/dataset.json.

    python data_scripts/prepare_videos.py --input DAVIS --output DATASET [--test goat libby] [--validation cows]

INPUT is a folder of sequences with frames and masks side by side, or the published DAVIS folder with ``JPEGImages`` and
``Annotations`` (of which the smaller resolution is taken).  Files are linked or, with --copy, copied.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from medrl.data.videos import find_sequences, read_sequence, read_truth, write_dataset_of_videos
from medrl.data.write import write_json
from medrl.types import InputError

logger = logging.getLogger(__name__)


def prepare(source: Path, output: Path, *, test: list[str], validation: list[str], copy: bool = False) -> Path:
    """Lay the sequences out, check every one, and write the lists; returns the path of dataset.json."""
    names = []
    for name, frames, masks in layout(source):
        target = output / name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(frames.iterdir()):
            put(path, target / path.name, copy=copy)
        if masks != frames:
            for path in sorted(masks.glob("*.png")):
                put(path, target / path.name, copy=copy)
        read_sequence(target)
        read_truth(target)
        names.append(name)
        logger.info("%s", name)
    unknown = [name for name in (*test, *validation) if name not in names]
    if unknown:
        raise InputError(f"{unknown[0]} is none of the sequences {', '.join(names)}")
    if not test and not validation:
        return write_dataset_of_videos(output, names)
    training = [name for name in names if name not in {*test, *validation}]
    write_json(output / "dataset.json", {"training": training, "validation": validation or test, "test": test})
    return output / "dataset.json"


def layout(source: Path) -> list[tuple[str, Path, Path]]:
    """Name, folder of frames and folder of masks of every sequence."""
    if not (source / "JPEGImages").is_dir():
        return [(name, folder, folder) for name, folder in find_sequences(source).items()]
    size = sorted(path.name for path in (source / "JPEGImages").iterdir() if path.is_dir())[-1]  # 1080p < 480p
    frames, masks = (source / part / size for part in ("JPEGImages", "Annotations"))
    return [(path.name, path, masks / path.name) for path in sorted(frames.iterdir()) if (masks / path.name).is_dir()]


def put(source: Path, target: Path, *, copy: bool) -> None:
    """Link or copy a file over what is there."""
    target.unlink(missing_ok=True)
    if copy:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(source.resolve())


def main() -> None:
    """Prepare a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--test", nargs="*", default=[])
    parser.add_argument("--validation", nargs="*", default=[])
    parser.add_argument("--copy", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare(
        arguments.input, arguments.output, test=arguments.test, validation=arguments.validation, copy=arguments.copy
    )


if __name__ == "__main__":
    main()
