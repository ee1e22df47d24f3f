"""What the handlers write, compared with what the training said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ignite.engine import Events
from monai.handlers import ValidationHandler

from medrl.data.cases import Cases, Source
from medrl.training.evaluator import RLEvaluator
from medrl.training.handlers import LearningCurve, PathPictures, ProgressBar, RLTensorBoardHandler
from medrl.training.metrics import landmark_metrics
from medrl.training.progress import RLEvents


def validation(built: SimpleNamespace, sources: list[Source], tiny: SimpleNamespace, **changes: object) -> RLEvaluator:
    return RLEvaluator(
        device="cpu", val_data_loader=sources[6:], network=built.agent.average, inferer=tiny.GreedyWalk(),
        additional_metrics=landmark_metrics(), **changes,
    )  # fmt: skip


def test_tensorboard_and_pictures(sources: list[Source], cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    built = tiny.training("dqn", cases)
    engine = validation(built, sources, tiny, val_handlers=[PathPictures(tmp_path / "paths", cases=2)])
    handlers = [ValidationHandler(2, engine), RLTensorBoardHandler(str(tmp_path / "runs"), evaluator=engine)]
    trainer = tiny.trainer(built, max_epochs=2, epoch_length=4, log_every=2, train_handlers=handlers)
    logs = {}
    trainer.add_event_handler(RLEvents.LOG_COMPLETED, lambda e: logs.update({e.state.iteration: dict(e.state.log)}))
    trainer.run()
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    tags = events.Tags()
    names = ("episode_return", "loss", "q", "epsilon", "learning_rate", "td_error", "updates_per_second")
    assert {f"train/{name}" for name in names} <= set(tags["scalars"])
    read = {event.step: event.value for event in events.Scalars("train/loss")}
    assert read == pytest.approx({update: log["loss"] for update, log in logs.items()})
    assert list(read) == [1, 2, 4, 6, 8]
    (error,) = events.Scalars("validation/val_error_mm")
    assert (error.step, error.value) == (8, pytest.approx(engine.state.metrics["val_error_mm"], rel=1e-5))
    assert "validation/val_success_4mm" in tags["scalars"]
    assert tags["images"] == ["paths/1"]
    assert len(events.Images("paths/1")) == 1
    pictures = sorted(path.name for path in (tmp_path / "paths").iterdir())
    assert pictures == ["case6_0002.png", "case7_0002.png"]
    with Image.open(tmp_path / "paths" / pictures[0]) as picture:
        assert min(picture.size) > 200


def test_learning_curve(sources: list[Source], cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"update": 1, "epoch": 1, "loss": 77.0}\n')  # of another training
    built = tiny.training("dqn", cases)
    engine = validation(built, sources, tiny)
    handlers = [ValidationHandler(1, engine), LearningCurve(path, evaluator=engine)]
    trainer = tiny.trainer(built, max_epochs=2, epoch_length=3, train_handlers=handlers)
    trainer.run()
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [r["update"] for r in records] == [1, 3, 3, 6, 6]
    assert records[0]["loss"] < 77
    assert "NaN" not in path.read_text("utf-8")
    assert records[-1]["val_error_mm"] == pytest.approx(engine.state.metrics["val_error_mm"], abs=1e-5)
    assert records[-2]["loss"] == pytest.approx(trainer.state.log["loss"], abs=1e-5)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "curve_episode_return.png", "curve_loss.png", "curve_val_error_mm.png",
    ]  # fmt: skip

    # resumed after update 3: what was written later is dropped
    again = tiny.training("dqn", cases)
    trainer = tiny.trainer(again, max_epochs=2, epoch_length=3, train_handlers=[LearningCurve(path)])
    trainer.state.iteration, trainer.state.epoch = 3, 1
    trainer.run()
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [r["update"] for r in records] == [1, 3, 3, 4, 6]


def test_learning_curve_without_matplotlib(
    cases: Cases, tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medrl.training.handlers._can_draw", lambda: False)
    built = tiny.training("cloning", cases)
    tiny.trainer(built, train_handlers=[LearningCurve(tmp_path / "curve.jsonl")]).run()
    assert [p.name for p in tmp_path.iterdir()] == ["curve.jsonl"]


def test_progress_bar(sources: list[Source], cases: Cases, tiny: SimpleNamespace) -> None:
    built = tiny.training("cloning", cases)
    engine = validation(built, sources, tiny)
    screen = io.StringIO()
    bar = ProgressBar(evaluator=engine, file=screen)
    trainer = tiny.trainer(built, max_epochs=2, epoch_length=4, train_handlers=[ValidationHandler(1, engine), bar])
    done = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: done.append((bar.bar.n, bar.bar.total)))
    trainer.run()
    assert done == [(4, 4), (4, 4)]
    shown = screen.getvalue()
    assert "epoch 2/2" in shown
    assert "4/4" in shown
    assert f"loss={trainer.state.log['loss']:.3g}" in shown
    assert f"val_error_mm={engine.state.metrics['val_error_mm']:.3g}" in shown


def test_progress_bar_by_flag(
    sources: list[Source], cases: Cases, tiny: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    built = tiny.training("cloning", cases)
    engine = validation(built, sources, tiny)
    tiny.trainer(built, epoch_length=2, train_handlers=[ValidationHandler(1, engine)], progress_bar=True).run()
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "val_error_mm" in shown


def test_other_ranks_write_nothing(cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    built = tiny.training("cloning", cases)
    trainer = tiny.trainer(built)
    trainer.state.rank = 1
    screen = io.StringIO()
    board = RLTensorBoardHandler(str(tmp_path / "runs"))
    for handler in (board, LearningCurve(tmp_path / "curve.jsonl"), ProgressBar(file=screen)):
        handler.attach(trainer)
    trainer.run()
    board.close()
    assert not (tmp_path / "curve.jsonl").exists()
    assert screen.getvalue() == ""
    assert built.agent.update == 3
