"""The loop: what it counts, logs and drops, how MONAI's handlers see it, and that it never waits for the device."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.handlers import (
    CheckpointSaver,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
    from_engine,
)

from medrl.data.cases import Cases, Source
from medrl.geometry.patches import Pyramid
from medrl.training.evaluator import RLEvaluator
from medrl.training.progress import RLEvents

WAITS = ("item", "tolist", "__float__", "__int__", "__index__", "__bool__", "cpu", "numpy", "nonzero")


def test_counts_and_events(cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("dqn", cases)
    trainer = tiny.trainer(built, max_epochs=2, epoch_length=3, steps_per_update=2)
    events: list[str] = []
    for event in RLEvents:
        trainer.add_event_handler(event, lambda _, name: events.append(name), event.name)
    trainer.run()
    assert (trainer.state.iteration, built.agent.update) == (6, 6)
    # 8 rows; 24 transitions with n = 2 need 4 steps before the first update
    assert built.agent.replay.time == 4 + 5 * 2
    assert trainer.environment_steps == 8 * 14
    assert events.count("ROLLOUT_COMPLETED") == events.count("UPDATE_COMPLETED") == 6
    assert events.count("LOG_COMPLETED") == 3, "at the first update and at the end of both epochs"
    assert (trainer.network, trainer.optimizer) == (built.agent.network, built.agent.optimizer)


def test_log_holds_means(cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("cloning", cases)
    trainer = tiny.trainer(built, epoch_length=8, log_every=4)
    losses, logs = [], []
    learn = built.agent.learn

    def spy() -> dict[str, torch.Tensor]:
        parts = learn()
        losses.append(float(parts["loss"]))
        return parts

    built.agent.learn = spy
    trainer.add_event_handler(RLEvents.LOG_COMPLETED, lambda e: logs.append((e.state.iteration, e.state.log["loss"])))
    trainer.run()
    assert [update for update, _ in logs] == [1, 4, 8]
    expected = [losses[0], sum(losses[1:4]) / 3, sum(losses[4:]) / 4]
    assert [loss for _, loss in logs] == pytest.approx(expected, rel=1e-5)
    assert trainer.state.log["learning_rate"] == built.agent.optimizer.param_groups[0]["lr"]
    assert from_engine(["loss"], first=True)(trainer.state.output) == trainer.state.log["loss"]


def test_rollout_is_logged(cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("dqn", cases)
    returns, ends = [], []
    step = built.environment.step

    def spy(action: torch.Tensor) -> Any:
        out = step(action)
        returns.extend(out.metrics["episode_return"][out.metrics["ended"]].tolist())
        ends.extend(out.metrics["score"][out.metrics["ended"]].tolist())
        return out

    built.environment.step = spy
    trainer = tiny.trainer(built, epoch_length=1, steps_per_update=40)
    trainer.run()
    assert len(returns) > 20
    assert trainer.state.log["episode_return"] == pytest.approx(sum(returns) / len(returns), rel=1e-4)
    assert trainer.state.log["episode_score"] == pytest.approx(sum(ends) / len(ends), rel=1e-4)
    assert trainer.state.log["epsilon"] == built.agent.epsilon
    assert trainer.state.log["environment_steps"] == 320
    trainer.state.max_epochs, trainer.steps_per_update = 2, 1
    before = trainer.state.log["episode_return"]
    built.environment.reset()
    trainer.observation = None
    trainer.run()
    assert trainer.state.log["episode_return"] == before, "a window without an ended episode keeps the last mean"


def test_a_loss_that_is_not_a_number_shows(cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("cloning", cases)
    trainer = tiny.trainer(built, epoch_length=2)
    built.agent.learn = lambda: {"loss": torch.tensor(math.nan if trainer.state.iteration == 2 else 1.0)}
    trainer.run()
    assert math.isnan(trainer.state.log["loss"])


@pytest.mark.parametrize("kind", ["cloning", "dqn"])
def test_never_waits_for_the_device(
    kind: str, cases: Cases, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred updates read the device three times, at the log points."""
    monkeypatch.setattr(Pyramid, "_crop_slices", Pyramid._crop_gather)  # what CUDA runs
    built = tiny.training(kind, cases)
    trainer = tiny.trainer(built, epoch_length=100, log_every=50)
    calls: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # the optimiser reads its step count, which lives on the host
            if "/torch/optim/" not in Path(sys._getframe(1).f_code.co_filename).as_posix():
                calls.append(name)
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        float(torch.zeros(()))
        assert calls == ["__float__"], "the count works"
        calls.clear()
        trainer.run()
    assert calls == ["tolist"] * 3
    assert built.agent.update == 100


def test_three_epochs_lower_the_error(sources: list[Source], cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("cloning", cases)
    validation = RLEvaluator(
        device="cpu", val_data_loader=sources[6:], network=built.agent.average, inferer=tiny.GreedyWalk()
    )
    validation.run()
    before = validation.state.metrics["val_error_mm"]
    errors = []
    trainer = tiny.trainer(built, max_epochs=3, epoch_length=60, train_handlers=[ValidationHandler(1, validation)])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: errors.append(validation.state.metrics["val_error_mm"]))
    trainer.run()
    assert built.agent.network.training
    assert len(errors) == 3
    assert errors[-1] < errors[0] < before
    assert errors[-1] < 0.35 * before


def test_stock_handlers(cases: Cases, tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("test_trainer").addHandler(caplog.handler)
    built = tiny.training("dqn", cases)
    handlers = [
        CheckpointSaver(str(tmp_path / "models"), {"model": built.agent.network}, save_interval=1, save_final=True),
        StatsHandler(name="test_trainer"),
        TensorBoardStatsHandler(log_dir=str(tmp_path / "runs")),
    ]
    mean = Average(output_transform=from_engine(["loss"], first=True))
    trainer = tiny.trainer(
        built, max_epochs=2, train_handlers=handlers, key_train_metric={"train_loss": mean}, postprocessing=rename
    )
    trainer.run()
    handlers[2].close()
    names = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert names == ["model_epoch=1.pt", "model_epoch=2.pt", "model_final_iteration=6.pt"]
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert {"loss", "td_error", "epsilon", "learning_rate", "train_loss", "named"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 6
    assert math.isfinite(trainer.state.metrics["train_loss"])
    assert "Epoch: 2/2, Iter: 3/3 --" in caplog.text


def rename(row: dict[str, float]) -> dict[str, float]:
    """A postprocessing transform over one row of the output."""
    return row | {"named": 2 * row["loss"]}


def test_output_without_decollation(cases: Cases, tiny: SimpleNamespace) -> None:
    trainer = tiny.trainer(tiny.training("cloning", cases), decollate=False)
    trainer.run()
    assert trainer.state.output == trainer.state.log
    assert set(trainer.state.output) == {"loss", "action", "learning_rate", "updates_per_second"}


def test_data_loader_paces_the_epoch(cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("cloning", cases)
    trainer = tiny.trainer(built, epoch_length=None, train_data_loader=[{"image": torch.zeros(1)}] * 5)
    trainer.run()
    assert built.agent.update == 5


def test_pool_is_renewed_and_forgotten(tiny: SimpleNamespace) -> None:
    pool = tiny.BlobPool()
    built = tiny.training("dqn", pool.cases)
    trainer = tiny.trainer(built, epoch_length=4, pool=pool, refresh_every=4, refresh_count=2)
    before = pool.cases.pyramid.flat[0].clone()
    replaced, clocks = [], []
    refresh, discard = pool.refresh, built.agent.replay.discard
    pool.refresh = lambda *args: replaced.append(refresh(*args)) or replaced[-1]

    def check(indices: torch.Tensor) -> None:
        clocks.append((built.environment.state.case.clone(), built.environment.clock.clone()))
        discard(indices)

    built.agent.replay.discard = check
    seen: list[int] = []
    trainer.add_event_handler(RLEvents.POOL_REFRESHED, lambda e: seen.append(e.state.iteration))
    trainer.run()
    assert seen == [4]
    assert len(replaced[0]) == 2
    assert not torch.equal(before, pool.cases.pyramid.flat[0])
    replay, (case, clock) = built.agent.replay, clocks[0]
    gone = torch.isin(replay.store["state.0"][: replay.time].long(), replaced[0]).reshape(-1)
    priority = replay.priority[: len(gone)]
    assert gone.any()
    assert (priority[gone] == 0).all()
    assert (priority[~gone] > 0).any()
    hit = torch.isin(case.long(), replaced[0])
    assert hit.any()
    assert (built.environment.clock[hit] == 0).all(), "their rows start anew"
    assert torch.equal(built.environment.clock[~hit], clock[~hit]), "the other rows walk on"
    fresh = built.environment.task.observe(built.environment.state)["image"]
    assert torch.equal(trainer.observation["image"], fresh)


def test_wrong_use_is_refused(cases: Cases, tiny: SimpleNamespace) -> None:
    built, pool = tiny.training("dqn", cases), tiny.BlobPool()
    with pytest.raises(ValueError, match="give an environment"):
        tiny.trainer(SimpleNamespace(agent=built.agent, environment=None))
    with pytest.raises(ValueError, match=r"pool\.cases"):
        tiny.trainer(built, pool=pool)
    with pytest.raises(ValueError, match=r"pool\.cases"):
        tiny.trainer(tiny.training("cloning", cases), pool=pool)
    with pytest.raises(ValueError, match="refresh_count 4"):
        tiny.trainer(tiny.training("dqn", pool.cases), pool=pool, refresh_count=4)
    with pytest.raises(ValueError, match="epoch_length"):
        tiny.trainer(built, epoch_length=None)
