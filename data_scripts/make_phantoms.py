"""Make synthetic CT or MR volumes with known landmarks, or an object's mask, in random orientations.

    python data_scripts/make_phantoms.py --output phantoms --count 30
    python data_scripts/make_phantoms.py --output lesions --count 30 --answer mask --modality both --spacing-mm 2

Writes the images, the answers, which are exact, and dataset.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medrl.data.lesions import write_lesions
from medrl.data.phantoms import write_phantoms
from medrl.data.preparation import run_script
from medrl.types import InputError


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the phantoms; returns the path of dataset.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for images, answers and dataset.json")
    parser.add_argument("--count", type=int, default=30, help="patients (default: %(default)s)")
    parser.add_argument("--answer", choices=["landmarks", "mask"], default="landmarks", help="(default: %(default)s)")
    parser.add_argument("--modality", choices=["ct", "mr", "both"], default="ct", help="both: with --answer mask only")
    parser.add_argument("--size", type=int, default=48, help="voxels along each side (default: %(default)s)")
    parser.add_argument("--spacing-mm", type=float, default=4.0, help="mean voxel size (default: %(default)s)")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the cases (default: %(default)s)")
    parser.add_argument("--test", type=float, default=0.2, help="share of the cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images and split (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.answer == "landmarks" and options.modality == "both":
        raise InputError("--modality both: expected ct or mr for landmarks, or --answer mask")
    return (write_phantoms if options.answer == "landmarks" else write_lesions)(
        options.output,
        options.count,
        np.random.default_rng(options.seed),
        modality=options.modality,
        shape=(options.size,) * 3,
        spacing_mm=options.spacing_mm,
        validation=options.validation,
        test=options.test,
    )


if __name__ == "__main__":
    run_script(main)
