from __future__ import annotations

import csv
import json
import platform

import numpy as np
import pytest
import torch

from medrl.data.landmarks import read_landmarks
from medrl.data.write import (
    report_header,
    whole_file,
    write_image,
    write_landmarks_csv,
    write_markups,
    write_report,
    write_truth_csv,
)
from medrl.types import FOUND, MISSING, NOT_CONVERGED, InputError, Landmark

LANDMARKS = [
    Landmark("AC", (1.5, -2.25, 30.125), FOUND, uncertainty_mm=1.23, presence=0.984, steps=14),
    Landmark("PC", (-4.0, 5.0, -6.0), NOT_CONVERGED, uncertainty_mm=7.0, presence=0.7, steps=200),
    Landmark("apex", (0.0, 0.0, 0.0), MISSING, presence=0.03),
]


def test_markups_are_what_slicer_expects(tmp_path):
    write_markups(tmp_path / "case.mrk.json", LANDMARKS)
    document = json.loads((tmp_path / "case.mrk.json").read_text())
    assert document["@schema"].endswith("markups-schema-v1.0.3.json#")
    (markup,) = document["markups"]
    assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
    found, lost, missing = markup["controlPoints"]
    assert found["position"] == [-1.5, 2.25, 30.125]
    assert found["description"] == "uncertainty 1.2 mm, presence 0.98, 14 steps"
    assert lost["description"] == "not converged, uncertainty 7.0 mm, presence 0.70, 200 steps"
    assert [point["positionStatus"] for point in (found, lost, missing)] == ["defined", "defined", "missing"]
    assert "position" not in missing
    assert [point["id"] for point in (found, lost, missing)] == ["1", "2", "3"]


def test_round_trips_through_our_reader(tmp_path, generator):
    points = {f"point {number}": generator.normal(scale=80, size=3) for number in range(20)}
    landmarks = [Landmark(label, tuple(point)) for label, point in points.items()]
    write_markups(tmp_path / "a.mrk.json", [*landmarks, LANDMARKS[2]])
    write_landmarks_csv(tmp_path / "a.csv", {"a": [*landmarks, LANDMARKS[2]]})
    write_truth_csv(tmp_path / "b.csv", points)
    for name in ("a.mrk.json", "a.csv", "b.csv"):
        read = read_landmarks(tmp_path / name)
        assert list(read) == list(points)
        for label, point in points.items():
            np.testing.assert_allclose(read[label], point, atol=1e-4)


def test_landmarks_table(tmp_path):
    write_landmarks_csv(tmp_path / "landmarks.csv", {"a": LANDMARKS[:2], "b": LANDMARKS[2:]})
    with (tmp_path / "landmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "case": "a", "label": "AC", "status": "found", "lps_x": "-1.5", "lps_y": "2.25", "lps_z": "30.125",
        "uncertainty_mm": "1.23", "presence": "0.984", "steps": "14",
    }  # fmt: skip
    assert [row["status"] for row in rows] == ["found", "not converged", "missing"]
    assert [rows[2][axis] for axis in ("case", "lps_x", "lps_y", "lps_z")] == ["b", "", "", ""]


@pytest.mark.parametrize("status", [FOUND, NOT_CONVERGED])
def test_a_position_that_is_not_finite_is_never_written(tmp_path, status):
    broken = [Landmark("AC", (0.0, float("nan"), 0.0), status)]
    with pytest.raises(InputError, match="no finite position"):
        write_markups(tmp_path / "a.mrk.json", broken)
    with pytest.raises(InputError, match="no finite position"):
        write_landmarks_csv(tmp_path / "a.csv", {"a": broken})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out" / "case.nii.gz"
    with whole_file(path) as part:
        assert part.parent == path.parent
        assert part.name.endswith("case.nii.gz")
        part.write_text("first")
        assert not path.exists()

    def fill_the_disk():
        with whole_file(path) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_report(tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text('{"version": "0.3.1"}')
    header = report_header("cpu", tmp_path / "bundle")
    assert header["versions"]["torch"] == torch.__version__
    assert header["versions"]["python"] == platform.python_version()
    assert set(header["versions"]) == {"medrl", "monai", "torch", "python"}
    assert header["device"] == "cpu"
    assert header["bundle"] == {"name": "bundle", "version": "0.3.1"}
    cases = {"a": {"status": "done", "seconds": 1.5, "files": ["a.mrk.json"]}}
    write_report(tmp_path / "report.json", header | {"cases": cases})
    assert json.loads((tmp_path / "report.json").read_text()) == header | {"cases": cases}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path / "report.json", {"error_mm": float("nan")})


def test_image_formats_of_two_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        write_image(tmp_path / "a.mhd", np.zeros((2, 2, 2)), np.eye(4))
