"""Data and validation of a cutting policy, and what is kept of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medrl.data.video_cases import VideoCases
from medrl.data.video_phantoms import phantom_cases
from medrl.data.videos import read_dataset_of_videos, read_videos
from medrl.data.write import whole_file, write_json
from medrl.inference.cutting_walk import (
    agreements,
    cut_along,
    decay,
    follow,
    given_first,
    mask_box,
    static_box,
    true_box,
)
from medrl.networks.cutter import CuttingNetworks
from medrl.networks.seed_networks import compact_weights
from medrl.tasks.cutting import CuttingTask
from medrl.training.best import BestNetwork
from medrl.training.measuring import MeasuringEvaluator

logger = logging.getLogger(__name__)

RULES = {"static box": static_box, "mask's box": mask_box, "true box": true_box}


def read_video_cases(
    dataset_dir: Path | str, section: str, *, canvas: Sequence[int], phantoms: int = 0, seed: int = 0,
    device: torch.device | str = "cpu",
) -> VideoCases:  # fmt: skip
    """Videos of a section of dataset.json; or, with ``phantoms`` above 0, so many synthetic ones of a seed."""
    if phantoms:
        return phantom_cases(phantoms, seed=seed, size=(canvas[0], canvas[1])).to(device)
    videos = read_videos(read_dataset_of_videos(dataset_dir, section))
    return VideoCases.from_videos(videos, canvas=canvas).to(device)


def measure_policy(task: CuttingTask, network: nn.Module, **options: Any) -> dict[str, float]:
    """Mean J over videos, its decay, and moves a frame, from the first frame of every case; ``options``: `follow`."""
    cuts = follow(task, network, given_first(task), **options)
    value = agreements(task, cuts)
    moves = torch.where(cuts.visited[:, 1:], cuts.moves[:, 1:], 0).sum() / cuts.visited[:, 1:].sum()
    return {
        "J": float(value.nanmean(1).mean()), "decay": float(decay(value).mean()), "moves": float(moves),
    }  # fmt: skip


def measure_rules(task: CuttingTask) -> dict[str, dict[str, float]]:
    """The same of the boxes that `RULES` place, under each fixed context."""
    rows = {}
    for name, rule in RULES.items():
        for context, margin in enumerate(task.contexts.tolist()):
            value = agreements(task, cut_along(task, rule, given_first(task), context=context))
            rows[f"{name}, context {margin:.1f}"] = {
                "J": float(value.nanmean(1).mean()), "decay": float(decay(value).mean())
            }
    return rows


class CuttingEvaluator(MeasuringEvaluator):
    """Cuts the videos of a task by the policy; ``state.metrics`` are those of `measure_policy`, ``val_J`` the key."""

    def __init__(
        self, *, device: torch.device | str, task: CuttingTask, network: nn.Module,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, network=network, val_handlers=val_handlers)
        self.task = task

    def measure(self) -> dict[str, float]:
        """J, its decay and the moves."""
        return measure_policy(self.task, self.network)


class BestCutting(BestNetwork):
    """Writes ``model.pt``, a bare state dict in half precision of the cutter and the policy, and ``agent.json``."""

    def __init__(self, folder: Path | str, *, cutter: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, settings=settings, metric="val_J", highest=True)
        self.cutter = cutter

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """J, its decay and the moves."""
        logger.info("validation: J %.3f, decay %.3f, %.1f moves a frame", *(metrics[f"val_{n}"] for n in NUMBERS))

    def write(self, network: nn.Module) -> None:
        """Write both files."""
        networks = CuttingNetworks(cutter=self.cutter, policy=copy.deepcopy(network))
        with whole_file(self.folder / "model.pt") as part:
            torch.save(compact_weights(networks), part)
        write_json(self.folder / "agent.json", self.settings)


NUMBERS = ("J", "decay", "moves")


def finish(best: BestCutting, agent: Any) -> None:
    """Keep the agent's last policy where no validation has chosen one."""
    if not best.weights:
        best.keep(agent.average)
