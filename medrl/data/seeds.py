"""Seeds of an interactive segmentation: clicks inside and outside of the object, in files and in a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.landmarks import finite_position, markup_points, read_text
from medrl.data.read import case_name
from medrl.data.write import write_points
from medrl.types import InputError

FOREGROUND, BACKGROUND = 1, 2  # labels of seeds on a lattice; 0 is none
WORDS = {True: ("fore", "fg", "f-"), False: ("back", "bg", "b-")}  # how labels and list names start
SUFFIX = "_seeds.mrk.json"


class Seeds(NamedTuple):
    """Seeds in the order in which they were placed."""

    position_ras: Tensor  # (K, 3) float64, mm
    foreground: Tensor  # (K,) bool; else background


def make_seeds(positions_ras: Sequence[Any] | Tensor = (), foreground: Sequence[bool] | Tensor = ()) -> Seeds:
    """Build seeds from points in RAS mm and whether each lies inside the object; without arguments there are none."""
    if not isinstance(positions_ras, Tensor):
        positions_ras = np.asarray([np.asarray(position) for position in positions_ras], np.float64)
    points = torch.as_tensor(positions_ras, dtype=torch.float64).reshape(-1, 3)
    labels = torch.as_tensor(foreground, dtype=torch.bool).reshape(-1)
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points and {len(labels)} labels; expected one label a point")
    return Seeds(points, labels)


def join_seeds(first: Seeds, *others: Seeds) -> Seeds:
    """Seeds one after the other, as a user's and then an agent's."""
    return Seeds(*(torch.cat(parts) for parts in zip(first, *others, strict=True)))


def read_seeds(path: Path | str) -> Seeds:
    """Read the seeds of one case from a Slicer Markups file (.mrk.json, LPS or RAS).

    A control point is foreground or background by its label (``foreground``, ``fg``, ``F-1``, ``background``, ``bg``,
    ``B-1``, in any case) or, where that says nothing, by the name of its list.  A point that was not placed is left
    out; a file without points gives no seeds.

    Raises:
        InputError: unreadable file, unknown coordinate system or unit, a point of neither kind, a position that is no
            number.
    """
    path = Path(path)
    positions, foreground = [], []
    for number, point in enumerate(markup_points(read_text(path), path.name), start=1):
        kind = _kind(point.label) if _kind(point.label) is not None else _kind(point.list_name)
        if kind is None:
            raise InputError(
                f"{path.name}: point {number} is labelled neither foreground nor background; label every point, or "
                "name its list, so"
            )
        positions.append(finite_position(point.position, path.name, f"seed {number}", point.system))
        foreground.append(kind)
    return make_seeds(positions, foreground)


def write_seeds(path: Path | str, seeds: Seeds, *, user_count: int = 0) -> None:
    """Write a Slicer Markups file (LPS mm): one list of points labelled ``foreground`` or ``background``, in order.

    The description of the first ``user_count`` is ``user``, of the others ``agent, step 1`` and so on.
    """
    points = [
        (
            "foreground" if foreground else "background",
            "user" if index < user_count else f"agent, step {index - user_count + 1}",
            position,
        )
        for index, (position, foreground) in enumerate(
            zip(seeds.position_ras.tolist(), seeds.foreground.tolist(), strict=True)
        )
    ]
    write_points(path, points)


def seeds_of_case(image_path: Path | str) -> Path | None:
    """Return ``<case>_seeds.mrk.json`` beside an image file or DICOM folder, or None where there is no such file."""
    path = Path(image_path)
    seeds_path = path.with_name(case_name(path) + SUFFIX)
    return seeds_path if seeds_path.is_file() else None


def seed_voxels(seeds: Seeds, image: MetaTensor) -> Tensor:
    """Voxel (K, 3) int64 in which each seed lies, in an image (1, X, Y, Z) with ``affine`` = ras_from_voxel."""
    return _voxel_index(seeds, image).round().long()


def check_seeds(seeds: Seeds, image: MetaTensor, where: str) -> None:
    """Check that seeds lie in an image (1, X, Y, Z), and no two of different kind in one voxel.

    Only background seeds, or none, are fine.  The border of an image is half a voxel outside its outermost centres.

    Raises:
        InputError: names ``where``, the seed by its number, and its distance from the image in mm.
    """
    index = _voxel_index(seeds, image)
    size = torch.tensor(image.shape[1:])
    outside = index - torch.minimum(index.clamp(min=-0.5), size - 0.5)
    distance_mm = (outside @ image.affine[:3, :3].double().cpu().T).norm(dim=1).tolist()
    for number, distance in enumerate(distance_mm, start=1):
        if not distance <= 1e-3:
            raise InputError(
                f"{where}: seed {number} lies {distance:.1f} mm outside the image; expected every seed inside: "
                "seeds of another case, or LPS taken for RAS?"
            )
    first: dict[tuple[int, ...], tuple[int, bool]] = {}
    voxels = torch.minimum(index.round().long().clamp(min=0), size - 1)
    for number, (voxel, kind) in enumerate(zip(voxels.tolist(), seeds.foreground.tolist(), strict=True), start=1):
        other, other_kind = first.setdefault(tuple(voxel), (number, kind))
        if kind != other_kind:
            raise InputError(
                f"{where}: seeds {other} and {number} are foreground and background in one voxel; remove one of them"
            )


def _voxel_index(seeds: Seeds, image: MetaTensor) -> Tensor:
    matrix = torch.linalg.inv(image.affine.detach().cpu().double())
    return seeds.position_ras @ matrix[:3, :3].T + matrix[:3, 3]


def _kind(name: str) -> bool | None:
    """Whether a label or the name of a list says foreground (True), background (False) or neither (None)."""
    name = name.strip().lower()
    for foreground, starts in WORDS.items():
        if name.startswith(starts) or name == starts[-1][0]:
            return foreground
    return None
