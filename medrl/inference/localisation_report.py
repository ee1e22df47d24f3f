"""Evaluation of a localisation bundle against annotated boxes, as a handler of its predictor."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from medrl.data.write import whole_file, write_json
from medrl.inference.localisation_assessment import Judged, average_precision, bootstrap, f1, image_f1, judge

logger = logging.getLogger(__name__)


class LocalisationAssessment:
    """Writes ``evaluation.json`` and ``evaluation.csv`` of a run over cases that have ``boxes``.

    Average precision at IoU 0.5 counts all detections of the run, F1 those with a score of at least ``threshold``;
    success is an IoU of the best detection of an image with any of its objects of at least 0.5 or 0.7.  With bootstrap
    95 % intervals over images; a case that failed counts as one without detections.
    """

    def __init__(self, output_dir: Path | str, *, threshold: float = 0.5, draws: int = 1000) -> None:
        self.output_dir, self.threshold, self.draws = Path(output_dir), float(threshold), draws
        self.judged: dict[str, Judged] = {}
        self.steps: list[int] = []

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Any) -> None:
        self.judged, self.steps = {}, []

    def _add(self, engine: Any) -> None:
        case = engine.state.batch[0]["case"]
        entry = next(entry for entry in engine.dataset.data if entry["case"] == case)
        truth = torch.as_tensor(entry["boxes"])
        found = engine.state.output[0]["pred"] if engine.state.output else []
        box = torch.tensor([one.box for one in found]).reshape(len(found), -1)
        self.judged[case] = judge(box, torch.tensor([one.score for one in found]), truth)
        self.steps += [one.steps for one in found[:1]]

    def _write(self, engine: Any) -> None:
        images = list(self.judged.values())
        filled = [image for image in images if image.objects]
        measures = {
            "ap50": (images, average_precision),
            "f1": (images, lambda part: f1(part, self.threshold)),
            "image_f1": (images, lambda part: image_f1(part, self.threshold)),
            "success50": (filled, lambda part: float(np.mean([image.best_iou >= 0.5 for image in part]))),
            "success70": (filled, lambda part: float(np.mean([image.best_iou >= 0.7 for image in part]))),
        }
        summary: dict[str, Any] = {
            "images": len(images), "objects": sum(image.objects for image in images), "threshold": self.threshold,
            "median_steps": float(np.median(self.steps)) if self.steps else None,
        }  # fmt: skip
        for name, (part, measure) in measures.items():
            value, low, high = bootstrap(part, measure, draws=self.draws) if part else (np.nan,) * 3
            known = np.isfinite(value)
            summary[name] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)} if known else None
        write_json(self.output_dir / "evaluation.json", summary)
        with whole_file(self.output_dir / "evaluation.csv") as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "objects", "detections", "right", "best_iou"])
            for case, image in self.judged.items():
                kept = image.score >= self.threshold
                right = int((image.right & kept).sum())
                writer.writerow([case, image.objects, int(kept.sum()), right, round(image.best_iou, 4)])
        logger.info("%s", json.dumps(summary))
