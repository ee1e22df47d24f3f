"""Files of detections: COCO results, ROI markups in LPS, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from monai.data import MetaTensor

from medrl.data.box_pictures import draw_detections
from medrl.data.detections import coco_results, write_detections, write_rois
from medrl.data.phantoms import random_affine
from medrl.types import Detection, InputError


def test_coco_results(tmp_path):
    found = {"a.png": [Detection((1, 2, 4, 8), 0.25), Detection((0, 0, 5, 5), 0.75)], "b.png": []}
    write_detections(tmp_path / "detections.json", found, "cell")
    results = json.loads((tmp_path / "detections.json").read_text())
    assert [(r["file_name"], r["bbox"], r["score"], r["category"]) for r in results] == [
        ("a.png", [0, 0, 5, 5], 0.75, "cell"), ("a.png", [1, 2, 3, 6], 0.25, "cell")
    ]  # fmt: skip
    assert {r["unit"] for r in results} == {"pixels"}
    with pytest.raises(InputError, match=r"a.png: a detection has no proper box"):
        coco_results({"a.png": [Detection((5, 2, 4, 8), 0.25)]}, "cell")
    volumes = coco_results({"v.nii": [Detection((-1, -2, -3, 1, 2, 3), 0.5)]}, "liver")
    assert volumes[0]["bbox"] == [-1, -2, -3, 2, 4, 6]
    assert volumes[0]["unit"] == "RAS mm"


def test_rois_are_in_lps(tmp_path):
    write_rois(tmp_path / "case_roi.mrk.json", [Detection((10, 20, 30, 16, 28, 40), 0.5, 7)], "liver")
    document = json.loads((tmp_path / "case_roi.mrk.json").read_text())
    roi = document["markups"][0]
    assert roi["type"] == "ROI"
    assert roi["coordinateSystem"] == "LPS"
    assert roi["center"] == [-13, -24, 35]
    assert roi["size"] == [6, 8, 10]
    corners = np.array(roi["center"]) - np.abs(np.reshape(roi["orientation"], (3, 3))) @ np.array(roi["size"]) / 2
    np.testing.assert_allclose(corners * [-1, -1, 1] - [6, 8, 0], [10, 20, 30])
    assert roi["controlPoints"][0]["position"] == roi["center"]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    path = np.array([[0, 0, 40, 30], [4, 4, 30, 20]])
    draw_detections(tmp_path / "a.png", image, [Detection((5, 5, 20, 15), 0.9, 2, path)], truth=[(6, 5, 21, 15)])
    generator = np.random.default_rng(0)
    volume = MetaTensor(generator.normal(size=(1, 8, 9, 10)), affine=random_affine(generator, (3.0, 4.0, 5.0)))
    draw_detections(tmp_path / "b.png", volume, [Detection((-5, -5, -5, 5, 5, 5), 0.9)])
    draw_detections(tmp_path / "c.png", volume, [])
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png", "c.png"))
