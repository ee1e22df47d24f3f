"""Landmark errors worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.training.metrics import LandmarkError, LandmarkErrorHandler, landmark_metrics, lower_is_better
from medrl.types import InputError

NAN = math.nan
TRUTH = torch.tensor([[[0.0, 0, 0], [10, 0, 0]], [[NAN, NAN, NAN], [5, 5, 5]]])
FOUND = torch.tensor([[[3.0, 4, 0], [10, 0, 1]], [[1, 1, 1], [NAN, NAN, NAN]]])  # errors 5 and 1; unknown; missed
DIAGONAL = torch.tensor([[100.0], [30.0]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 12.0),  # (5 + 1 + 30) / 3
        ({"missed": "ignore"}, 3.0),
        ({"reduction": "median"}, 5.0),
        ({"reduction": "p95"}, 27.5),  # at 0.95 * 2 = 1.9: 5 + 0.9 * 25
        ({"reduction": "success", "within_mm": 1.0}, 1 / 3),
        ({"reduction": "success", "within_mm": 5.0}, 2 / 3),
        ({"reduction": "success", "within_mm": 5.0, "missed": "ignore"}, 1.0),
    ],
)
def test_reductions(settings: dict, expected: float) -> None:
    metric = LandmarkError(**settings)
    metric(FOUND, TRUTH, diagonal_mm=DIAGONAL)
    assert float(metric.aggregate()) == pytest.approx(expected)


def test_cases_add_up_and_reset() -> None:
    metric = LandmarkError(missed="ignore")
    for found, truth in zip(FOUND, TRUTH, strict=True):
        errors = metric([found], [truth])
        assert errors.shape == (1, 2)
    torch.testing.assert_close(metric.get_buffer(), torch.tensor([[5.0, 1.0], [NAN, NAN]]), equal_nan=True)
    metric.reset()
    metric(FOUND[:1] + torch.tensor([0.0, 0, 1]), FOUND[:1])
    assert float(metric.aggregate()) == pytest.approx(1.0)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="within_mm"):
        LandmarkError(reduction="success")
    with pytest.raises(ValueError, match="within_mm"):
        LandmarkError(within_mm=2.0)
    with pytest.raises(ValueError, match="reduction"):
        LandmarkError(reduction="sum")
    with pytest.raises(ValueError, match="missed"):
        LandmarkError(missed="zero")
    with pytest.raises(ValueError, match="shape"):
        LandmarkError()(FOUND[:, :1], TRUTH)
    with pytest.raises(ValueError, match="diagonal_mm"):
        LandmarkError()(FOUND, TRUTH)


def test_no_known_landmark_is_an_input_error() -> None:
    metric = LandmarkError()
    with pytest.raises(InputError, match="known position"):
        metric.aggregate()
    metric(FOUND[1:, :1], TRUTH[1:, :1])
    with pytest.raises(InputError, match="known position"):
        metric.aggregate()


def test_handler_takes_single_cases() -> None:
    handler = LandmarkErrorHandler(missed="ignore")
    handler.update((FOUND[0], TRUTH[0]))
    handler.update((FOUND, TRUTH, DIAGONAL))
    assert float(handler.metric_fn.aggregate()) == pytest.approx(3.0)


def test_names() -> None:
    assert list(landmark_metrics(within_mm=[2, 4.5], prefix="")) == [
        "median_mm", "p95_mm", "success_2mm", "success_4.5mm", "missing", "steps", "seconds",
    ]  # fmt: skip
    assert lower_is_better(1.0, 2.0)
    assert not lower_is_better(2.0, 2.0)
