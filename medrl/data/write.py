"""Results -> files, each written whole: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medrl.types import MISSING, NOT_CONVERGED, InputError, Landmark

MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
DECIMALS = 4  # 0.1 micrometre


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Give a temporary path of the same suffix and folder; it becomes ``path`` on success and is removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_markups(path: Path | str, landmarks: Sequence[Landmark]) -> None:
    """Write a Slicer Markups file (.mrk.json, LPS mm), one control point a landmark; a missing one has no position."""
    write_points(
        path,
        [(mark.label, _describe(mark), None if mark.status == MISSING else mark.position_mm) for mark in landmarks],
    )


def write_points(path: Path | str, points: Iterable[tuple[str, str, Sequence[float] | np.ndarray | None]]) -> None:
    """Write (label, description, RAS mm or None where missing) as a Slicer Markups file (.mrk.json, LPS mm)."""
    controls = []
    for number, (label, description, position_mm) in enumerate(points, start=1):
        point: dict[str, Any] = {"id": str(number), "label": label, "description": description}
        if position_mm is not None:
            point["position"] = _lps(position_mm)
        point |= {
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "missing" if position_mm is None else "defined",
        }
        controls.append(point)
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
    write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": [markup]})


def write_landmarks_csv(path: Path | str, landmarks: Mapping[str, Sequence[Landmark]]) -> None:
    """Write one table over all cases (case id -> landmarks), LPS mm; the position of a missing landmark is empty."""
    columns = ["case", "label", "status", "lps_x", "lps_y", "lps_z", "uncertainty_mm", "presence", "steps"]
    table = [
        [
            case,
            point.label,
            point.status,
            *(("", "", "") if point.status == MISSING else _lps(point.position_mm)),
            round(float(point.uncertainty_mm), DECIMALS),
            round(float(point.presence), DECIMALS),
            int(point.steps),
        ]
        for case, points in landmarks.items()
        for point in points
    ]
    _write_table(path, columns, table)


def write_truth_csv(path: Path | str, points: Mapping[str, np.ndarray]) -> None:
    """Write known landmarks (label -> (3,) RAS mm) as a table label, lps_x, lps_y, lps_z."""
    _write_table(path, ["label", "lps_x", "lps_y", "lps_z"], [[label, *_lps(point)] for label, point in points.items()])


def write_image(path: Path | str, array: np.ndarray, ras_from_voxel: np.ndarray) -> None:
    """Write a volume (X, Y, Z) and its ras_from_voxel (mm) to .nii, .nii.gz, .nrrd or .mha; else a ValueError."""
    if not str(path).lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        raise ValueError(f"{Path(path).name}: expected .nii, .nii.gz, .nrrd or .mha")
    with whole_file(path) as part:
        if part.name.lower().endswith((".nii", ".nii.gz")):
            import nibabel

            image = nibabel.Nifti1Image(array, ras_from_voxel)
            image.set_qform(ras_from_voxel, code="scanner")  # both, so that every reader takes the same geometry
            image.set_sform(ras_from_voxel, code="scanner")
            image.header.set_xyzt_units("mm")
            nibabel.save(image, part)
        else:
            import SimpleITK

            spacing_mm = np.linalg.norm(ras_from_voxel[:3, :3], axis=0)
            image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
            image.SetDirection((RAS_TO_LPS[:, None] * ras_from_voxel[:3, :3] / spacing_mm).ravel().tolist())
            image.SetOrigin((RAS_TO_LPS * ras_from_voxel[:3, 3]).tolist())
            image.SetSpacing(spacing_mm.tolist())
            SimpleITK.WriteImage(image, str(part), useCompression=True)


def write_report(path: Path | str, report: Mapping[str, Any]) -> None:
    """Write ``report.json``: `report_header` and, a case, status, reason, seconds and files.  No patient data."""
    write_json(path, report)


def report_header(device: torch.device | str, bundle: Path | str | None = None) -> dict[str, Any]:
    """Return what a report starts with: versions, device, and name and version of the bundle folder."""
    device = torch.device(device)
    header: dict[str, Any] = {
        "versions": {name: _version(name) for name in ("medrl", "torch", "monai")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
    header["versions"]["python"] = platform.python_version()
    if bundle is not None:
        metadata = json.loads((Path(bundle) / "configs" / "metadata.json").read_text(encoding="utf-8"))
        header["bundle"] = {"name": Path(bundle).resolve().name, "version": metadata["version"]}
    return header


def write_json(path: Path | str, document: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN), whole."""
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _write_table(path: Path | str, columns: Sequence[str], table: Sequence[Sequence[Any]]) -> None:
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(table)


def _describe(landmark: Landmark) -> str:
    if landmark.status == MISSING:
        return f"missing, presence {landmark.presence:.2f}"
    start = "not converged, " if landmark.status == NOT_CONVERGED else ""
    return (
        f"{start}uncertainty {landmark.uncertainty_mm:.1f} mm, presence {landmark.presence:.2f}, {landmark.steps} steps"
    )


def _lps(position_mm: Sequence[float] | np.ndarray) -> list[float]:
    position = np.asarray(position_mm, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise InputError("a landmark has no finite position; expected three numbers in mm, or the status missing")
    return [round(float(number), DECIMALS) for number in RAS_TO_LPS * position]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
