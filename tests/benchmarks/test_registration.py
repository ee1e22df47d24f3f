"""The registration benchmark: its scores by hand, and the whole on tiny phantoms."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medrl.data.pair_phantoms import write_pair_phantoms
from medrl.inference.registration_assessment import Result
from medrl.types import CONVERGED

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def registration(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("registration")


def test_success_against_the_angle_by_hand(registration):
    points = torch.zeros(4, 3)
    cases = [("a_0", 1.0, 10.0), ("a_1", 5.0, 20.0), ("b_0", 1.0, 29.9), ("b_1", 3.0, 180.0)]
    answers = [
        registration.Answer(Result(name, name[0], "large", CONVERGED, error, 50.0, 0.5, 0.0, points), seconds, angle)
        for seconds, (name, error, angle) in enumerate(cases)
    ]
    scores = registration.score(answers, success_mm=2.0, seed=0)
    assert scores["levels"]["large"]["success"]["value"] == 0.5
    assert scores["levels"]["large"]["consistent"]["value"] == 1.0
    assert scores["levels"]["large"]["seconds"] == 1.5
    assert scores["per_case"] == {"a_0": 1.0, "a_1": 5.0, "b_0": 1.0, "b_1": 3.0}
    assert scores["turns"]["0-15"] == {"cases": 1, "success": 1.0}
    assert scores["turns"]["15-30"] == {"cases": 2, "success": 0.5}
    assert scores["turns"]["30-60"] == {"cases": 0, "success": None}
    assert scores["turns"]["90-180"] == {"cases": 1, "success": 0.0}


def test_tables_picture_and_file_on_phantoms(registration, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_pair_phantoms(tmp_path, 3, np.random.default_rng(0), shape=(32, 32, 32), spacing_mm=6.0)
    output, picture = tmp_path / "results.json", tmp_path / "success.png"
    result = registration.main([
        "--data", str(tmp_path), "--sections", "training", "--levels", "small", "--rows", "identity", "single",
        "reference", "--subset", "patient_000", "patient_001", "patient_002", "--success_mm", "5",
        "--output", str(output), "--picture", str(picture),
    ])  # fmt: skip
    assert json.loads(output.read_text()) == result
    assert picture.stat().st_size > 1000
    success = {row: scores["levels"]["small"]["success"]["value"] for row, scores in result["rows"].items()}
    assert success["identity"] == 0.0
    assert success["single"] == success["reference"] == 1.0
    printed = capsys.readouterr().out
    assert "| MI, single start | small | 2 | 100% (100% to 100%) | 100% |" in printed
    assert "90-180 degrees" in printed


def test_rows_of_a_bundle_need_one(registration, capsys):
    with pytest.raises(SystemExit):
        registration.read_options(["--data", "folder", "--rows", "agent"])
    assert "--bundle" in capsys.readouterr().err
    assert registration.read_options(["--data", "folder"]).rows == ["identity", "single", "multi", "reference"]
