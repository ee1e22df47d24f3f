"""Masks of a bundle against the truth, with intervals, beside the network alone and the user's clicks alone."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from torch import Tensor

from medrl.data.write import whole_file, write_json
from medrl.geometry.grids import spacing_of
from medrl.inference.assessment import interval_text, rank_correlation
from medrl.inference.segmentation import NETWORK, WALKER

logger = logging.getLogger(__name__)

AGENT, FIRST = "agent", "0 seeds"  # rows of the table


class MaskAssessment:
    """Compares the masks of a ``CasePredictor`` with the truth under ``label``: a handler.

    Writes ``evaluation.json`` (see `summarise`) and ``evaluation.csv`` (one row a case) into ``output_dir`` and logs
    the table.  Intersection over union, Dice, 95 % Hausdorff distance in mm (an empty mask counts with the diagonal of
    the image) and surface Dice at a tolerance of one voxel are MONAI's.  Intervals are 95 % bootstrap intervals over
    cases.  The masks after 0, 1, ... seeds are those that the inferer was asked to keep by ``counts``.
    """

    def __init__(self, output_dir: Path | str, *, resamples: int = 2000, seed: int = 0) -> None:
        self.output_dir, self.resamples, self.seed = Path(output_dir), resamples, seed
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def add(self, engine: Any) -> None:
        """Measure the case that was just done; one that failed has no output."""
        for data in engine.state.output:
            result, truth = data["segmentation"], torch.as_tensor(data["label"])[0].bool()
            spacing_mm = spacing_of(torch.as_tensor(data["image"].affine).double())
            row = {"case": data["case"]} | measure(torch.as_tensor(result.mask)[0].bool(), truth, spacing_mm)
            row |= {"estimated_iou": result.quality, "seeds": len(result.seeds.foreground) - result.user_count}
            for name, mask in result.masks.items():
                row |= {f"iou {name}": overlap(mask, truth)[0], f"dice {name}": overlap(mask, truth)[1]}
            self.rows.append(row)

    def finish(self, engine: Any) -> None:
        """Summarise, write and log."""
        if not self.rows:
            return
        summary = summarise(self.rows, resamples=self.resamples, seed=self.seed)
        write_json(self.output_dir / "evaluation.json", summary)
        with (
            whole_file(self.output_dir / "evaluation.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        logger.info("%d cases", summary["cases"])
        for who, numbers in summary["methods"].items():
            logger.info("%-14s %s", who, "  ".join(f"{name} {interval_text(n)}" for name, n in numbers.items()))
        for name, number in summary["agent_gain"].items():
            logger.info("IoU of the agent less that of %-14s %s", name, interval_text(number))
        if "dice_area" in summary:
            logger.info("mean Dice over the seeds %s", interval_text(summary["dice_area"]))
        logger.info("rank correlation of the estimated quality and Dice: %s", summary["quality_rank"])


def measure(mask: Tensor, truth: Tensor, spacing_mm: Tensor) -> dict[str, float]:
    """Overlap and surface distances of a mask and the truth (X, Y, Z) bool; a slice is measured in its plane."""
    iou, dice = overlap(mask, truth)
    if not bool(mask.any()):
        diagonal_mm = float((spacing_mm * torch.tensor(mask.shape)).norm())
        return {"iou": iou, "dice": dice, "hd95_mm": diagonal_mm, "surface_dice": 0.0}
    pair = _cut(mask, truth)
    thick = [axis for axis, size in enumerate(mask.shape) if size > 1]
    pair = [part.reshape(1, 1, *(part.shape[axis + 2] for axis in thick)) for part in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        spacing = spacing_mm[thick].tolist()
        hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
        surface = compute_surface_dice(*pair, class_thresholds=[1.0], include_background=True)
    return {"iou": iou, "dice": dice, "hd95_mm": float(hausdorff), "surface_dice": float(surface)}


def overlap(mask: Tensor, truth: Tensor) -> tuple[float, float]:
    """Intersection over union and Dice of masks (X, Y, Z) bool."""
    pair = _cut(mask, truth)
    return float(compute_iou(*pair)), float(compute_dice(*pair))


def _cut(mask: Tensor, truth: Tensor) -> list[Tensor]:
    """Both masks in the box of both and a voxel round it, (1, 1, X, Y, Z) float."""
    places = (mask | truth).nonzero()
    box = [slice(max(0, int(a) - 1), int(b) + 2) for a, b in zip(places.amin(0), places.amax(0), strict=True)]
    return [part[tuple(box)][None, None].float() for part in (mask, truth)]


def summarise(rows: Sequence[Mapping[str, Any]], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Means with intervals, ``{"value", "low", "high"}``, of rows with iou, dice, hd95_mm, surface_dice, estimated_iou.

    ``methods``: the agent, and every mask that rows hold as ``"iou <name>"`` and ``"dice <name>"``, where a number is
    that of the agent's seeds; ``agent_gain``: the agent's IoU less each of theirs, case by case; ``dice_area``: mean
    Dice over the number of seeds; ``quality_rank``: Spearman's correlation of estimate and Dice.
    """
    draws = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    table = {name: np.array([row[name] for row in rows], float) for name in rows[0] if name != "case"}

    def mean(values: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
        return {"value": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}

    kept = [name.removeprefix("iou ") for name in table if name.startswith("iou ")]
    methods = {AGENT: {name: mean(table[name]) for name in ("iou", "dice", "hd95_mm", "surface_dice")}}
    shown = {name: f"{name} seeds" if name.isdigit() else name for name in kept}
    methods |= {shown[name]: {kind: mean(table[f"{kind} {name}"]) for kind in ("iou", "dice")} for name in kept}
    summary: dict[str, Any] = {"cases": len(rows), "methods": methods, "seeds": round(float(table["seeds"].mean()), 2)}
    against = [name for name in kept if shown[name] in (NETWORK, WALKER, FIRST)]
    summary["agent_gain"] = {shown[name]: mean(table["iou"] - table[f"iou {name}"]) for name in against}
    counts = sorted(int(name) for name in kept if name.isdigit())
    if len(counts) > 1:
        curve = np.stack([table[f"dice {count}"] for count in counts])
        steps = np.diff(counts)[:, None]
        summary["dice_area"] = mean(((curve[1:] + curve[:-1]) / 2 * steps).sum(0) / steps.sum())
    summary["quality_rank"] = rank_correlation(table["estimated_iou"], table["dice"])
    return summary
