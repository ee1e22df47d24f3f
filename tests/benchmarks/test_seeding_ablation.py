"""The ablations of seeding run in small: what learns, what stays, and that a second run repeats nothing."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from medrl.data.lesions import write_lesions
from medrl.data.masks import read_mask_cases
from medrl.data.seed_pool import SeedPool, fixed_cases
from medrl.networks.seednet import SeedNet
from medrl.tasks.seeding import SeedingTask
from medrl.types import InputError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("seeding_ablation")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data sets of three lesions: two to train on, one to judge by."""
    parent, generator = tmp_path_factory.mktemp("lesions"), np.random.default_rng(0)
    for name in ("ct", "mr"):
        write_lesions(parent / name, 3, generator, modality=name, shape=(24, 24, 24), validation=0.34, test=0.0)
    return [parent / "ct", parent / "mr"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "clone.pt"
    torch.save(SeedNet(dims=2, grid=(20, 20), width=4).state_dict(), path)
    return path


def rewards(folders: list[Path], weights: Path, *more: str) -> list[str]:
    return ["--mode", "rewards", "--dataset_dirs", *map(str, folders), "--weights", str(weights), "--cases", "2",
            "--envs", "2", "--minutes", "0.01", *more]  # fmt: skip


def test_rewards_are_compared_and_a_second_run_repeats_nothing(
    ablation: ModuleType, folders: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "rewards.json"
    arguments = rewards(folders, weights, "--arms", "untrained,clone", "--output", str(out))
    entries = ablation.main(arguments)
    assert [(entry["arm"], entry["seed"]) for entry in entries] == [("untrained", 0), ("clone", 0)]
    assert set(entries[0]["scores"]) == set(ablation.POLICIES)
    assert set(entries[1]["scores"]) == {"agent"}
    found = entries[0]["scores"][ablation.LARGEST]["mr"]
    cases = fixed_cases(list(read_mask_cases(folders[1], "validation")), shape=(84, 84), grid=(20, 20))
    task = SeedingTask(cases)
    clicks = task.score(task.start(torch.tensor([0, 0]), torch.tensor([0, 1]))).mean()
    assert found["0"] == pytest.approx(float(clicks), abs=1e-6)
    printed = capsys.readouterr().out
    assert printed.count("| arm | 1 | 3 | 5 | 10 | kept |") == 3
    ct, mr = (entries[1]["scores"]["agent"][name]["10"] for name in ("ct", "mr"))
    last = [line for line in printed.splitlines() if line.startswith("| clone")][-1]
    assert last.split(" | ")[4] == f"{(ct + mr) / 2:.3f}"

    assert json.loads(out.read_text())["entries"] == entries
    monkeypatch.setattr(ablation, "SeedPool", None)  # nothing is left to train
    assert ablation.main(arguments) == entries
    with pytest.raises(InputError, match="same settings"):
        ablation.main([*arguments, "--split", "test"])


def test_only_the_value_head_learns(ablation: ModuleType, folders: list[Path], weights: Path) -> None:
    pool = SeedPool(folders, grid=(20, 20), count=2)
    trained = ablation.load_network(weights, 2)
    first = ablation.renew_values(copy.deepcopy(trained), pool.cases, 0)
    before, weight, mean = first.state_dict(), "value_head.near.0.weight", "value_head.near.1.running_mean"
    assert not torch.equal(before[weight], trained.state_dict()[weight])
    assert not torch.equal(before[mean], torch.zeros(8))
    for arm in ("clone", "warm", "shuffled"):
        network, updates = ablation.teach_values(
            arm, copy.deepcopy(first), pool, minutes=0.02, envs=2, epsilon=(0.4, 0.2), seed=0
        )
        assert updates > 0
        after = network.state_dict()
        for name, value in trained.state_dict().items():
            if not name.startswith("value_head"):
                assert torch.equal(after[name], value), name
        assert not torch.equal(after[weight], before[weight])
        assert torch.equal(after[mean], before[mean])


def test_shuffled_rewards_are_the_same_rewards(ablation: ModuleType) -> None:
    def part(task: Any, state: Any, action: torch.Tensor, next_state: Any) -> torch.Tensor:
        return action.float()

    arms = importlib.import_module("seeding_arms")
    dealt = arms.Shuffled(part, torch.Generator().manual_seed(0))(None, None, torch.arange(50), None)
    assert dealt.sort().values.tolist() == list(range(50))
    assert (dealt == torch.arange(50)).sum() < 10


def test_a_left_out_set_is_judged_by_a_network_of_the_others(
    ablation: ModuleType, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trained_on = []

    def make_pool(used: list[Path], **settings: Any) -> SeedPool:
        trained_on.append([folder.name for folder in used] + settings["shares"])
        return SeedPool(used, **settings)

    monkeypatch.setattr(ablation, "SeedPool", make_pool)
    monkeypatch.setattr(ablation, "WIDTH", 4)
    arguments = ["--mode", "leave_one_out", "--dataset_dirs", *map(str, folders), "--work_dir", str(tmp_path),
                 "--updates", "1", "--cases", "2", "--shares", "3", "1"]  # fmt: skip
    entries = ablation.main(arguments)
    assert trained_on == [["ct", "mr", 3.0, 1.0], ["mr", 1.0], ["ct", 3.0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"without_{n}_1_0.pt" for n in ("ct", "mr", "none")]
    every, without_ct, without_mr = (entry["scores"] for entry in entries)
    assert (set(every["agent"]), set(without_ct["agent"]), set(without_mr["agent"])) == ({"ct", "mr"}, {"ct"}, {"mr"})
    seen, new = (scores["agent"]["mr"] for scores in (every, without_mr))
    assert seen["0"] == new["0"]  # the clicks need no network
    printed = capsys.readouterr().out.splitlines()
    row = next(line.split(" | ") for line in printed if line.startswith("| mr | agent |"))
    assert row[5:9] == [
        f"{value:.3f}" for value in (seen["10"], new["10"], seen["10"] - seen["0"], new["10"] - new["0"])
    ]

    assert ablation.main(arguments) == entries  # from the weights that were kept
    assert len(trained_on) == 3


def test_senseless_options_are_refused(
    ablation: ModuleType, folders: list[Path], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (rewards(folders, weights, "--arms", "gain,iuo"), "unknown arms iuo"),
        (rewards(folders, weights, "--shares", "1"), "a number for each"),
        (["--mode", "leave_one_out", "--dataset_dirs", str(folders[0])], "two --dataset_dirs or more"),
    ):
        with pytest.raises(SystemExit):
            ablation.main(arguments)
        assert message in capsys.readouterr().err
