"""Two processes on the CPU that train one network."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medrl.data.cases import Cases
from medrl.networks.concentric import ConcentricNet
from medrl.training import parallel

FIRST = next(name for name, _ in ConcentricNet(landmarks=1, levels=1, size=7).named_parameters())
WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks have saved."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        settings = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1, "PYTHONPATH": Path(parallel.__file__).parents[2],
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        command = [sys.executable, str(WORKER), str(folder / f"{rank}.pt"), str(folder / "models")]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [path.name for path in (folder / "models").iterdir()] == ["model_key_metric=-3.5000.pt"]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_validation_joins_the_ranks_cases(results: list[dict[str, Any]]) -> None:
    assert [result["error_mm"] for result in results] == pytest.approx([3.5, 3.5])  # of 2, 2 and 4, 6


def test_gradients_are_averaged(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["ranks"] == 2
        assert torch.equal(result["shared"]["first"], torch.full((2, 3), 1.5))
        assert torch.equal(result["shared"]["second"], torch.tensor([4.0, -1.0]))
        assert torch.equal(result["shared"]["buffer"], torch.tensor([5.0, 5.0]))
    assert [result["seed"] for result in results] == [5, 5 + parallel.SEED_STRIDE]


def test_ranks_stay_equal_and_differ_from_one_rank(results: list[dict[str, Any]]) -> None:
    alone = runpy.run_path(str(WORKER))["train"](5, initial=0)  # the weights and the data of rank 0
    for agent, networks in results[0]["trained"].items():
        parts = {name.split(".")[0] for name in networks}
        assert parts == ({"network", "average"} | ({"target"} if agent == "dqn" else set()))
        for name, value in networks.items():
            assert torch.equal(value, results[1]["trained"][agent][name]), f"{agent} {name}"
        learned = [name for name in networks if name.endswith("running_mean") or name.split(".", 1)[1] == FIRST]
        assert len(learned) > len(parts)
        for name in learned:
            assert not torch.equal(networks[name], alone[agent][name]), f"{agent} {name}"


def test_one_process_needs_no_group(cases: Cases, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert parallel.initialize("gloo") == torch.device("cpu")
    assert parallel.ranks() == 1
    assert parallel.rank_seed(7) == 7
    agent = tiny.training("cloning", cases).agent
    assert parallel.connect(agent) is agent
    assert agent.gradient_hook is None
    parallel.finalize()
    monkeypatch.setenv("RANK", "2")
    assert parallel.rank_seed(7) == 7 + 2 * parallel.SEED_STRIDE, "as torchrun says, before the group is joined"


def test_hook_sees_gradients_before_they_are_clipped(cases: Cases, tiny: SimpleNamespace) -> None:
    for kind in ("cloning", "dqn"):
        built = tiny.training(kind, cases)
        norms: list[float] = []

        def scale(parameters: list[torch.nn.Parameter], norms: list[float] = norms) -> None:
            for parameter in parameters:
                parameter.grad *= 1e6
            norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))

        built.agent.gradient_hook = scale
        tiny.trainer(built, epoch_length=1).run()
        norm = float(torch.stack([p.grad.norm() for p in built.agent.network.parameters()]).norm())
        assert norms[0] > 100
        assert norm == pytest.approx(built.agent.clip, rel=1e-3)
