"""Landmark files and label maps -> named points in RAS mm."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from monai.data import MetaTensor

from medrl.types import InputError

# Slicer wrote 0 and 1 before it wrote names
RAS_FROM = {"RAS": (1, 1, 1), "0": (1, 1, 1), "LPS": (-1, -1, 1), "1": (-1, -1, 1)}
FCSV_COLUMNS = ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc"]
EXTREMES = ("left", "right"), ("posterior", "anterior"), ("inferior", "superior")  # along -, + of the axes R, A, S


class MarkupPoint(NamedTuple):
    """A control point that was placed, as a file says."""

    label: str
    position: Any
    system: str  # a key of RAS_FROM
    list_name: str = ""


def read_landmarks(path: Path | str) -> dict[str, np.ndarray]:
    """Read the landmarks of one case from Slicer Markups (.mrk.json, .fcsv) or a CSV table.

    A table has the columns ``label`` and either ``lps_x, lps_y, lps_z`` or ``ras_x, ras_y, ras_z``, in mm.  A point
    that was not placed (another ``positionStatus`` than ``defined``, an empty position) is absent and left out.

    Returns:
        label -> (3,) float64, RAS mm, in the order of the file.

    Raises:
        InputError: unreadable file, unknown coordinate system or unit, a label twice, a position that is no number.
    """
    path = Path(path)
    name = path.name.lower()
    readers = {".json": markup_points, ".fcsv": _read_fcsv, ".csv": _read_table}
    reader = next((reader for suffix, reader in readers.items() if name.endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{path.name}: not a landmark file; expected .mrk.json, .fcsv or .csv")
    points: dict[str, np.ndarray] = {}
    for label, position, system, *_ in reader(read_text(path), path.name):
        if not label:
            raise InputError(f"{path.name}: a point has no label; expected a name for every landmark")
        if label in points:
            raise InputError(f"{path.name}: label {label} occurs twice; expected every landmark once, of one case")
        points[label] = finite_position(position, path.name, label, system)
    return points


def read_text(path: Path) -> str:
    """Read a file of points; InputError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such landmark file") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path.name}: cannot be read as text; expected a landmark file") from None


def landmarks_from_labels(
    label_map: MetaTensor, names: Mapping[int, str], *, kind: Literal["centroid", "extreme"] = "centroid"
) -> dict[str, np.ndarray]:
    """Turn labelled regions into landmarks; a label without a voxel gives none.

    Args:
        label_map: (1, X, Y, Z) with ``affine`` = ras_from_voxel.
        names: label value -> landmark name.
        kind: ``centroid``, or ``extreme`` for six points a region, ``<name>_left`` to ``<name>_superior``: the mean of
            the voxels within half a voxel of the outermost one, in patient axes whatever the orientation of the grid.

    Returns:
        name -> (3,) float64, RAS mm.
    """
    ras_from_voxel = np.asarray(label_map.affine, dtype=np.float64)
    cap_mm = 0.5 * np.linalg.norm(ras_from_voxel[:3, :3], axis=0).min()
    labels = np.asarray(label_map[0])
    points: dict[str, np.ndarray] = {}
    for value, name in names.items():
        voxels = np.argwhere(labels == value)
        if not len(voxels):
            continue
        region = voxels @ ras_from_voxel[:3, :3].T + ras_from_voxel[:3, 3]
        if kind == "centroid":
            points[name] = region.mean(axis=0)
            continue
        for axis, (lowest, highest) in enumerate(EXTREMES):
            along = region[:, axis]
            points[f"{name}_{lowest}"] = region[along < along.min() + cap_mm].mean(axis=0)
            points[f"{name}_{highest}"] = region[along > along.max() - cap_mm].mean(axis=0)
    return points


def check_landmarks_inside(
    points: Mapping[str, np.ndarray], ras_from_voxel: np.ndarray, shape: Iterable[int], where: str
) -> None:
    """Check that points (RAS mm) lie in a volume, whose border is half a voxel outside its outermost voxel centres.

    Raises:
        InputError: names ``where``, the farthest point and its distance from the volume in mm.
    """
    if not points:
        return
    matrix = np.asarray(ras_from_voxel, dtype=np.float64)
    positions = np.stack([np.asarray(point, dtype=np.float64) for point in points.values()])
    voxels = (positions - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    outside = voxels - np.clip(voxels, -0.5, np.asarray(tuple(shape)) - 0.5)
    distance_mm = np.linalg.norm(outside @ matrix[:3, :3].T, axis=1)
    worst = int(distance_mm.argmax())
    if distance_mm[worst] > 1e-3:
        count = int((distance_mm > 1e-3).sum())
        raise InputError(
            f"{where}: {count} of {len(points)} landmarks lie outside the image, {list(points)[worst]} by "
            f"{distance_mm[worst]:.1f} mm; expected points inside: landmarks of another case, or LPS taken for RAS?"
        )


def markup_points(text: str, name: str) -> Iterable[MarkupPoint]:
    """Yield the placed control points of a Slicer Markups file, whose ``name`` is for messages.

    Raises:
        InputError: not a Markups file, a markup that is no list of points, an unknown coordinate system or unit.
    """
    try:
        markups = json.loads(text)["markups"]
        nodes = [(node, node.get("controlPoints", [])) for node in markups]
        placed = [
            (node, [point for point in points if point.get("positionStatus", "defined") == "defined"])
            for node, points in nodes
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{name}: not a Slicer Markups file; expected JSON with a list 'markups'") from None
    for node, points in placed:
        if node.get("type", "Fiducial") != "Fiducial":
            raise InputError(f"{name}: holds a markup of type {node['type']}; expected Fiducial points only")
        if node.get("coordinateUnits", "mm") not in ("mm", ["mm"] * 3):
            raise InputError(f"{name}: coordinateUnits is {node['coordinateUnits']}; expected mm")
        system = _system(node.get("coordinateSystem", "LPS"), name)
        for point in points:
            yield MarkupPoint(str(point.get("label", "")), point.get("position"), system, str(node.get("name", "")))


def _read_fcsv(text: str, name: str) -> Iterable[tuple[str, Any, str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    header = dict(
        [part.strip() for part in line.lstrip("# ").split("=", 1)] for line in lines if line[0] == "#" and "=" in line
    )
    if "CoordinateSystem" not in header:
        raise InputError(f"{name}: has no CoordinateSystem line; expected '# CoordinateSystem = LPS' or RAS")
    system = _system(header["CoordinateSystem"], name)
    columns = [column.strip() for column in header["columns"].split(",")] if "columns" in header else FCSV_COLUMNS
    for row in csv.DictReader((line for line in lines if line[0] != "#"), fieldnames=columns):
        yield (row.get("label") or "").strip(), [row.get(axis) for axis in "xyz"], system


def _read_table(text: str, name: str) -> Iterable[tuple[str, Any, str]]:
    table = csv.DictReader(text.splitlines())
    columns = [column.strip() for column in table.fieldnames or []]
    table.fieldnames = columns
    systems = [system for system in ("LPS", "RAS") if {f"{system.lower()}_{axis}" for axis in "xyz"} <= set(columns)]
    if "label" not in columns or len(systems) != 1:
        raise InputError(f"{name}: expected the columns label and either lps_x, lps_y, lps_z or ras_x, ras_y, ras_z")
    cases = set()
    for row in table:
        cases.add(row.get("case"))
        if len(cases) > 1:
            raise InputError(f"{name}: holds several cases; expected the landmarks of one case")
        position = [(row[f"{systems[0].lower()}_{axis}"] or "").strip() for axis in "xyz"]
        if any(position):
            yield (row["label"] or "").strip(), position, systems[0]


def _system(value: Any, name: str) -> str:
    if str(value) not in RAS_FROM:
        raise InputError(f"{name}: coordinate system {value}; expected LPS or RAS")
    return str(value)


def finite_position(value: Any, name: str, label: str, system: str) -> np.ndarray:
    """Turn a position of a file into (3,) float64, RAS mm; InputError where it is not three finite numbers."""
    try:
        position = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        position = np.empty(0)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise InputError(f"{name}: the position of {label} is not three finite numbers")
    return position * RAS_FROM[system]
