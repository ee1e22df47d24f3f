"""Statistics worked by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blobs import anatomy
from monai.data import MetaTensor

from medrl.data.write import write_image, write_truth_csv
from medrl.inference.assessment import Assessment, mean_position, summarise
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
    matrix = torch.diag(torch.tensor([-2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor([7.0, 0.0, -9.0])
    centre = torch.tensor([7.0 - 10.0, 11.0, -9.0 + 15.0])
    truth = torch.tensor([[0.0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float64)
    image = MetaTensor(torch.rand(1, 11, 12, 11), affine=matrix)
    found = truth + torch.tensor([3.0, 0.0, 4.0])
    marks = [Landmark(f"blob_{n}", tuple(p.tolist())) for n, p in enumerate(found)]
    marks[3] = Landmark("blob_3", marks[3].position_mm, status=MISSING)
    found[3] = torch.nan
    data = {"case": "one", "image": image, "label": truth, "pred": found, "landmarks": marks}
    engine = SimpleNamespace(state=SimpleNamespace(output=[data]))
    baseline = truth - centre + torch.tensor([0.0, 2.0, 0.0])
    assessment = Assessment(tmp_path, baseline_mm=baseline, failure_mm=6.0, resamples=50)
    assessment.add(engine)
    engine.state.output = []
    assessment.add(engine)  # a case that failed
    assessment.finish(engine)
    diagonal = np.linalg.norm([22.0, 24.0, 33.0])
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["cases"] == 1
    assert summary["agent"]["mean_mm"]["value"] == pytest.approx((15 + diagonal) / 4, abs=1e-3)
    assert summary["agent"]["failures"]["value"] == 0.25
    assert summary["baseline"]["mean_mm"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert len((tmp_path / "evaluation.csv").read_text().splitlines()) == 5


def test_mean_position_is_from_the_images_centre(tmp_path):
    entries = []
    for n, shift in enumerate((0.0, 100.0)):
        matrix = np.diag([-2.0, 2.0, 2.0, 1.0])
        matrix[:3, 3] = shift + np.array([9.0, -9.0, -9.0])  # ten voxels a side: the centre is at the shift
        voxels = np.random.default_rng(n).integers(0, 9, (10, 10, 10)).astype(np.int16)
        write_image(tmp_path / f"{n}.nii.gz", voxels, matrix)
        write_truth_csv(tmp_path / f"{n}.csv", {"blob_0": shift + np.array([1.0 + 2 * n, 5.0, -3.0])})
        entries.append({"image": f"{n}.nii.gz", "landmarks": f"{n}.csv"})
    (tmp_path / "dataset.json").write_text(json.dumps({"landmarks": anatomy().labels, "training": entries}))
    places = mean_position(tmp_path, anatomy())
    assert torch.allclose(places[0], torch.tensor([2.0, 5.0, -3.0]).double(), atol=1e-4)
    assert torch.equal(places[1:], anatomy().shape_mm[1:].double())
    (tmp_path / "dataset.json").write_text(json.dumps({"landmarks": anatomy().labels, "test": entries}))
    assert torch.equal(mean_position(tmp_path, anatomy()), anatomy().shape_mm.double())


def test_nothing_is_written_where_every_case_failed(tmp_path):
    Assessment(tmp_path, baseline_mm=torch.zeros(4, 3), failure_mm=6.0).finish(None)
    assert not list(tmp_path.iterdir())
