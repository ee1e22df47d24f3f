"""Detections -> files: COCO results, and boxes for 3D Slicer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medrl.data.write import MARKUPS_SCHEMA, RAS_TO_LPS, write_json
from medrl.types import Detection, InputError

DECIMALS = 3


def coco_results(found: Mapping[str, Sequence[Detection]], category: str) -> list[dict[str, Any]]:
    """COCO results of the detections of every file name, best first.

    ``bbox`` is [x, y, w, h] in pixels, for volumes [x, y, z, dx, dy, dz] in RAS mm, which ``unit`` tells.
    """
    results = []
    for number, (name, detections) in enumerate(found.items(), start=1):
        for detection in sorted(detections, key=lambda one: -one.score):
            box = np.asarray(detection.box, dtype=np.float64)
            dims = len(box) // 2
            if not np.isfinite(box).all() or (box[:dims] >= box[dims:]).any():
                raise InputError(f"{name}: a detection has no proper box; expected low corner before high corner")
            results.append({
                "image_id": number, "file_name": name, "category_id": 1, "category": category,
                "bbox": [round(float(n), DECIMALS) for n in (*box[:dims], *(box[dims:] - box[:dims]))],
                "score": round(float(detection.score), 4), "unit": "pixels" if dims == 2 else "RAS mm",
            })  # fmt: skip
    return results


def write_detections(path: Path | str, found: Mapping[str, Sequence[Detection]], category: str) -> None:
    """Write ``detections.json``, a list of COCO results; see `coco_results`."""
    write_json(path, coco_results(found, category))  # type: ignore[arg-type]


def write_rois(path: Path | str, detections: Sequence[Detection], category: str) -> None:
    """Write boxes in RAS mm as ROI markups of 3D Slicer (.mrk.json, LPS mm), along the patient's axes."""
    markups = []
    for number, detection in enumerate(detections, start=1):
        low, high = np.asarray(detection.box, dtype=np.float64).reshape(2, 3)
        centre = [round(float(n), 4) for n in RAS_TO_LPS * (low + high) / 2]
        label = f"{category}_{number}"
        markups.append({
            "type": "ROI", "coordinateSystem": "LPS", "coordinateUnits": "mm", "name": label, "roiType": "Box",
            "center": centre, "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
            "size": [round(float(n), 4) for n in high - low], "insideOut": False,
            "controlPoints": [{
                "id": "1", "label": label, "description": f"score {detection.score:.2f}, {detection.steps} steps",
                "position": centre, "selected": True, "locked": False, "visibility": True, "positionStatus": "defined",
            }],
        })  # fmt: skip
    write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": markups})
