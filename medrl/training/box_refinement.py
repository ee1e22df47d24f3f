"""Data and validation of a refining policy, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medrl.data.frame_cases import FrameCases
from medrl.data.track_phantoms import draw_videos
from medrl.data.write import whole_file, write_json
from medrl.geometry.boxes import iou
from medrl.inference.box_refinement import carry, greedy
from medrl.networks.seed_networks import compact_weights
from medrl.tasks.box_refinement import BoxRefinementTask, RefinementState
from medrl.training.best import BestNetwork
from medrl.training.measuring import MeasuringEvaluator

logger = logging.getLogger(__name__)

SHOWN = ("iou", "success50", "success70")


def draw_refinement_cases(
    videos: int, seed: int, *, length: int, stride: int = 1, varied: bool = True, device: torch.device | str = "cpu",
    **options: Any,
) -> FrameCases:  # fmt: skip
    """Clips of ``length`` frames of procedural videos; ``options`` go to `draw_videos`."""
    phantoms = draw_videos(videos, seed, **options)
    return FrameCases.from_phantoms(phantoms, length=length, stride=stride, varied=varied, seed=1000 * seed).to(device)


def every_object(task: BoxRefinementTask, frame: int) -> RefinementState:
    """All objects of all clips at their true boxes of a frame, which are their templates, before the next one."""
    cases = task.cases
    case = torch.arange(len(cases), device=cases.device).repeat_interleave(cases.count)
    slot = torch.arange(len(case), device=cases.device) - (cases.count.cumsum(0) - cases.count)[case]
    box = cases.truth[case, frame, slot]
    return task.given(case, slot, torch.full_like(case, frame + 1), box, box, torch.full_like(case, frame), box)


def overlaps(task: BoxRefinementTask, state: RefinementState, boxes: Tensor) -> Tensor:
    """IoU (B, F) with the truth of boxes (B, F, 4) in the frames from a state on."""
    frame = state.frame.long()[:, None] + torch.arange(boxes.shape[1], device=boxes.device)
    return iou(boxes, task.cases.truth[state.case.long()[:, None], frame, state.slot.long()[:, None]])


def summarise(overlap: Tensor) -> dict[str, float]:
    """Mean IoU over all frames, and the share of frames at 0.5 and 0.7 at least."""
    shares = {f"success{round(100 * level)}": float((overlap >= level).float().mean()) for level in (0.5, 0.7)}
    return {"iou": float(overlap.mean())} | shares


class RefinementEvaluator(MeasuringEvaluator):
    """Carries every object of the task's clips from its true first box; ``state.metrics`` are those of `summarise`.

    The key metric is ``val_iou``.
    """

    def __init__(
        self, *, device: torch.device | str, task: BoxRefinementTask, network: nn.Module,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, network=network, val_handlers=val_handlers)
        self.task = task

    def measure(self) -> dict[str, float]:
        """IoU and success."""
        state = every_object(self.task, 0)
        return summarise(overlaps(self.task, state, carry(self.task, greedy(self.network), state)))


class BestRefinement(BestNetwork):
    """Writes ``refinement.pt``, a bare state dict in half precision, and ``refinement.json``, what it was made for."""

    def __init__(self, folder: Path | str, *, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, settings=settings, metric="val_iou", highest=True)

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """IoU and success."""
        logger.info("validation: IoU %.3f, success %.3f at 0.5, %.3f at 0.7", *(metrics[f"val_{n}"] for n in SHOWN))

    def write(self, network: nn.Module) -> None:
        """Write both files."""
        with whole_file(self.folder / "refinement.pt") as part:
            torch.save(compact_weights(network), part)
        write_json(self.folder / "refinement.json", self.settings)


def finish(best: BestRefinement, agent: Any) -> None:
    """Keep the agent's last policy where no validation has chosen one."""
    if not best.weights:
        best.keep(agent.average)
