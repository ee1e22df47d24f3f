"""Registrations of a bundle against known misalignments, with intervals."""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor

from medrl.data.misalignment import registration_error_mm
from medrl.data.write import whole_file, write_json
from medrl.geometry.transforms import invert, transform_points
from medrl.inference.assessment import interval_text
from medrl.types import CONVERGED

logger = logging.getLogger(__name__)

MISSING_MM = 999.0  # error of a case without a transform, and its distance from every other answer
CONSISTENT_MM = 2.0
ALL = "all"
FAILED = "failed"
SHOWN = ("tre_median", "tre_p90", "success", "consistent", "not_converged", "initial_median")


@dataclass(frozen=True)
class Result:
    """How one case was answered.

    ``error_mm`` is that of the transform, be it withheld; ``tre_mm`` counts one that did not converge as missing.
    """

    case: str
    pair: str
    level: str
    status: str
    error_mm: float
    initial_mm: float  # NaN where the case failed before
    confidence: float
    polish_mm: float
    back: Tensor | None  # (N, 3): inverse(truth) @ answer at the points of the pair; None without a transform

    @property
    def tre_mm(self) -> float:
        """Target registration error of what was written."""
        return self.error_mm if self.status == CONVERGED else MISSING_MM


class RegistrationAssessment:
    """Compares the answers of a ``CasePredictor`` over cases of ``Misalignd`` with their truth: a handler.

    Writes ``evaluation.json`` (see `summarise`) and ``evaluation.csv`` (one row a case) into ``output_dir`` and logs
    the table.  A case that failed or did not converge counts with an error of 999 mm.  ``success_mm``: the error below
    which a registration is a success, such as 10 mm where the reference is true to some millimetres, and 2 mm where it
    is exact.  Intervals are 95 % bootstrap intervals over pairs.
    """

    def __init__(
        self, output_dir: Path | str, *, success_mm: float, resamples: int = 1000, seed: int = 0, pred_key: str = "pred"
    ) -> None:
        self.output_dir, self.success_mm, self.pred_key = Path(output_dir), float(success_mm), pred_key
        self.resamples, self.seed = resamples, seed
        self.results: list[Result] = []

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, lambda _: self.results.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def add(self, engine: Any) -> None:
        """Measure the case that was just done, or count it as failed."""
        for data in engine.state.output:
            self.results.append(measure(data, data[self.pred_key]))
        if not engine.state.output:
            case = engine.state.batch[0]["case"]
            entry = next(entry for entry in engine.dataset.data if entry["case"] == case)
            nothing = (MISSING_MM, float("nan"), 0.0, 0.0, None)
            self.results.append(Result(case, str(entry["pair"]), str(entry["level"]), FAILED, *nothing))

    def finish(self, engine: Any) -> None:
        """Summarise, write and log."""
        if not self.results:
            return
        summary = summarise(self.results, success_mm=self.success_mm, resamples=self.resamples, seed=self.seed)
        write_json(self.output_dir / "evaluation.json", summary)
        names = ("case", "pair", "level", "status", "error_mm", "tre_mm", "initial_mm", "confidence", "polish_mm")
        with (
            whole_file(self.output_dir / "evaluation.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(names)
            for result in self.results:
                row = [getattr(result, name) for name in names]
                writer.writerow([round(v, 4) if isinstance(v, float) else v for v in row])
        logger.info("%d cases of %d pairs; success: below %g mm", summary["cases"], summary["pairs"], self.success_mm)
        for level, numbers in summary["levels"].items():
            shown = [f"{name} {interval_text(numbers[name])}" for name in SHOWN if numbers[name] is not None]
            logger.info("%-10s  %s", level, "  ".join(shown))
        if summary["confidence_auc"] is not None:
            logger.info("area under the curve of the confidence %s", interval_text(summary["confidence_auc"]))


def measure(data: dict[str, Any], answer: Any) -> Result:
    """Compare a ``Registration`` with the ``truth`` (4, 4) of a case at its ``points`` (N, 3)."""
    truth, points = data["truth"].double(), data["points"].double()
    matrix = answer.moving_from_fixed.double().cpu()
    identity = torch.eye(4, dtype=torch.float64)
    error, initial = (float(registration_error_mm(guess, truth, points)) for guess in (matrix, identity))
    converged = answer.status == CONVERGED
    return Result(
        data["case"], data["pair"], data["level"], answer.status, error if np.isfinite(error) else MISSING_MM, initial,
        float(answer.confidence), float(answer.polish_mm),
        transform_points(invert(truth) @ matrix, points) if converged else None,
    )  # fmt: skip


def summarise(results: Sequence[Result], *, success_mm: float, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Statistics with intervals, ``{"value", "low", "high"}``, of every level and of all cases together.

    ``levels``: of each, ``cases``, ``tre_median`` and ``tre_p90`` (mm), ``success``, ``success_answered`` (of the cases
    that converged), ``not_converged`` and ``failed`` (shares of the cases), ``initial_median`` (mm) and
    ``initial_success`` (before any registration), and over couples of cases of one pair and level (in all: of any
    levels), whose two answers should be one, ``consistent`` (share within 2 mm), ``consistency_median`` and
    ``consistency_p90`` (mm).
    ``confidence_auc``: how well the confidence tells successes from failures, 0.5 being chance, over all cases with an
    answer, withheld or not.  A number that cannot be had is None.
    """
    pairs = sorted({result.pair for result in results})
    draws = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    levels = list(dict.fromkeys(result.level for result in results))
    summary: dict[str, Any] = {"cases": len(results), "pairs": len(pairs), "success_mm": success_mm, "levels": {}}
    for level in [*levels, ALL]:
        chosen = [result for result in results if level in (ALL, result.level)]
        of_pair = [[result for result in chosen if result.pair == pair] for pair in pairs]
        tables = [_table(part, success_mm) for part in of_pair]
        summary["levels"][level] = {"cases": len(chosen)} | _with_intervals(tables, STATISTICS, draws)
    summary["confidence_auc"] = _with_intervals(tables, {"auc": _auc}, draws)["auc"]
    return summary


Table = dict[str, np.ndarray]


def _table(results: Sequence[Result], success_mm: float) -> Table:
    """Numbers of the cases of one pair, and of their couples."""
    couples = []
    for first, second in itertools.combinations(results, 2):
        apart = MISSING_MM if first.back is None or second.back is None else _distance_mm(first.back, second.back)
        couples.append(min(MISSING_MM, apart))
    answered = [result for result in results if result.status != FAILED]
    written = np.array([result.tre_mm for result in results], float)
    error = np.array([result.error_mm for result in answered], float)
    initial = np.array([result.initial_mm for result in answered], float)
    status = np.array([result.status for result in results], object)
    return {
        "error": np.minimum(written, MISSING_MM), "good": (written < success_mm).astype(float),
        "converged": (status == CONVERGED).astype(float), "failed": (status == FAILED).astype(float),
        "initial": initial, "initial_good": (initial < success_mm).astype(float), "couples": np.array(couples, float),
        "confidence": np.array([result.confidence for result in answered], float),
        "right": (error < success_mm).astype(float),
    }  # fmt: skip


def _distance_mm(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm(dim=1).mean())


def _auc(table: Table) -> float:
    """Chance that a success has a higher confidence than a failure; ties count half."""
    good, bad = (table["confidence"][table["right"] == kind] for kind in (1.0, 0.0))
    difference = good[:, None] - bad
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else float("nan")


STATISTICS = {
    "tre_median": lambda t: _percentile(t["error"], 50),
    "tre_p90": lambda t: _percentile(t["error"], 90),
    "success": lambda t: _mean(t["good"]),
    "success_answered": lambda t: _mean(t["good"][t["converged"] > 0]),
    "not_converged": lambda t: 1.0 - _mean(t["converged"]) - _mean(t["failed"]),
    "failed": lambda t: _mean(t["failed"]),
    "initial_median": lambda t: _percentile(t["initial"], 50),
    "initial_success": lambda t: _mean(t["initial_good"]),
    "consistent": lambda t: _mean((t["couples"] < CONSISTENT_MM).astype(float)),
    "consistency_median": lambda t: _percentile(t["couples"], 50),
    "consistency_p90": lambda t: _percentile(t["couples"], 90),
}


def _with_intervals(tables: Sequence[Table], statistics: dict, draws: np.ndarray) -> dict[str, dict | None]:
    """Statistics over the cases of all pairs, and the 2.5 and 97.5 % quantiles of those over drawn pairs."""

    def joined(chosen: Sequence[int] | np.ndarray) -> Table:
        return {name: np.concatenate([tables[index][name] for index in chosen]) for name in tables[0]}

    whole = joined(range(len(tables)))
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for draw in draws:
        table = joined(draw)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(table))
    summary: dict[str, dict | None] = {}
    for name, statistic in statistics.items():
        value, spread = statistic(whole), np.array(drawn[name])
        spread = spread[np.isfinite(spread)]
        if not np.isfinite(value) or not len(spread):
            summary[name] = None
            continue
        low, high = np.percentile(spread, [2.5, 97.5])
        summary[name] = {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    return summary
