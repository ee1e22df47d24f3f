"""A training that is cut off and resumed equals, bit by bit, one that ran through."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.handlers import CheckpointLoader, CheckpointSaver, EarlyStopHandler, ValidationHandler

from medrl.data.cases import Cases, Source
from medrl.training.evaluator import RLEvaluator
from medrl.training.metrics import stopping_fn_from_error
from medrl.training.resume import TrainingState, load_latest


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def build(tiny: SimpleNamespace, kind: str, cases: Cases | None, seed: int) -> SimpleNamespace:
    """A training with or without a pool, and its state."""
    pool = tiny.BlobPool(seed=seed) if cases is None else None
    built = tiny.training(kind, pool.cases if pool else cases, seed=seed)
    built.pool, built.seed = pool, seed
    built.state = TrainingState(agent=built.agent, environment=built.environment, pool=pool)
    return built


def run(tiny: SimpleNamespace, built: SimpleNamespace, handlers: list, **arguments: Any) -> Any:
    pool = {"pool": built.pool, "refresh_every": 2} if built.pool else {}
    trainer = tiny.trainer(
        built, seed=built.seed, train_handlers=[built.state, *handlers], **pool, **({"epoch_length": 3} | arguments)
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize("with_pool", [False, True])
@pytest.mark.parametrize("kind", ["cloning", "dqn"])
def test_resume_is_exact(kind: str, with_pool: bool, cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    chosen = None if with_pool else cases
    straight = build(tiny, kind, chosen, seed=3)
    run(tiny, straight, [], max_epochs=2)
    through = copy.deepcopy(straight.state.state_dict())

    first = build(tiny, kind, chosen, seed=3)
    saver = CheckpointSaver(str(tmp_path), {"model": first.agent.average, "training": first.state}, save_interval=1)
    run(tiny, first, [saver], max_epochs=1)
    half = copy.deepcopy(first.state.state_dict())

    second = build(tiny, kind, chosen, seed=8)  # nothing of its own randomness may be left
    assert not same(second.agent.state_dict(), first.agent.state_dict())
    load = {"model": second.agent.average, "training": second.state}
    loader = CheckpointLoader(str(tmp_path / "checkpoint_epoch=1.pt"), load)
    torch.manual_seed(99)
    trainer = run(tiny, second, [loader], max_epochs=2)
    resumed = second.state.state_dict()

    assert (trainer.state.epoch, trainer.state.iteration, second.agent.update) == (2, 6, 6)
    assert resumed.keys() == through.keys()
    for part in through:
        assert same(resumed[part], through[part]), part
    assert not same(half["networks"], through["networks"]), "the second half must have changed something"
    if kind == "dqn":
        assert {"replay", "optimizer"} <= through["agent"].keys()
        assert torch.equal(second.agent.replay.store["state.2"], straight.agent.replay.store["state.2"])
        assert torch.equal(second.agent.replay.priority, straight.agent.replay.priority)
        assert not same(half["environment"], through["environment"])
    if with_pool:
        assert not same(half["pool"], through["pool"])
        assert torch.equal(second.pool.cases.pyramid.flat[1], straight.pool.cases.pyramid.flat[1])


def test_latest_whole_checkpoint_in_the_middle_of_an_epoch(cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    straight = build(tiny, "dqn", cases, seed=3)
    run(tiny, straight, [], epoch_length=6)
    first = build(tiny, "dqn", cases, seed=3)
    saver = CheckpointSaver(str(tmp_path), {"training": first.state}, save_interval=2, epoch_level=False, n_saved=2)
    run(tiny, first, [saver], epoch_length=6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training_iteration=4.pt", "training_iteration=6.pt"]
    broken = tmp_path / "training_iteration=6.pt"
    broken.write_bytes(broken.read_bytes()[:-1000])
    os.utime(tmp_path / "training_iteration=4.pt", (1, 1))
    second = build(tiny, "dqn", cases, seed=8)
    trainer = tiny.trainer(second, epoch_length=6, seed=8, train_handlers=[second.state])
    assert load_latest(tmp_path, {"training": second.state}, trainer)
    assert (trainer.state.iteration, trainer.state.epoch) == (4, 0)
    trainer.run()
    assert (trainer.state.iteration, trainer.state.epoch) == (6, 1)
    assert same(second.state.state_dict(), straight.state.state_dict())
    assert not load_latest(tmp_path / "absent", {"training": second.state}, trainer)


@pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")  # MONAI 1.6 on ignite 0.5.5
def test_the_best_is_remembered(sources: list[Source], cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Errors 2 then, after the resume, 3 and 1: the 3 must not replace the 2, the 1 must."""

    def training(seed: int, error: float) -> SimpleNamespace:
        built = build(tiny, "cloning", cases, seed=seed)
        built.answers = tiny.Answers(sources[6:7], [[error] * 2])
        best = CheckpointSaver(
            str(tmp_path), {"model": built.agent.average}, save_key_metric=True, key_metric_filename="model.pt",
            key_metric_negative_sign=True,
        )  # fmt: skip
        stop = EarlyStopHandler(patience=9, score_function=stopping_fn_from_error("val_error_mm"))
        built.evaluator = RLEvaluator(
            device="cpu", val_data_loader=sources[6:7], network=built.agent.average, inferer=built.answers,
            val_handlers=[best, stop],
        )  # fmt: skip
        built.state = TrainingState(agent=built.agent, watched=[built.evaluator, best, stop])
        built.stop = stop
        return built

    def train(built: SimpleNamespace, max_epochs: int, load: bool) -> None:
        saver = CheckpointSaver(str(tmp_path), {"training": built.state}, save_interval=1, n_saved=2)
        handlers = [built.state, ValidationHandler(1, built.evaluator), saver]
        trainer = tiny.trainer(built, max_epochs=max_epochs, epoch_length=2, train_handlers=handlers)
        built.stop.set_trainer(trainer)
        if load:
            assert load_latest(tmp_path, {"training": built.state}, trainer)
        trainer.run()

    train(training(3, 2.0), 1, load=False)
    best = (tmp_path / "model.pt").read_bytes()
    second = training(4, 3.0)
    train(second, 2, load=True)
    assert (tmp_path / "model.pt").read_bytes() == best
    assert second.evaluator.state.best_metric == pytest.approx(2.0, abs=1e-4)
    assert second.evaluator.state.best_metric_epoch == 1
    assert second.stop._handler.counter == 1
    third = training(5, 1.0)
    train(third, 3, load=True)
    assert (tmp_path / "model.pt").read_bytes() != best
    assert third.evaluator.state.best_metric_epoch == 3
    assert third.stop._handler.counter == 0


def test_a_state_without_a_trainer_says_so(cases: Cases, tiny: SimpleNamespace) -> None:
    state = TrainingState(agent=tiny.training("cloning", cases).agent)
    with pytest.raises(RuntimeError, match="train_handlers"):
        state.state_dict()
