"""The speed of segmentation is measured on equal systems; how fast anything is, no test says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("segmentation")


def test_small_run(speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert speed.main(["--small", "--json", str(out)]) == 0
    assert "| solve | 24x20, scikit-image cg_j |" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {row["part"] for row in rows} == {"solve", "seed", "prior", "responses", "steps", "agent", "replay"}
    wrong = {row["what"]: float(row["note"][6:]) for row in rows if row["note"].startswith("error")}
    assert all(error < 1e-3 for what, error in wrong.items() if "scikit" not in what)
    assert wrong["24x20, scikit-image bf"] < 1e-4  # the same systems
    times = {row["what"]: row["value"] for row in rows if row["part"] == "solve" and row["unit"] == "s"}
    ratio = next(row for row in rows if row["unit"] == "times" and row["what"] == "24x20, 3 rows")
    best = ratio["note"].split(" / ")[0]
    assert ratio["value"] == pytest.approx(times[f"24x20, {best}"] / times["24x20, 3 rows"])


def test_environments_are_measured_in_both_dimensions(speed: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    assert speed.main(["--small", "--parts", "environment", "--json", str(out)]) == 0
    rows = {(row["part"], row["what"]): row["value"] for row in json.loads(out.read_text())["rows"]}
    sizes = {"24x20": 480, "9x10x11": 990}
    assert set(rows) == {("replay", name) for name in sizes} | {
        (part, f"{name}, {count}") for part in ("steps", "agent") for name in sizes for count in ("1 row", "3 rows")
    }
    assert all(value > 0 for value in rows.values())
    for name, voxels in sizes.items():
        # two states of case, 12 seeds and the stop; one packed mask; action, both ends and the priority
        assert rows["replay", name] == pytest.approx(2 * 27 + -(-voxels // 8) + 2 + 2 + 4, abs=0.1)


def test_parts_are_checked(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--parts", "walker,sprinter"])
    assert "unknown part sprinter: expected walker or environment" in capsys.readouterr().err


def test_systems_have_seeds_of_both_labels(speed: ModuleType) -> None:
    image, seeds, more = speed.systems((30, 34), 6)
    assert image.shape == seeds.shape == (6, 30, 34)
    assert 0 <= image.min() < image.max() <= 1
    assert (seeds == 1).flatten(1).sum(1).tolist() == [1, 2, 3, 1, 2, 3]
    assert (seeds == 2).flatten(1).sum(1).tolist() == [1, 2, 3, 4, 5, 1]
    assert ((more != seeds).flatten(1).sum(1) == 1).all()


def test_shapes_are_checked(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--shapes", "84 84"])
    assert "84x84,48x48x48" in capsys.readouterr().err
