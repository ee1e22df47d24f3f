"""Join trainings of interactive segmentation for slices and for volumes into one folder of weights.

python -m medrl.training.join MODELS_2D MODELS_3D --output MODELS
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medrl.data.write import whole_file, write_json
from medrl.types import InputError


def join_networks(folders: Sequence[Path | str], output: Path | str) -> None:
    """Write ``model.pt`` and ``agent.json`` with the networks of several folders.

    Raises InputError if a folder lacks one of the files, or two hold a network for the same number of axes.
    """
    weights: dict[str, Tensor] = {}
    joined: dict[str, Any] = {"agents": [], "clicks": [], "session": {"lattice": {}}}
    for folder in map(Path, folders):
        try:
            settings = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
            more = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        except Exception:
            raise InputError(
                f"{folder.name}: model.pt or agent.json cannot be read; expected the folder of a training"
            ) from None
        if weights.keys() & more.keys():
            raise InputError(f"{folder.name}: has networks that another folder has; expected one training an axes")
        weights |= more
        lattice = joined["session"]["lattice"] | settings["session"].get("lattice", {})
        joined["session"] |= settings["session"] | {"lattice": lattice}
        for kind in ("agents", "clicks"):
            joined[kind] += settings[kind]
    with whole_file(Path(output) / "model.pt") as part:
        torch.save(weights, part)
    write_json(Path(output) / "agent.json", joined)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="--ckpt_dir of each training")
    parser.add_argument("--output", type=Path, required=True, help="folder for model.pt and agent.json")
    options = parser.parse_args(arguments)
    try:
        join_networks(options.folders, options.output)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
