"""The cutting benchmark: the whole on tiny videos, and its intervals by hand."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest

from medrl.data.video_phantoms import phantom_cases, write_video_phantoms

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def cutting(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("cutting")
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(module, "LENGTH", 3)
    return module


def test_intervals_by_hand(cutting):
    seeds = [{"J": value, "each": [0.0], "decay": 0.1} for value in (0.5, 0.6, 0.7)]
    assert cutting.interval(seeds, "J") == f"0.600 ± {4.30 * 0.1 / 3**0.5:.3f}"
    assert cutting.interval(seeds, "decay") == "0.100"
    videos = [{"J": 0.5, "each": [0.4, 0.6], "decay": 0.1}]
    assert cutting.interval(videos, "J") == f"0.500 ± {1.96 * 0.02**0.5 / 2**0.5:.3f}"


def test_the_whole_on_tiny_videos(cutting, tmp_path, monkeypatch, capsys):
    write_video_phantoms(tmp_path / "data", 3, frames=3, size=(24, 40))
    monkeypatch.setattr(cutting, "FOLDS", 2)
    monkeypatch.setattr(cutting, "phantom_cases", partial(phantom_cases, frames=3, size=(24, 24)))
    monkeypatch.setattr(
        "sys.argv",
        ["cutting.py", "--models", str(tmp_path), "--output", str(tmp_path / "out.json"), "--seeds", "2",
         "--controls", "2","--cases", "2", "2", "2", "--updates", "2", "1", "1", "--tune", "1", "1", "1",
         "--data", str(tmp_path / "data")],
    )  # fmt: skip
    cutting.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    rows = figures["procedural"]
    assert len(rows["cloning, then PPO"]) == len(rows["cloning, then PPO, shuffled reward"]) == 2
    assert len(rows["PPO without cloning"]) == len(rows["PPO without cloning, shuffled reward"]) == 2
    assert 0 <= rows["true box, context 0.4"][0]["J"] <= 1
    left_out = figures["sequences"]["tuned cutter: cloning, then PPO, tuned"][1]
    assert sorted(left_out["J of"]) == ["phantom_000", "phantom_001", "phantom_002"]
    assert left_out["J"] == pytest.approx(sum(left_out["each"]) / 3)
    assert "| cloning, then PPO |" in capsys.readouterr().out
