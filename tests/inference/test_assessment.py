"""Statistics worked by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blobs import SHAPE_MM, anatomy, blob_volume
from monai.data import MetaTensor

from medrl.inference.assessment import Assessment, summarise
from medrl.types import FOUND, MISSING, Landmark


def row(case, error, baseline=4.0, *, status=FOUND, known=1, doubt=1.0) -> dict:
    return {
        "case": case, "label": "a", "status": status, "known": known, "error_mm": error, "baseline_mm": baseline,
        "uncertainty_mm": doubt,
    }  # fmt: skip


def test_summary_by_hand():
    rows = [row("one", 1.0, doubt=1.0), row("one", 3.0, doubt=2.0), row("two", 5.0, doubt=3.0)]
    rows += [row("two", 100.0, status=MISSING, doubt=9.0), row("two", None, None, status=MISSING, known=0)]
    summary = summarise(rows, failure_mm=4.0, resamples=500)
    agent = {name: number["value"] for name, number in summary["agent"].items()}
    assert agent["mean_mm"] == pytest.approx(27.25)
    assert agent["median_mm"] == pytest.approx(4.0)
    assert agent["p95_mm"] == pytest.approx(5.0 + 0.85 * 95.0)
    assert agent["max_mm"] == 100.0
    assert agent["missing"] == 0.25
    assert agent["failures"] == 0.5
    assert {name: number["value"] for name, number in summary["baseline"].items()} == {
        "mean_mm": 4.0, "median_mm": 4.0, "p95_mm": 4.0, "max_mm": 4.0, "missing": 0.0, "failures": 0.0,
    }  # fmt: skip
    assert summary["uncertainty_rank"] == 1.0
    assert (summary["absent"], summary["sensitivity"], summary["specificity"]) == (1, 1.0, 0.75)
    assert summary["per_landmark"] == {"a": 27.25}


def test_intervals_are_over_cases():
    # two cases, every landmark of a case alike: a resample has mean 1, 5 or 9, and never anything else
    rows = [row(case, error) for case, error in (("one", 1.0), ("two", 9.0)) for _ in range(50)]
    mean = summarise(rows, failure_mm=10.0)["agent"]["mean_mm"]
    assert mean == {"value": 5.0, "low": 1.0, "high": 9.0}


def test_files_and_baseline(tmp_path):
    matrix = torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor([45.0, -45.0, -45.0])
    truth = SHAPE_MM.double()
    image = MetaTensor(blob_volume(matrix, (46, 46, 46), truth)[None], affine=matrix)
    found = truth + torch.tensor([3.0, 0.0, 4.0])
    marks = [Landmark(f"blob_{n}", tuple(p.tolist())) for n, p in enumerate(found)]
    marks[3] = Landmark("blob_3", marks[3].position_mm, status=MISSING)
    found[3] = torch.nan
    data = {"case": "one", "image": image, "label": truth, "pred": found, "landmarks": marks}
    engine = SimpleNamespace(state=SimpleNamespace(output=[data]))
    assessment = Assessment(tmp_path, anatomy=anatomy(), failure_mm=6.0, resamples=50)
    assessment.add(engine)
    engine.state.output = []
    assessment.add(engine)  # a case that failed
    assessment.finish(engine)
    diagonal = 92 * np.sqrt(3)
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["cases"] == 1
    assert summary["agent"]["mean_mm"]["value"] == pytest.approx((15 + diagonal) / 4, abs=1e-3)
    assert summary["agent"]["failures"]["value"] == 0.25
    # the balls are equally large, so their common centre of mass is the middle of the shape
    assert summary["baseline"]["max_mm"]["value"] < 1.0
    assert len((tmp_path / "evaluation.csv").read_text().splitlines()) == 5


def test_nothing_is_written_where_every_case_failed(tmp_path):
    Assessment(tmp_path, anatomy=anatomy(), failure_mm=6.0).finish(None)
    assert not list(tmp_path.iterdir())
