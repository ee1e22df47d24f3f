"""What the scripts of data_scripts/ share: their options, and how a data set folder is written."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from medrl.data.dataset import split_cases, write_dataset
from medrl.data.landmarks import check_landmarks_inside
from medrl.data.read import case_name, read_image
from medrl.data.write import write_truth_csv
from medrl.types import InputError

logger = logging.getLogger(__name__)


def preparation_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every preparation has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of the data set as published")
    parser.add_argument("--output", type=Path, required=True, help="folder for landmarks and dataset.json")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the cases (default: %(default)s)")
    parser.add_argument("--test", type=float, default=0.2, help="share of the cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    return parser


def prepare_dataset(
    options: argparse.Namespace,
    name: str,
    landmarks: Mapping[Path, Mapping[str, np.ndarray]],
    *,
    subjects: Mapping[Path, str] | None = None,
) -> Path:
    """Check cases, split them and write ``<case>_landmarks.csv`` and ``dataset.json``; images stay where they are.

    Args:
        options: of `preparation_parser`.
        name: of the data set.
        landmarks: image -> label -> (3,) RAS mm.  The labels of the data set are all that occur, in this order.
        subjects: image -> subject, so that all images of one subject stay together; one a subject by default.

    Returns:
        the path of ``dataset.json``.

    Raises:
        InputError: no case, a case without landmarks or with one outside its image, an unreadable image, two images
            of one case id, or too few cases for the split.
    """
    if not landmarks:
        raise InputError(f"{options.input.name}: no image with landmarks found; check --input and its layout")
    tables: dict[str, Path] = {}
    for image_path, points in landmarks.items():
        case = case_name(image_path)
        if case in tables:
            raise InputError(f"{options.input.name}: two images have the case id {case}; rename one")
        if not points:
            raise InputError(f"{image_path.name}: none of the landmarks was found; check the label numbers and names")
        tables[case] = options.output / "landmarks" / f"{case}_landmarks.csv"
        image = read_image(image_path)
        check_landmarks_inside(points, image.affine.numpy(), image.shape[1:], image_path.name)
    subject_of = {path: (subjects or {}).get(path, case_name(path)) for path in landmarks}
    parts = split_cases(
        sorted(set(subject_of.values())),
        validation=options.validation,
        test=options.test,
        generator=np.random.default_rng(options.seed),
    )
    for image_path, points in landmarks.items():
        write_truth_csv(tables[case_name(image_path)], points)
    labels = list(dict.fromkeys(label for points in landmarks.values() for label in points))
    sections = {
        section: [(path, tables[case_name(path)]) for path in landmarks if subject_of[path] in members]
        for section, members in parts.items()
    }
    counts = ", ".join(f"{len(cases)} {section}" for section, cases in sections.items())
    logger.info("%s: %d landmarks; %s cases", name, len(labels), counts)
    return write_dataset(options.output, name, labels, sections)


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; a wrong input ends it with one line and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
