"""The benchmarks run, in small, and their figures are of the right order; how fast anything is, no test says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # the module sets it: undone afterwards
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("landmark_speed")


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_check")


def test_environment_rows_name_every_size(speed: ModuleType) -> None:
    rows = speed.environment_rows(0.01, 32)
    assert len(rows) == 3 * 3 + 1
    assert all(row.unit == "steps/s" and row.value > 10 for row in rows)
    assert rows[-1].value == 1010


def test_updates_are_compared_at_equal_precision(speed: ModuleType) -> None:
    rows = {row.what: row.value for row in speed.update_rows(0.0, 2, 32, 35)}
    large, small = (
        rows[f"{name}, bf16"]
        for name in ("AlansaryNet, 4 crops of 35^3, DQN", "ConcentricNet, 17^3 at 3 levels, double DQN")
    )
    assert rows["AlansaryNet, DQN / ConcentricNet, double DQN, bf16"] == pytest.approx(large / small)
    assert rows["peer / AlansaryNet, DQN, fp32"] == pytest.approx(
        15.3 / rows["AlansaryNet, 4 crops of 35^3, DQN, fp32"]
    )
    assert large > small > 0
    assert rows["AlansaryNet, 4 crops of 35^3, double DQN, fp32"] > 0


def test_the_peers_recipe_is_plain_q_learning(speed: ModuleType) -> None:
    options = {"side": 32, "size": 35, "rows": 2, "batch_size": 1, "capacity": 200}
    plain, double = (speed.build_agent("AlansaryNet", double=double, **options) for double in (False, True))
    for agent in (plain, double):
        agent.looks = 0
        for network in (agent.network, agent.target, agent.average):
            network.register_forward_hook(lambda *_, agent=agent: setattr(agent, "looks", agent.looks + 1))
        agent.learn()
    assert (plain.looks, double.looks) == (2, 3)


def test_volumes_are_timed_for_each_landmark(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = (16, 16, 16), (9.0, 9.0, 9.0), "jumps"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    whole, each, peak = speed.volume_rows(*volume)
    assert whole.value == pytest.approx(10 * each.value)
    assert 0 < peak.value < 20_000
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # in name only: two would wait for each other here
    both, peak = speed.volume_rows(*volume)
    assert (both.what, both.unit) == ("16 x 16 x 16, jumps, 2 threads", "s/volume, wall clock")
    assert both.value > 0
    assert peak.unit == "MB"


def test_memory_grows_by_the_bytes_of_the_transitions(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "landmark_speed.py"),
        "--small",
        "--parts",
        "memory",
        "--json",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "| memory | 20,000 transitions |" in done.stdout
    rows = json.loads(out.read_text())["rows"]
    stored = [row["value"] for row in rows if row["unit"] == "bytes/transition"]
    assert stored == pytest.approx([44, 91_134], abs=0.5)
    grown = [row["value"] for row in rows if row["unit"] == "MB"]
    assert len(grown) == 1
    assert grown[0] < 30


def test_unknown_part_is_refused(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--parts", "env,speed"])
    assert "unknown part speed" in capsys.readouterr().err


def test_gpu_check_takes_every_way_in_small(
    gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    code = gpu_check.main(["--dry-run", "--seconds", "0", "--json", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    assert record["failures"] == []
    assert code == 0
    assert {row["part"] for row in record["rows"]} == {"card", "env", "sync", "volume", "update"}
    for mode in gpu_check.LIMITS:
        assert f"| update | FoveaNet, batch 4, {mode} |" in printed
    assert printed.count("gradient differs by") == 2 * 3 + 1


def test_gpu_check_notices_wrong_gradients(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    report, reference, prepare = gpu_check.Report(seconds=0.0, limit=60.0), gpu_check.Reference(), gpu_check.prepare

    def spoil(agent: Any, mode: str, device: torch.device) -> Any:
        if "channels_last_3d" in mode:
            agent.learning_rate, agent.clip = 0.0, 1e-3
        return prepare(agent, mode, device)

    monkeypatch.setattr(gpu_check, "prepare", spoil)
    for mode in ("bf16", "bf16, channels_last_3d"):
        gpu_check.time_update(
            report, "ConcentricNet", 2, 9, mode, gpu_check.SMALL, torch.device("cpu"), 1e12, reference
        )
    assert len(report.failures) == 1
    assert "at most 5 % was expected" in report.failures[0]


def test_gpu_check_keeps_a_failed_row_and_goes_on(gpu_check: ModuleType) -> None:
    report = gpu_check.Report(seconds=0.0, limit=60.0)
    with report.attempt("env", "something"):
        raise RuntimeError("out of memory\nand a long story")
    report.add("env", "something else", 1.0, "steps/s")
    assert report.failures == ["env, something: RuntimeError: out of memory"]
    assert "FAILED, RuntimeError: out of memory |" in gpu_check.table(report.rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_check_without_a_device_says_so(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_figures_are_rounded_to_three(speed: ModuleType) -> None:
    shown = [speed.figure(value) for value in (1234.0, 91_134.0, 0.012345, 15.34, float("nan"))]
    assert shown == ["1,230", "91,100", "0.0123", "15.3", "-"]
