"""The command ``medrl``: thin over the bundles."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # torch and MONAI take seconds to import: --help does without
    from medrl.inference.prediction import CasePredictor
    from medrl.types import Landmark

logger = logging.getLogger("medrl.cli")
DEMO_BUNDLE = "brain_mri_landmark_detection"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 after a wrong input or a case that failed."""
    options = _parser().parse_args(arguments)
    from medrl.types import InputError

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("medrl")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        return options.command(options)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def demo(options: argparse.Namespace) -> int:
    """Find the landmarks of the MNI152 T1 template, a real brain that comes with nilearn."""
    from medrl.data.template import mni152_template

    image = mni152_template()
    predictor = _predict(image, DEMO_BUNDLE, options)
    predictor.check()
    case, landmarks = next(iter(predictor.landmarks.items()))
    entry = predictor.report["cases"][case]
    logger.info("%s", _table(landmarks))
    seconds = entry["seconds"]
    logger.info(
        "%d landmarks in %.1f s on %s (reading the file %.1f s, pictures %.1f s)",
        len(landmarks), seconds["find"], predictor.report["device"], seconds["read"], seconds["write"],
    )  # fmt: skip
    logger.info("written to %s: %s", options.output, ", ".join([*entry["files"], "landmarks.csv", "report.json"]))
    logger.info("Open the .html file in a browser, or the .mrk.json file with the image in 3D Slicer.")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Run a bundle on every image and DICOM series of a folder."""
    start = time.perf_counter()
    predictor = _predict(options.input, options.bundle, options)
    failed = len(predictor.failures)
    done = len(predictor.report["cases"]) - failed
    logger.info("%d cases done, %d failed, in %.1f s", done, failed, time.perf_counter() - start)
    return 1 if failed else 0


def _predict(image: Path, name: str, options: argparse.Namespace) -> CasePredictor:
    from medrl.bundle import load

    bundle = load(name, options.device)
    return bundle.predict_folder(image, options.output, pictures=options.pictures)


def _table(landmarks: Sequence[Landmark]) -> str:
    from medrl.types import MISSING

    width = max(len(mark.label) for mark in landmarks)
    lines = [f"{'landmark':{width}}      R      A      S   +- mm  presence  status"]
    for mark in landmarks:
        place = "      -      -      -" if mark.status == MISSING else "".join(f"{x:7.1f}" for x in mark.position_mm)
        lines.append(f"{mark.label:{width}}{place}{mark.uncertainty_mm:8.1f}{mark.presence:10.2f}  {mark.status}")
    return "\n".join([*lines, "R, A, S: mm towards the right, front and top of the patient"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medrl", description="Reinforcement-learning agents for image problems.")
    commands = parser.add_subparsers(required=True, metavar="command")
    first = commands.add_parser("demo", help=demo.__doc__, description=demo.__doc__)
    first.add_argument("--output", type=Path, default=Path("demo"), help="folder (default: %(default)s)")
    first.set_defaults(command=demo, pictures=True)
    second = commands.add_parser("predict", help=predict.__doc__, description=predict.__doc__)
    second.add_argument("input", type=Path, help="folder of images, DICOM series or pairs, or one image")
    second.add_argument("--bundle", required=True, help="name of a bundle that comes with medrl, or a bundle's folder")
    second.add_argument("--output", type=Path, required=True, help="folder for the answers")
    second.add_argument("--pictures", action="store_true", help="a PNG and an HTML page a case")
    second.set_defaults(command=predict)
    for command in (first, second):
        command.add_argument("--device", help="such as cpu or cuda:0 (default: the best at hand)")
        command.add_argument("--verbose", action="store_true", help="show where an unforeseen error happened")
    return parser


if __name__ == "__main__":
    sys.exit(main())
