"""The episodes of a cutting agent on one video, as an inferer: masks at the video's own size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medrl.data.video_cases import Video, VideoCases, filled
from medrl.data.videos import GivenVideo
from medrl.geometry.pasting import paste_boxes
from medrl.inference.cutting_walk import Cuts, Rule, cut_along, follow
from medrl.tasks.cutting import CuttingState, CuttingTask


class CutVideo(NamedTuple):
    """What was cut out of a video: K objects in T frames, in its own pixels."""

    objects: list[int]
    labels: Tensor  # (T, H, W) uint8: the objects' values, 0 for background
    box: Tensor  # (K, T, 4) object boxes
    context: Tensor  # (K, T) the choice of context
    moves: Tensor  # (K, T) moves of the box


class CuttingInferer(Inferer):
    """Cuts every object of a video from its first frame on; all of them are rows of one episode.

    The agent works on a copy of the video whose longest side is ``longest`` pixels at most; the cutter's answers are
    drawn at full size.  Where objects overlap, the one with the larger logit has the pixel.  A given box is cut first,
    so that there is a mask.  ``context`` takes the place of the policy's choice of context.  ``options`` go to
    `medrl.tasks.cutting.CuttingTask`.
    """

    def __init__(self, *, longest: int = 128, context: int | None = None, **options: Any) -> None:
        super().__init__()
        self.longest, self.context, self.options = longest, context, options

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, given: Sequence[GivenVideo]) -> list[CutVideo]:  # type: ignore[override]
        """Cut videos (B, T, 3, H, W) uint8, B = 1, from what is given of them."""
        return [self.cut(frames, network, one) for frames, one in zip(inputs, given, strict=True)]

    def cut(self, frames: Tensor, network: nn.Module, given: GivenVideo) -> CutVideo:
        """Cut a video (T, 3, H, W) by the policy."""
        task, state = self.start(frames, network, given)
        return self._drawn(task, follow(task, network.policy, state, context=self.context), frames, given)

    def cut_by_rule(
        self, frames: Tensor, network: nn.Module, given: GivenVideo, rule: Rule, *, context: int, truth: Tensor
    ) -> CutVideo:  # fmt: skip
        """Cut a video along boxes that a rule places, which may ask for the true masks (K, T, H, W)."""
        task, state = self.start(frames, network, given, truth)
        return self._drawn(task, cut_along(task, rule, state, context=context), frames, given)

    def start(
        self, frames: Tensor, network: nn.Module, given: GivenVideo, truth: Tensor | None = None
    ) -> tuple[CuttingTask, CuttingState]:  # fmt: skip
        """The task on one video, and the state of all objects in its first frame."""
        device = next(network.parameters()).device
        zoom = min(1.0, self.longest / max(frames.shape[2:]))
        canvas = [math.ceil(n * zoom) for n in frames.shape[2:]]
        masks = torch.zeros((len(given.objects), len(frames), *frames.shape[2:]), dtype=torch.bool)
        if given.masks is not None:
            masks[:, 0] = given.masks
        videos = [Video(str(n), frames.cpu(), mask) for n, mask in zip(given.objects, masks, strict=True)]
        if truth is not None:
            videos = [video._replace(masks=mask) for video, mask in zip(videos, truth, strict=True)]
        cases = VideoCases.from_videos(videos, canvas=canvas).to(device)
        task = CuttingTask(cases, cutter=network.cutter, **self.options)
        case = torch.arange(len(videos), device=device)
        first, middle = torch.zeros_like(case), torch.full_like(case, len(task.contexts) // 2)
        if given.masks is not None:
            box, mask = cases.box[:, 0], cases.truth[:, 0]
        else:
            box = task.kept(case, (given.box * cases.zoom[0].cpu()).to(device))
            mask = task.cut(task.given(case, first, box, middle, filled(box, cases.shape)))
        return task, task.given(case, first, task.kept(case, box), middle, mask)

    def _drawn(self, task: CuttingTask, cuts: Cuts, frames: Tensor, given: GivenVideo) -> CutVideo:
        """Draw the masks again at the size of the video."""
        size = tuple(frames.shape[2:])
        case = torch.arange(len(given.objects), device=cuts.box.device)
        first, known = torch.zeros_like(case), cuts.mask[:, 0]  # what the task was given
        zoom = task.cases.zoom[:, None]
        value = torch.tensor(given.objects, dtype=torch.uint8, device=cuts.box.device)
        labels = torch.zeros((len(frames), *size), dtype=torch.uint8)
        for t in range(len(frames)):
            if t == 0 and given.masks is not None:
                chance = given.masks.to(value.device).float()
            else:
                before = filled(cuts.box[:, 0], task.cases.shape)
                state = task.given(case, first, cuts.box[:, t], cuts.context[:, t], before if t == 0 else known)
                if t > 0:
                    state = state._replace(frame=first + t, previous=cuts.previous[:, t])
                around = task.context_box(state.box, state.context)
                chance = paste_boxes(task.logits(state), around / zoom, size)
            highest, which = chance.max(0)
            labels[t] = torch.where(highest > 0, value[which], torch.zeros_like(value[which])).cpu()
        box = cuts.box / zoom[..., None]
        return CutVideo(given.objects, labels, box.cpu(), cuts.context.cpu(), cuts.moves.cpu())
