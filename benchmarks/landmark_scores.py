"""Scores of landmark answers against the truth: errors, failures, absence, bootstrap intervals, markdown tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import markdown
from torch import Tensor

from medrl.data.cases import Source
from medrl.data.pictures import draw_landmarks
from medrl.geometry.grids import spacing_of
from medrl.geometry.similarity import apply
from medrl.types import MISSING, Landmark

FAILURE_MM, FAILURE_VOXELS = 10.0, 10.0

Method = Callable[[Source], list[Landmark]]


@dataclass
class Answer:
    """What a method said of one case."""

    source: Source
    landmarks: list[Landmark]
    seconds: float

    def positions(self) -> Tensor:
        """(L, 3) RAS mm; NaN where the method says that the landmark is missing."""
        missing = torch.tensor([point.status == MISSING for point in self.landmarks])
        places = torch.tensor([list(point.position_mm) for point in self.landmarks], dtype=torch.float64)
        return torch.where(missing[:, None], torch.nan, places)

    def in_view(self) -> Tensor:
        """(L,) bool: the truth names a place, and it lies inside the volume."""
        places = torch.nan_to_num(self.source.points_ras, nan=torch.inf)
        voxel = apply(torch.linalg.inv(self.source.ras_from_voxel), places)
        return ((voxel >= -0.5) & (voxel <= torch.tensor(self.source.volume.shape) - 0.5)).all(1)

    def errors_mm(self) -> Tensor:
        """(L,) distances from the truth; NaN where there is none in view, or the method says missing."""
        distance = (self.positions() - self.source.points_ras).norm(dim=1)
        return torch.where(self.in_view(), distance, torch.nan)

    def penalised_mm(self) -> Tensor:
        """The same with the image's diagonal for a point in view that is reported missing."""
        diagonal = (spacing_of(self.source.ras_from_voxel) * torch.tensor(self.source.volume.shape)).norm()
        error = self.errors_mm()
        return torch.where(self.in_view() & error.isnan(), diagonal, error)


def ask(method: Method, sources: Sequence[Source]) -> list[Answer]:
    """Run a method on every case."""
    answers = []
    for source in sources:
        start = time.perf_counter()
        landmarks = method(source)
        answers.append(Answer(source, landmarks, time.perf_counter() - start))
    return answers


def score(answers: Sequence[Answer], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Scores over all points of all cases.

    ``mean_mm`` books a missing point at the image's diagonal, and missing points are failures; the median, 95th
    percentile and maximum are over the points that were found.  A voxel is the geometric mean of the spacing.
    ``interval`` is the 95 % bootstrap interval of ``mean_mm`` over whole cases.  Absent landmarks are those that the
    truth places outside the volume: ``sensitivity`` is the share of them reported missing, ``specificity`` the share
    of those in view reported present.
    """
    view = np.stack([a.in_view().numpy() for a in answers])
    error, penalised = (np.stack([x.numpy() for x in xs]) for xs in
                        zip(*((a.errors_mm(), a.penalised_mm()) for a in answers), strict=True))  # fmt: skip
    doubt = np.array([[point.uncertainty_mm for point in a.landmarks] for a in answers])
    absent = np.stack([a.source.points_ras.isfinite().all(1).numpy() for a in answers]) & ~view
    missing = np.stack([a.positions().isnan().any(1).numpy() for a in answers])
    voxel = np.array([float(spacing_of(a.source.ras_from_voxel).prod() ** (1 / 3)) for a in answers])[:, None]
    found = np.isfinite(error)
    known = error[found]
    lost = (view & missing)[view]
    has = view.any(1)
    sums, counts = np.nansum(penalised, 1)[has], view.sum(1)[has]
    draw = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    interval = np.percentile(sums[draw].sum(1) / counts[draw].sum(1), [2.5, 97.5])
    return {
        "mean_mm": float(penalised[view].mean()), "interval": interval.tolist(),
        "median_mm": _over(np.median, known), "p95_mm": _over(lambda x: np.percentile(x, 95), known),
        "max_mm": _over(np.max, known), "points": int(view.sum()), "missing": int(lost.sum()),
        "over_10_mm": int((lost | (penalised[view] > FAILURE_MM)).sum()),
        "over_10_voxels": int((lost | ((penalised / voxel)[view] > FAILURE_VOXELS)).sum()),
        "spearman": _rank_correlation(doubt[found], known),
        "seconds": float(np.mean([a.seconds for a in answers])),
        "absent": int(absent.sum()), "sensitivity": _over(np.mean, missing[absent]),
        "specificity": _over(np.mean, ~missing[view]),
    }  # fmt: skip


def score_landmarks(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Per landmark: mean and greatest error in mm, and the mean of answer minus truth along R, A, S in mm."""
    error = torch.stack([a.errors_mm() for a in answers])
    shift = torch.stack([a.positions() - a.source.points_ras for a in answers])
    shift = torch.where(error.isnan()[..., None], torch.nan, shift)
    rows: dict[str, dict[str, Any]] = {}
    for n, point in enumerate(answers[0].landmarks):
        known = error[:, n].isfinite()
        if not known.any():
            rows[point.label] = dict.fromkeys(("mean_mm", "max_mm", "shift_ras_mm"))
            continue
        rows[point.label] = {
            "mean_mm": round(float(error[known, n].mean()), 3),
            "max_mm": round(float(error[known, n].max()), 3),
            "shift_ras_mm": [round(x, 3) for x in shift[known, n].mean(0).tolist()],
        }
    return rows


def score_cases(answers: Sequence[Answer]) -> dict[str, float]:
    """Mean error in mm of every case with a point in view, missing points at the image's diagonal."""
    return {a.source.name: round(float(a.penalised_mm().nanmean()), 3) for a in answers if a.in_view().any()}


def write_table(rows: dict[str, dict[str, Any]]) -> str:
    """The markdown table of named scores."""
    titles = (
        "row", "mean mm (95 % interval)", "median", "p95", "max", "missing", "> 10 mm", "> 10 voxels",
        "Spearman, uncertainty and error", "s a case",
    )  # fmt: skip
    lines = []
    for name, row in rows.items():
        low, high = row["interval"]
        lines.append([
            name, f"{length(row['mean_mm'])} ({length(low)} to {length(high)})",
            *(length(row[key]) for key in ("median_mm", "p95_mm", "max_mm")),
            *(f"{row[key]} / {row['points']}" for key in ("missing", "over_10_mm", "over_10_voxels")),
            "-" if row["spearman"] is None else f"{row['spearman']:.2f}", f"{row['seconds']:.2f}",
        ])  # fmt: skip
    return markdown(titles, lines)


def length(value: float | None) -> str:
    """Millimetres or voxels for a table; three decimals below 1."""
    return "-" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def draw_extremes(folder: Path, name: str, answers: Sequence[Answer], *, points: int = 12) -> list[Path]:
    """Draw the cases with the least and the greatest mean error: their worst ``points``, with the truth."""
    order = sorted((a for a in answers if a.in_view().any()), key=lambda a: float(a.penalised_mm().nanmean()))
    paths = []
    for kind, answer in (("best", order[0]), ("worst", order[-1])):
        error = torch.nan_to_num(answer.penalised_mm(), nan=-1.0)
        worst = error.argsort(descending=True).tolist()[:points]
        truth = dict(zip([p.label for p in answer.landmarks], answer.source.points_ras.tolist(), strict=True))
        mean = length(float(answer.penalised_mm().nanmean()))
        paths.append(folder / f"{name}_{kind}.png")
        title = f"{kind} case of {len(answers)}: {answer.source.name}, mean error {mean} mm; worst {len(worst)} points"
        marks = [answer.landmarks[n] for n in worst]
        draw_landmarks(paths[-1], answer.source.volume, answer.source.ras_from_voxel, marks, truth=truth, title=title)
    return paths


def _over(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
    return float(statistic(values)) if len(values) else None


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's; None where one of the two is constant."""
    from scipy.stats import spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
