"""The localisation benchmark on tiny pictures: every arm trains and is measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medrl.data.box_phantoms import draw_box_cases, write_box_pictures

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("localisation", "localisation_arms", "localisation_figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_the_ceiling_is_above_random_walks(load):
    figures = load("localisation_figures")
    sections = {"test": draw_box_cases(40, np.random.default_rng(0), targets=(1,))}
    ceiling, random = figures.expert_ceiling(sections), figures.random_walks(sections)
    assert ceiling["success50"] > 0.9
    assert ceiling["success50"] >= ceiling["start_success50"]
    assert random["success50"] < 0.3
    assert ceiling["success50_interval"][0] <= ceiling["success50"] <= ceiling["success50_interval"][1]


@pytest.mark.parametrize("arm", ["cloning, then DQN", "DQN, shuffled reward"])
def test_arms_train_and_are_read_again(load, arm, tmp_path):
    arms = load("localisation_arms")
    cases = draw_box_cases(6, np.random.default_rng(0), side=32)
    setting = arms.Setting(clone_updates=2, updates=2, batch_size=8, num_envs=500, log_every=1)
    first = arms.train(cases, arm, seed=0, setting=setting, weights=tmp_path / "a.pt")
    again = arms.train(cases, arm, seed=1, setting=setting, weights=tmp_path / "a.pt")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_shuffled_rewards_are_those_of_other_rows(load):
    arms = load("localisation_arms")
    shuffled = arms.Shuffled(lambda *_: torch.arange(50.0), seed=0)
    drawn = shuffled(None, None, None, None)
    assert drawn.sort().values.tolist() == list(range(50))
    assert drawn.tolist() != list(range(50))


def test_the_table_of_a_data_set(load, tmp_path, monkeypatch, capsys):
    localisation = load("localisation")
    write_box_pictures(tmp_path / "data", 10, np.random.default_rng(0), side=32, validation=0.3, test=0.3)
    monkeypatch.setattr(sys, "argv", [
        "localisation.py", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--longest", "32",
        "--channels", "1", "--arms", "regressor", "cloning", "--seeds", "0", "--clone-updates", "2", "--updates", "1",
    ])  # fmt: skip
    localisation.main()
    table = capsys.readouterr().out
    assert "cloning (1)" in table
    assert "ceiling (1)" in table
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results) == {"ceiling", "random", "regressor 0", "cloning 0"}
    assert 0 <= results["cloning 0"]["refined_success70"] <= 1
    localisation.main()  # everything is there: only the table is printed
    assert capsys.readouterr().out == table
