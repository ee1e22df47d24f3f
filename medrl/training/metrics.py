"""Landmark errors in millimetres as MONAI metrics: lower is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Average, Metric
from ignite.metrics.metric import reinit__is_reduced
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from medrl.types import InputError

QUANTILES = {"median": 0.5, "p95": 0.95}


class LandmarkError(CumulativeIterationMetric):
    """Distance in mm from predicted to true landmarks.

    ``reduction`` is "mean", "median", "p95" or "success" (the share of landmarks within ``within_mm``; higher is
    better).  A landmark whose truth is NaN counts nowhere.  One that is known but not answered (prediction NaN) is a
    failure as large as the image: it counts with the image's ``diagonal_mm``; ``missed="ignore"`` leaves it out.
    """

    def __init__(self, *, reduction: str = "mean", within_mm: float | None = None, missed: str = "diagonal") -> None:
        super().__init__()
        if reduction not in ("mean", "success", *QUANTILES):
            raise ValueError(f"reduction must be 'mean', 'median', 'p95' or 'success', not {reduction!r}")
        if (reduction == "success") != (within_mm is not None):
            raise ValueError("reduction 'success' needs within_mm, and no other reduction takes it")
        if missed not in ("diagonal", "ignore"):
            raise ValueError(f"missed must be 'diagonal' or 'ignore', not {missed!r}")
        self.reduction, self.within_mm, self.missed = reduction, within_mm, missed

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, diagonal_mm: Tensor | None = None) -> Tensor:
        """Errors (B, L) in mm of points (B, L, 3) in RAS mm; ``diagonal_mm`` is (B,) or (B, 1)."""
        if y is None or y_pred.shape != y.shape or y.shape[-1] != 3:
            raise ValueError("landmark errors need predictions and truth of one shape (B, L, 3)")
        error = (y_pred - y).norm(dim=-1)
        missed = y.isfinite().all(-1) & ~y_pred.isfinite().all(-1)
        if self.missed == "ignore":
            return torch.where(missed, torch.nan, error)
        if diagonal_mm is None:
            if bool(missed.any()):
                raise ValueError("a known landmark was not answered: give diagonal_mm, or set missed='ignore'")
            return error
        return torch.where(missed, diagonal_mm.reshape(-1, 1).to(error), error)

    def aggregate(self) -> Tensor:
        """The reduced error () over all cases and landmarks with a known truth; InputError if there is none."""
        errors = self.get_buffer()
        errors = torch.empty(0) if errors is None else errors[~errors.isnan()]
        if len(errors) == 0:
            raise InputError("no landmark to measure: the validation cases need landmarks with a known position")
        if self.reduction == "success":
            return (errors <= self.within_mm).float().mean()
        if self.reduction == "mean":
            return errors.mean()
        return torch.quantile(errors, QUANTILES[self.reduction])


def landmark_points(output: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (B, L, 3), truth (B, L, 3) and diagonals (B, 1) from the output of ``RLEvaluator``."""
    pred, label, diagonal = ([row[key] for row in output] for key in ("pred", "label", "diagonal_mm"))
    return torch.stack(pred), torch.stack(label), torch.tensor(diagonal)[:, None]


class LandmarkErrorHandler(IgniteMetricHandler):
    """:class:`LandmarkError` on an engine: the value in ``state.metrics``, errors (N, L) in ``state.metric_details``.

    ``output_transform`` answers predictions, truth, and if it can the diagonals.
    """

    def __init__(
        self, *, reduction: str = "mean", within_mm: float | None = None, missed: str = "diagonal",
        output_transform: Callable = landmark_points, save_details: bool = True,
    ) -> None:  # fmt: skip
        metric = LandmarkError(reduction=reduction, within_mm=within_mm, missed=missed)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=save_details)

    @reinit__is_reduced
    def update(self, output: Sequence[Tensor]) -> None:
        """Add cases; ignite hands over single cases (L, 3) where the output holds lists."""
        points = [points[None] if points.ndim == 2 else points for points in output[:2]]
        self.metric_fn(*points, diagonal_mm=output[2] if len(output) > 2 else None)


def landmark_metrics(
    *, within_mm: Sequence[float] = (4.0,), missed: str = "diagonal", prefix: str = "val_"
) -> dict[str, Metric]:
    """Metrics beside the mean error: median, 95th percentile, successes, missed landmarks, steps and seconds a case."""
    shared = {"missed": missed, "save_details": False}
    metrics: dict[str, Metric] = {
        f"{prefix}{reduction}_mm": LandmarkErrorHandler(reduction=reduction, **shared) for reduction in QUANTILES
    }
    for limit in within_mm:
        metrics[f"{prefix}success_{limit:g}mm"] = LandmarkErrorHandler(reduction="success", within_mm=limit, **shared)
    for key in ("missing", "steps", "seconds"):
        metrics[f"{prefix}{key}"] = Average(output_transform=_Field(key))
    return metrics


class _Field:
    """One number of the case that an engine has just finished."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, output: Sequence[Mapping[str, Any]]) -> float:
        return float(output[0][self.key])


def lower_is_better(current: float, best: float) -> bool:
    """For ``metric_cmp_fn``: whether an error is a new best."""
    return current < best


def stopping_fn_from_error(metric_name: str) -> Callable[[Any], float]:
    """For ``EarlyStopHandler(score_function=...)``: minus an error, as that handler looks for the highest score."""

    def stopping_fn(engine: Any) -> float:
        return -float(engine.state.metrics[metric_name])

    return stopping_fn
