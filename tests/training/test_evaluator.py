"""Validation in mm, and the MONAI handlers that depend on its key metric."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointSaver, EarlyStopHandler, MetricsSaver, StatsHandler, ValidationHandler

from medrl.data.cases import Cases, Source
from medrl.training.evaluator import RLEvaluator
from medrl.training.metrics import landmark_metrics, stopping_fn_from_error
from medrl.types import InputError


def evaluator(sources: list[Source], inferer: object, **changes: object) -> RLEvaluator:
    network = torch.nn.Linear(1, 1)
    return RLEvaluator(device="cpu", val_data_loader=sources, network=network, inferer=inferer, **changes)


def test_output_and_metrics(sources: list[Source], tiny: SimpleNamespace, tmp_path: Path) -> None:
    unknown = Source("half", sources[1].volume, sources[1].ras_from_voxel, sources[1].points_ras.clone())
    unknown.points_ras[0] = torch.nan
    cases = [sources[0], unknown]
    engine = evaluator(
        cases, tiny.Answers(cases, [[2.0, None], [9.0, -3.0]]), additional_metrics=landmark_metrics(within_mm=[2, 4]),
        val_handlers=[MetricsSaver(str(tmp_path), metric_details="*")],
    )  # fmt: skip
    outputs = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output[0]))
    engine.network.train()
    engine.run()
    assert engine.network.training, "validation must leave the network as it was"
    diagonal = ((24 * 1.5) ** 2 + (24 * 1.5) ** 2 + (18 * 2.0) ** 2) ** 0.5
    torch.testing.assert_close(outputs[0]["error_mm"], torch.tensor([2.0, torch.nan]).double(), equal_nan=True)
    torch.testing.assert_close(outputs[1]["error_mm"], torch.tensor([torch.nan, 3.0]).double(), equal_nan=True)
    assert [o["missing"] for o in outputs] == [1, 0]
    assert [o["known"] for o in outputs] == [2, 1]
    assert outputs[0]["steps"] == 7
    assert outputs[0]["diagonal_mm"] == pytest.approx(diagonal, abs=1e-3)
    assert outputs[0]["pred"].shape == outputs[0]["label"].shape == (2, 3)
    metrics = engine.state.metrics
    assert metrics["val_error_mm"] == pytest.approx((2 + diagonal + 3) / 3, abs=1e-3)
    assert metrics["val_median_mm"] == pytest.approx(3.0, abs=1e-4)
    assert metrics["val_success_2mm"] == pytest.approx(1 / 3)
    assert metrics["val_success_4mm"] == pytest.approx(2 / 3)
    assert (metrics["val_missing"], metrics["val_steps"]) == (0.5, 7.0)
    assert metrics["val_seconds"] > 0
    assert all(isinstance(value, float) for value in metrics.values())
    rows = list(csv.reader((tmp_path / "val_error_mm_raw.csv").read_text("utf-8").splitlines()))
    assert [row[0] for row in rows[1:]] == ["case0", "half"]
    assert float(rows[1][1]) == pytest.approx(2.0, abs=1e-3)


def test_wrong_number_of_landmarks(sources: list[Source], tiny: SimpleNamespace) -> None:
    source = Source("short", sources[0].volume, sources[0].ras_from_voxel, sources[0].points_ras[:1])
    engine = evaluator([source], SimpleNamespace(locate=lambda *_: tiny.Answers([sources[0]], [[1.0, 1.0]]).locate(*_)))
    with pytest.raises(InputError, match="short: 1 landmarks in the truth, but 2"):
        engine.run()


@pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")  # MONAI 1.6 on ignite 0.5.5
def test_lowest_error_is_the_best(
    sources: list[Source], cases: Cases, tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors 5, 3, 4, 3.5, 1: the best of four epochs is the second, patience 2 stops before the fifth."""
    logging.getLogger("test_evaluator").addHandler(caplog.handler)
    built = tiny.training("cloning", cases)
    answers = tiny.Answers(sources[6:7], [[0.0, 0.0]])
    stop = EarlyStopHandler(patience=2, score_function=stopping_fn_from_error("val_error_mm"))
    saver = CheckpointSaver(
        str(tmp_path), {"model": built.agent.average}, save_key_metric=True, key_metric_filename="model.pt",
        key_metric_negative_sign=True,
    )  # fmt: skip
    engine = RLEvaluator(
        device="cpu", val_data_loader=sources[6:7], network=built.agent.average, inferer=answers,
        val_handlers=[saver, stop, StatsHandler(iteration_log=False, name="test_evaluator")],
    )  # fmt: skip
    trainer = tiny.trainer(built, max_epochs=5, epoch_length=2, train_handlers=[ValidationHandler(1, engine)])
    stop.set_trainer(trainer)
    errors, weights = [5.0, 3.0, 4.0, 3.5, 1.0], []

    @trainer.on(Events.EPOCH_STARTED)
    def answer(_: object) -> None:
        answers.errors = [[errors[trainer.state.epoch - 1]] * 2]

    @trainer.on(Events.EPOCH_COMPLETED)
    def keep(_: object) -> None:
        weights.append(copy.deepcopy(built.agent.average.state_dict()))

    trainer.run()
    assert trainer.state.epoch == 4, "early stopping after two epochs without a lower error"
    assert engine.state.best_metric == pytest.approx(3.0, abs=1e-4)
    assert engine.state.best_metric_epoch == 2
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in weights[1].items())
    assert any(not torch.equal(saved[name], value) for name, value in weights[3].items())
    assert "best value: 3.0" in caplog.text
