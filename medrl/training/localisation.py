"""Validation of localisation agents by what they find, and the files that their training leaves."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medrl.data.box_cases import BoxCases
from medrl.data.write import whole_file, write_json
from medrl.inference.localisation import follow, search
from medrl.inference.localisation_assessment import Judged, average_precision, best_threshold, fit_chance, judge
from medrl.tasks.localisation import LocalisationTask
from medrl.training.best import BestNetwork
from medrl.training.measuring import MeasuringEvaluator
from medrl.training.parallel import rank_seed

logger = logging.getLogger(__name__)

FLOOR = -2.5  # logit below which a search of the validation goes no further


class LocalisationEvaluator(MeasuringEvaluator):
    """Searches the validation cases; ``state.metrics``: see `measure_search`.  The key metric is ``val_ap50``."""

    def __init__(
        self, *, device: torch.device | str, task: LocalisationTask, network: nn.Module, limit: int = 4,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, network=network, val_handlers=val_handlers)
        self.task, self.limit = task, limit

    def measure(self) -> dict[str, float]:
        """Precision of the search, and what a walk is like."""
        return measure_search(self.task, self.network, limit=self.limit)


def measure_search(task: LocalisationTask, network: nn.Module, *, limit: int = 4) -> dict[str, float]:
    """Average precision at an IoU of 0.5; IoU, share of triggers and steps of a walk from the whole image."""
    images = judge_search(task, network, limit=limit)
    filled = torch.arange(len(task.cases), device=task.cases.device)[task.cases.present.any(1)]
    walks = follow(task, network, task.start(filled))
    ended = task.score(task.start(filled, box=walks.box[-1]))
    return {
        "ap50": average_precision(images), "iou": float(ended.mean()),
        "triggered": float(walks.triggered.float().mean()), "steps": float(walks.steps.float().mean()),
    }  # fmt: skip


def judge_search(
    task: LocalisationTask, network: nn.Module, *, limit: int = 4, part: int = 100, attended: bool = True
) -> list[Judged]:
    """What a search finds in every case, against its boxes; scores are logits."""
    images = []
    for case in torch.arange(len(task.cases), device=task.cases.device).split(part):
        found = search(task, network, case, limit=limit, floor=FLOOR, attended=attended)
        for row, number in enumerate(case.tolist()):
            kept = found.logit[row].isfinite()
            truth = task.cases.boxes[number][task.cases.present[number]]
            images.append(judge(found.box[row][kept], found.logit[row][kept], truth))
    return images


class BestLocaliser(BestNetwork):
    """Writes ``<name>.pt``, a bare state dict, and its part of ``agent.json``, which tells of all such files."""

    def __init__(self, folder: Path | str, *, settings: Mapping[str, Any], name: str = "model") -> None:
        super().__init__(folder, settings=settings, metric="val_ap50", highest=True)
        self.name = name

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Precision, overlap and steps."""
        shown = [metrics[f"val_{name}"] for name in ("ap50", "iou", "steps")]
        logger.info("validation: AP50 %.3f, IoU %.3f, %.1f steps", *shown)

    def write(self, network: nn.Module) -> None:
        """Write both files."""
        with whole_file(self.folder / f"{self.name}.pt") as part:
            torch.save(self.weights, part)
        self.write_settings()

    def write_settings(self) -> None:
        """Write this network's part of ``agent.json``."""
        path = self.folder / "agent.json"
        others = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_json(path, others | {self.name: self.settings})


def finish(best: BestLocaliser, agent: Any, cases: BoxCases, task_options: Mapping[str, Any]) -> None:
    """Fit what the network's logit says about an IoU of 0.5, and the threshold of the best F1, on validation cases.

    Where no validation has chosen a network, the agent's last one is kept.
    """
    if rank_seed(0) > 0:
        return
    if not best.weights:
        best.keep(agent.average)
    network = copy.deepcopy(agent.average)
    network.load_state_dict(best.weights)
    calibrate(best, LocalisationTask(cases, **task_options), network.eval())


def calibrate(best: BestLocaliser, task: LocalisationTask, network: nn.Module) -> None:
    """Write calibration and threshold into ``agent.json``."""
    images = judge_search(task, network, limit=task.crosses + 1)
    slope, bias = fit_chance(
        np.concatenate([image.score for image in images]), np.concatenate([image.right for image in images])
    )
    threshold = 1 / (1 + np.exp(-(slope * best_threshold(images) + bias)))
    fitted = {"calibration": [slope, bias], "threshold": round(float(threshold), 4)}
    best.settings["inference"] = best.settings["inference"] | fitted
    best.write_settings()
    logger.info("calibrated on %d images, threshold %.2f", len(images), threshold)
