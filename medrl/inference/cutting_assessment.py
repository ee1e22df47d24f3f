"""Masks of videos against the truth: J, F and decay a sequence, beside what the same cutter does without an agent."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor

from medrl.data.write import whole_file, write_json
from medrl.geometry.overlap import iou
from medrl.geometry.pasting import outline_agreement
from medrl.inference.cutting_walk import decay, mask_box, static_box, true_box
from medrl.tasks.cutting import CONTEXTS

logger = logging.getLogger(__name__)

TOLERANCE = 0.008  # of the diagonal: how far apart outlines may lie
RULES = {"static box": static_box, "mask's box": mask_box, "true box": true_box}
AGENT = "agent"


class CuttingAssessment:
    """Compares the answers of a ``CasePredictor`` over cases with ``truth`` with it: a handler.

    Writes ``evaluation.json`` (`summarise`) and ``evaluation.csv`` (a row a sequence, object and method) into
    ``output_dir`` and logs the means.  The first frame, which is given, does not count.  With ``baselines`` every video
    is cut again under the box of the first frame, under the box of the last mask, and under the true box, with the
    middle context.
    """

    def __init__(
        self, output_dir: Path | str, *, baselines: bool = True, resamples: int = 1000, seed: int = 0,
        pred_key: str = "pred", image_key: str = "image",
    ) -> None:  # fmt: skip
        self.output_dir, self.baselines = Path(output_dir), baselines
        self.resamples, self.seed, self.pred_key, self.image_key = resamples, seed, pred_key, image_key
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def add(self, engine: Any) -> None:
        """Measure the video that was just done."""
        for data in engine.state.output:
            cut = data[self.pred_key]
            answers = {AGENT: cut}
            if self.baselines:
                for name, rule in RULES.items():
                    answers[name] = engine.inferer.cut_by_rule(
                        data[self.image_key], engine.network, data["given"], rule, context=len(CONTEXTS) // 2,
                        truth=data["truth"],
                    )  # fmt: skip
            for method, answer in answers.items():
                for value, truth in zip(cut.objects, data["truth"], strict=True):
                    numbers = measure(answer.labels == value, truth)
                    self.rows.append({"case": data["case"], "object": value, "method": method} | numbers)

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
            writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in self.rows)
        for method, numbers in summary["methods"].items():
            shown = "  ".join(f"{n} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for n, v in numbers.items())
            logger.info("%-10s  %s", method, shown)


def measure(mask: Tensor, truth: Tensor) -> dict[str, float]:
    """Means of J and F of masks (T, H, W) over all frames but the first, and the decay of J."""
    agreement = iou(mask, truth)
    agreement[0] = torch.nan
    tolerance = max(1, round(TOLERANCE * float(np.hypot(*mask.shape[1:]))))
    outline = outline_agreement(mask[1:], truth[1:], tolerance=tolerance)
    return {"J": float(agreement[1:].mean()), "F": float(outline.mean()), "decay": float(decay(agreement[None])[0])}


def summarise(rows: Sequence[dict[str, Any]], *, resamples: int, seed: int) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over sequences, and J of every sequence, a method."""
    methods: dict[str, Any] = {}
    sequences: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cases = list(dict.fromkeys(row["case"] for row in own))
        means = {
            name: np.array([np.mean([row[name] for row in own if row["case"] == case]) for case in cases])
            for name in ("J", "F", "decay")
        }
        generator = np.random.default_rng(seed)
        draws = generator.integers(len(cases), size=(resamples, len(cases)))
        methods[method] = {}
        for name, values in means.items():
            low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
            numbers = {"value": values.mean(), "low": low, "high": high}
            methods[method][name] = {key: round(float(n), 4) for key, n in numbers.items()}
        for case, value in zip(cases, means["J"], strict=True):
            sequences.setdefault(case, {})[method] = round(float(value), 4)
    return {"sequences": len(sequences), "methods": methods, "J": sequences}
