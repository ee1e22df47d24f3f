"""The benchmark of tracking runs, goes on where it was broken off, and prints what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medrl.data.track_phantoms import write_phantoms
from medrl.geometry.box_motion import MotionNoise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tracking(monkeypatch):
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "tracking", raising=False)
    import tracking

    return tracking


@pytest.fixture
def small(tracking, monkeypatch):
    """The same with next to nothing to do."""
    import tracking_arms

    monkeypatch.setattr(tracking, "TRAINING", 3)
    monkeypatch.setattr(tracking, "PLAIN", 3)
    monkeypatch.setattr(tracking, "TUNING", 1)
    monkeypatch.setattr(tracking, "TEST", 1)
    monkeypatch.setattr(tracking, "fit_noise", lambda clip: MotionNoise())
    monkeypatch.setattr(tracking, "RULES", {"patience": (3, 6)})
    monkeypatch.setattr(tracking, "BACK", {"fill": (None, 5)})
    monkeypatch.setattr(tracking, "POLICIES", {"confirm": (2, 3)})
    stages = (("clone", 1),), (("clone", 1), ("PPO", 1)), (("clone", 1), ("PPO with shuffled rewards", 1)), ()
    monkeypatch.setattr(tracking, "ARMS", dict(zip(("cloning", "PPO", "shuffled", "chance"), stages, strict=True)))
    monkeypatch.setattr(tracking_arms, "HIDDEN", 16)
    monkeypatch.setattr(tracking_arms, "EPOCH", dict.fromkeys(tracking_arms.EPOCH, 1))
    monkeypatch.setitem(tracking_arms.train.__kwdefaults__, "rows", 8)
    monkeypatch.setitem(tracking_arms.train.__kwdefaults__, "steps", 2)
    return tracking


def run(tracking, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tracking.py", *map(str, arguments)])
    tracking.main()


def test_table(small, monkeypatch, tmp_path, capsys):
    pytest.importorskip("motmetrics")
    real = write_phantoms(tmp_path / "real", 1, seed=5, frames=(12, 12), objects=(2, 2))
    arms = ("cloning", "PPO", "shuffled", "chance")
    arguments = ("--output", tmp_path / "out", "--seeds", 2, "--data", real, "--arms", *arms)
    run(small, monkeypatch, *arguments)
    table = json.loads((tmp_path / "out/results_test.json").read_text())
    assert list(table) == ["procedural, boxes alone", "procedural, with frames", "phantom_000"]
    rows = table["procedural, boxes alone"]
    learned = [name + way for name in arms for way in ("", ", frame by frame")]
    rules = ["IoU tracker", "constant velocity", "constant velocity, looking back"]
    assert list(rows) == [*rules, *learned, "ideal decisions"]
    assert rows["ideal decisions"]["idf1"]["mean"] > rows["constant velocity"]["idf1"]["mean"] + 0.05
    assert len(rows["PPO"]["idf1"]["seeds"]) == 2
    assert "ideal decisions" in capsys.readouterr().out
    weights = tmp_path / "out/clone_1-PPO_1_0.pt"
    before = weights.stat().st_mtime_ns
    run(small, monkeypatch, *arguments[: -len(arms)], "PPO", "--motmetrics")
    again = json.loads((tmp_path / "out/results_test.json").read_text())
    for name, row in again["procedural, boxes alone"].items():
        for key, cell in row.items():
            assert rows[name][key]["mean"] == pytest.approx(cell["mean"], abs=1e-9), key
    assert weights.stat().st_mtime_ns == before


def test_speed_counts_rows(tracking, monkeypatch):
    from medrl.data.track_cases import TrackCases
    from medrl.data.track_phantoms import draw_videos

    clock = iter(range(1000))
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: float(next(clock)))
    found = tracking.speed(TrackCases.from_phantoms(draw_videos(2, 0)), rows=4)
    assert found["steps/s, 4 rows"] > found["steps/s, 1 rows"] > 0
    assert found["updates/s, acting included"] > 0
