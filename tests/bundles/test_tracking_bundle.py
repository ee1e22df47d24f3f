"""Tracking: a training of seconds on procedural videos, and what users do with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from medrl.data.track_phantoms import write_phantoms
from medrl.data.tracks import read_boxes
from medrl.inference.tracking import SETTINGS

KIND = "_tracking"
RULES = ["IoU tracker", "constant velocity", "constant velocity, looking back"]
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")
SMALL = {"frames": (12, 14), "objects": (2, 3), "size": (320, 200)}


def test_smoke_training(bundle, smoke):
    folder = smoke(bundle)
    agent = json.loads((folder / "models/agent.json").read_text())
    assert set(agent) == {"policy", "inference", "baselines"}
    assert set(agent["inference"]) == {"noise", *SETTINGS}
    assert list(agent["baselines"]) == RULES
    weights = torch.load(folder / "models/model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    for name in ("clone", "ppo"):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert any("val_idf1" in line for line in lines), name


def test_a_training_on_own_videos(bundle, workflow, tmp_path):
    write_phantoms(tmp_path / "videos", 3, **SMALL)
    training = workflow(
        bundle, "train", "smoke", kind="train", output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path / "videos")
    )
    training.run()
    training.finalize()
    assert (tmp_path / "out/models/model.pt").is_file()


def test_inference(bundle, workflow, tmp_path):
    folder = write_phantoms(tmp_path / "in", 3, pictures=True, **SMALL)
    shutil.rmtree(folder / "phantom_001/img1")
    (folder / "phantom_002/img1/000003.jpg").unlink()
    (folder / "silent/det").mkdir(parents=True)
    (folder / "silent/det/det.txt").write_text("")
    running = workflow(
        bundle, "inference", dataset_dir=str(folder), output_dir=str(tmp_path / "out"), device="cpu", pictures=True
    )
    assert running.check_properties() == []
    with pytest.raises(Exception, match="check"):
        running.run()
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())["cases"]
    assert report["phantom_002"]["reason"].startswith("phantom_002/img1: frame 3 is missing; expected pictures 1 to ")
    assert report["silent"]["reason"].startswith("silent/det.txt: no detections")
    assert sorted(p.name for p in out.iterdir()) == [
        "phantom_000.gif", "phantom_000.png", "phantom_000.txt", "phantom_001.gif", "phantom_001.png",
        "phantom_001.txt", "report.json",
    ]  # fmt: skip
    for name in ("phantom_000", "phantom_001"):
        entry, tracks = report[name], read_boxes(out / f"{name}.txt")
        assert entry["status"] == "done"
        assert len(tracks) == entry["boxes"]
        assert len(set(tracks.identity.tolist())) == entry["tracks"]
        line = (out / f"{name}.txt").read_text().splitlines()[0]
        assert line.endswith("-1,-1,-1")
        assert len(line.split(",")) == 10
    with Image.open(out / "phantom_000.gif") as film:
        assert film.is_animated


def test_evaluation(bundle, workflow, tmp_path):
    pytest.importorskip("motmetrics")
    folder = write_phantoms(tmp_path / "in", 2, **SMALL)
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(folder), output_dir=str(tmp_path / "out"), device="cpu",
        resamples=20,
    )  # fmt: skip
    running.run()
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert list(summary) == ["agent", *RULES]
    for entry in summary.values():
        assert set(entry["videos"]) == {"phantom_000", "phantom_001"}
        idf1 = entry["overall"]["idf1"]
        assert 0 <= idf1["low"] <= idf1["value"] <= idf1["high"] <= 1
    rows = (tmp_path / "out/evaluation.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 2


def test_looking_back_can_be_left_out(bundle, workflow, tmp_path):
    folder = write_phantoms(tmp_path / "in", 2, seed=8, **SMALL)
    found = {}
    for switch in ("true", "false"):
        out = tmp_path / switch
        running = workflow(
            bundle, "inference", dataset_dir=str(folder), output_dir=str(out), device="cpu", looking_back=switch
        )
        running.run()
        found[switch] = [read_boxes(out / f"phantom_00{n}.txt") for n in range(2)]
    for back, online in zip(found["true"], found["false"], strict=True):
        assert min(len(back), len(online)) > 0
        assert back.box.shape != online.box.shape or abs(back.box - online.box).max() > 0.5


def test_a_video_without_truth_is_not_measured(bundle, workflow, tmp_path):
    folder = write_phantoms(tmp_path / "in", 2, **SMALL)
    (folder / "phantom_001/gt/gt.txt").unlink()
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(folder), output_dir=str(tmp_path / "out"), device="cpu",
        resamples=20,
    )  # fmt: skip
    with pytest.raises(Exception, match="check"):
        running.run()
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "gt/gt.txt is missing" in report["phantom_001"]["reason"]
    assert list(json.loads((tmp_path / "out/evaluation.json").read_text())["agent"]["videos"]) == ["phantom_000"]
