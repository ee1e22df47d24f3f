"""Errors of a bundle against the truth, with intervals, beside a trivial baseline."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor

from medrl.data.anatomy import Anatomy
from medrl.data.dataset import read_dataset
from medrl.data.landmarks import read_landmarks
from medrl.data.read import read_image
from medrl.data.write import whole_file, write_json
from medrl.geometry.grids import spacing_of
from medrl.types import InputError

logger = logging.getLogger(__name__)

MOST = 50  # training cases that the baseline is made of


class Assessment:
    """Compares the answers of a ``CasePredictor`` with the truth under ``label``: a handler.

    Writes ``evaluation.json`` (see `summarise`) and ``evaluation.csv`` (one row a case and landmark) into
    ``output_dir`` and logs the table.  A landmark that the truth has and the answer lacks counts with the diagonal of
    the image; a failure is an error above ``failure_mm``, such a landmark included.  Intervals are 95 % bootstrap
    intervals over cases.  The baseline answers ``baseline_mm`` (L, 3) from the centre of every image: see
    `mean_position`.
    """

    def __init__(
        self, output_dir: Path | str, *, baseline_mm: Tensor, failure_mm: float, resamples: int = 2000, seed: int = 0
    ) -> None:
        self.output_dir, self.baseline_mm, self.failure_mm = Path(output_dir), baseline_mm.double(), failure_mm
        self.resamples, self.seed = resamples, seed
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def add(self, engine: Any) -> None:
        """Measure the case that was just done; one that failed has no output."""
        for data in engine.state.output:
            image, truth, points = data["image"], data["label"], data["pred"]
            spacing_mm = spacing_of(torch.as_tensor(image.affine).double())
            diagonal = float((spacing_mm * torch.tensor(image.shape[1:])).norm())
            error = torch.nan_to_num((points - truth).norm(dim=1), nan=diagonal)
            baseline = (self.baseline_mm + _centre(image) - truth).norm(dim=1)
            for n, mark in enumerate(data["landmarks"]):
                known = bool(truth[n].isfinite().all())
                self.rows.append(
                    {
                        "case": data["case"], "label": mark.label, "status": mark.status, "known": int(known),
                        "error_mm": float(error[n]) if known else None,
                        "baseline_mm": float(baseline[n]) if known else None,
                        "uncertainty_mm": mark.uncertainty_mm, "presence": mark.presence,
                    }
                )  # fmt: skip

    def finish(self, engine: Any) -> None:
        """Summarise, write and log."""
        if not self.rows:
            return
        summary = {"cases": len({row["case"] for row in self.rows}), "failure_mm": self.failure_mm}
        summary |= summarise(self.rows, failure_mm=self.failure_mm, resamples=self.resamples, seed=self.seed)
        write_json(self.output_dir / "evaluation.json", summary)
        with (
            whole_file(self.output_dir / "evaluation.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        logger.info("%d cases, %d landmarks known", summary["cases"], summary["landmarks"])
        for name in STATISTICS:
            mine, theirs = (interval_text(summary[who][name]) for who in ("agent", "baseline"))
            logger.info("%-10s  agent %-26s  mean position %s", name, mine, theirs)


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "mean_mm": lambda error, missing, limit: error.mean(),
    "median_mm": lambda error, missing, limit: np.median(error),
    "p95_mm": lambda error, missing, limit: np.percentile(error, 95),
    "max_mm": lambda error, missing, limit: error.max(),
    "missing": lambda error, missing, limit: missing.mean(),
    "failures": lambda error, missing, limit: (error > limit).mean(),
}


def summarise(rows: list[dict[str, Any]], *, failure_mm: float, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Statistics of rows with ``case, label, status, known, error_mm, baseline_mm, uncertainty_mm``.

    Returns ``agent`` and ``baseline``, each a statistic -> ``{"value", "low", "high"}`` (mm, or a share of the known
    landmarks); ``uncertainty_rank``, Spearman's correlation of uncertainty and error; ``absent`` landmarks, which the
    truth does not have, with ``sensitivity`` and ``specificity`` of the status missing; and ``per_landmark`` means.
    """
    known = [row for row in rows if row["known"]]
    cases = sorted({row["case"] for row in known})
    of_case = [np.array([n for n, row in enumerate(known) if row["case"] == case]) for case in cases]
    missing = np.array([row["status"] == "missing" for row in known])
    draws = np.random.default_rng(seed).integers(len(cases), size=(resamples, len(cases)))
    summary: dict[str, Any] = {"landmarks": len(known)}
    for who, key in (("agent", "error_mm"), ("baseline", "baseline_mm")):
        error, gone = np.array([row[key] for row in known]), missing if who == "agent" else np.zeros_like(missing)
        drawn = {name: np.empty(resamples) for name in STATISTICS}
        for number, draw in enumerate(draws):
            chosen = np.concatenate([of_case[case] for case in draw])
            for name, statistic in STATISTICS.items():
                drawn[name][number] = statistic(error[chosen], gone[chosen], failure_mm)
        summary[who] = {}
        for name, statistic in STATISTICS.items():
            low, high = np.percentile(drawn[name], [2.5, 97.5])
            value = statistic(error, gone, failure_mm)
            summary[who][name] = {"value": round(float(value), 4), "low": round(low, 4), "high": round(high, 4)}
    error, doubt = (np.array([row[key] for row in known]) for key in ("error_mm", "uncertainty_mm"))
    summary["uncertainty_rank"] = rank_correlation(error, doubt)
    absent = np.array([row["status"] == "missing" for row in rows if not row["known"]])
    summary["absent"] = len(absent)
    summary["sensitivity"] = round(float(absent.mean()), 4) if len(absent) else None
    summary["specificity"] = round(float(1 - missing.mean()), 4)
    labels = list(dict.fromkeys(row["label"] for row in known))
    summary["per_landmark"] = {
        label: round(float(np.mean([row["error_mm"] for row in known if row["label"] == label])), 4) for label in labels
    }
    return summary


def mean_position(dataset_dir: Path | str, anatomy: Anatomy) -> Tensor:
    """Mean place (L, 3) of the landmarks in the training images of dataset.json, in RAS mm from the image's centre.

    Where there is no training section, or a landmark is in none of its files, the mean shape round the centre.
    """
    try:
        entries = read_dataset(dataset_dir, "training")
    except InputError as error:
        logger.info("the baseline is the mean shape round the image's centre: %s", error)
        entries = []
    places: dict[str, list[Tensor]] = {}
    for entry in [entry for entry in entries if entry["landmarks"] is not None][:MOST]:
        centre = _centre(read_image(entry["image"]))
        for label, point in read_landmarks(entry["landmarks"]).items():
            places.setdefault(label, []).append(torch.as_tensor(point) - centre)
    shape = dict(zip(anatomy.labels, anatomy.shape_mm.double(), strict=True))
    return torch.stack(
        [torch.stack(places[label]).mean(0) if label in places else shape[label] for label in anatomy.labels]
    )


def _centre(image: Any) -> Tensor:
    """The middle (3,) of an image (1, X, Y, Z), RAS mm."""
    matrix = torch.as_tensor(image.affine).double()
    return matrix[:3, :3] @ ((torch.tensor(image.shape[1:]) - 1).double() / 2) + matrix[:3, 3]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation; None for fewer than three pairs, or where one side is constant."""
    from scipy.stats import spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return round(float(spearmanr(first, second).statistic), 4)


def interval_text(number: dict[str, float]) -> str:
    """A number and its interval, for people."""
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"
