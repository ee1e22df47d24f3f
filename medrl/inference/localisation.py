"""Finding all objects of a class, or none: walks from several starts, judged by the network, round after round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medrl.data.box_cases import BoxCases
from medrl.geometry.boxes import iou
from medrl.tasks.localisation import LocalisationState, LocalisationTask
from medrl.types import Detection, InputError, rows

CIRCLES = 3  # visits of one box after which a walk goes round in circles
SAME = 0.4  # IoU from which two boxes are taken for one object


class Walks(NamedTuple):
    """Where B rows went; T is the longest of them."""

    box: Tensor  # (T + 1, B, 2 D) from the start on; the last one repeated
    logit: Tensor  # (T + 1, B) of the IoU that the network believes; -inf after the end
    steps: Tensor  # (B,) actions taken, the trigger among them
    triggered: Tensor  # (B,) bool


class Found(NamedTuple):
    """What was found in N images, K objects each; in pixels of the small images."""

    box: Tensor  # (N, K, 2 D)
    logit: Tensor  # (N, K) -inf for none
    steps: Tensor  # (N, K) of the walk that found it
    spent: Tensor  # (N, K) actions of the walks before it, as if they had been taken one after the other
    paths: list[list[Tensor]]  # a path (T, 2 D) for every object


@torch.no_grad()
def follow(task: LocalisationTask, network: nn.Module, state: LocalisationState) -> Walks:
    """Walk greedily until the trigger, into a circle, or for 40 steps; rows that have ended cost nothing."""
    count, device = len(state.case), task.cases.device
    box, logit = [state.box], []
    steps = torch.zeros(count, dtype=torch.long, device=device)
    triggered = torch.zeros(count, dtype=torch.bool, device=device)
    active, current = torch.arange(count, device=device), state
    for step in range(task.max_steps + 1):
        output = network(task.observe(current)).float()
        judged = torch.full((count,), -torch.inf, device=device)
        judged[active] = network.split(output).overlap
        logit.append(judged)
        if step == task.max_steps:
            break
        current = task.advance(current, network.action_values(output)[:, 0].argmax(1))
        last = box[-1].clone()
        last[active] = current.box
        box.append(last)
        steps[active] += 1
        triggered[active] = current.triggered
        visits = ((torch.stack(box)[:, active] - current.box).abs().amax(-1) < 1e-3).sum(0)
        going = ~current.triggered & (visits < CIRCLES)
        active, current = active[going], rows(current, going)
        if len(active) == 0:
            logit.append(torch.full_like(judged, -torch.inf))  # of a box that was judged before
            break
    return Walks(torch.stack(box), torch.stack(logit), steps, triggered)


@torch.no_grad()
def search(
    task: LocalisationTask, network: nn.Module, case: Tensor, *, limit: int = 4, patience: int = 0,
    floor: float = -3.0, attended: bool = True,
) -> Found:  # fmt: skip
    """Search images ``case`` (N,) from the five starts, mark the best box by a cross, and search again.

    Every round takes the box that the network believes to fit best, among all that were attended, or only among those
    where it triggered.  Boxes on an earlier find do not count.  A find with a logit below ``floor`` does not convince:
    an image is done with ``limit`` finds that do, or after more than ``patience`` that do not.
    """
    device, starts, dims = task.cases.device, len(task.starts), task.cases.dims
    count = len(case)
    rounds = limit + patience
    found = Found(
        torch.zeros(count, rounds, 2 * dims, device=device), torch.full((count, rounds), -torch.inf, device=device),
        torch.zeros(count, rounds, dtype=torch.long, device=device),
        torch.zeros(count, rounds, dtype=torch.long, device=device), [[] for _ in range(count)],
    )  # fmt: skip
    open_, spent = torch.arange(count, device=device), torch.zeros(count, dtype=torch.long, device=device)
    for number in range(rounds):
        if len(open_) == 0:
            break
        many = len(open_)
        start = task.start(case[open_].repeat(starts), torch.arange(starts, device=device).repeat_interleave(many))
        crossed = torch.zeros(many, max(task.crosses, rounds - 1), 2 * dims, device=device)
        crossed[:, :number] = found.box[open_, :number]
        walks = follow(task, network, start._replace(found=crossed.half().repeat(starts, 1, 1)))
        candidate = walks.logit if attended else _triggered_only(walks)
        again = iou(walks.box[:, :, None], crossed.repeat(starts, 1, 1)).amax(-1) > SAME
        candidate = candidate.masked_fill(again, -torch.inf).unflatten(1, (starts, many))
        best, walk = candidate.amax(0).max(0)  # (many,): over the walk, then over the starts
        time = candidate.argmax(0).gather(0, walk[None])[0]
        row = walk * many + torch.arange(many, device=device)
        found.box[open_, number] = walks.box[time, row]
        found.logit[open_, number] = best
        found.steps[open_, number] = walks.steps[row]
        cost = walks.steps.unflatten(0, (starts, many))
        before = torch.arange(starts, device=device)[:, None] <= walk
        found.spent[open_, number] = spent[open_] + (cost * before).sum(0)
        spent[open_] += cost.sum(0)
        for place, image in enumerate(open_.tolist()):
            found.paths[image].append(walks.box[: int(walks.steps[row[place]]) + 1, int(row[place])].cpu())
        convinced = (found.logit[open_] >= floor).sum(1)
        open_ = open_[(convinced < limit) & (number + 1 - convinced <= patience)]
    return found


@torch.no_grad()
def refine(task: LocalisationTask, network: nn.Module, case: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Walk on from given boxes (N, 2 D); returns the boxes and logits (N,) that the network believes to fit best."""
    walks = follow(task, network, task.start(case, box=box))
    best = walks.logit.argmax(0)
    at = torch.arange(len(case), device=best.device)
    return walks.box[best, at], walks.logit[best, at]


def _triggered_only(walks: Walks) -> Tensor:
    """Logits of the boxes where walks triggered, -inf elsewhere."""
    last = walks.steps - 1
    time = torch.arange(len(walks.logit), device=last.device)[:, None]
    return walks.logit.masked_fill((time != last) | ~walks.triggered, -torch.inf)


class LocalisationInferer(Inferer):
    """Detections of one picture or volume, as ``medrl.inference.localisation_transforms.LoadSmallImaged`` reads it.

    ``calibration`` (slope, bias) makes a chance of the network's logit; what is below ``threshold`` is not reported,
    so that an image may hold nothing; ``limit`` and ``patience`` are those of `search`.  ``view``, ``alpha``,
    ``least``, ``max_steps`` are those of `LocalisationTask`.  ``answers`` "attended" judges every box on the way,
    "trigger" only those where the agent triggered.
    """

    def __init__(
        self, *, dims: int = 2, channels: int = 1, view: int = 24, alpha: float = 0.2, least: float = 3.0,
        max_steps: int = 40, limit: int = 4, patience: int = 2, threshold: float = 0.5,
        calibration: Sequence[float] = (1.0, 0.0), answers: str = "attended", longest: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        if answers not in ("attended", "trigger"):
            raise InputError(f"answers is {answers!r}; expected attended or trigger")
        if not 0 <= float(threshold) <= 1:
            raise InputError(f"threshold is {threshold}; expected a chance between 0 and 1")
        self.dims, self.channels, self.longest = dims, channels, longest
        self.task_options = {"view": view, "alpha": alpha, "least": least, "max_steps": max_steps}
        self.limit, self.patience, self.threshold, self.answers = int(limit), int(patience), float(threshold), answers
        self.slope, self.bias = map(float, calibration)
        self.task_options["crosses"] = max(1, self.limit - 1)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> list[list[Detection]]:
        """Search images (B, C, *S) uint8 with ``affine``, file from small image (4, 4); one list a row."""
        if inputs.ndim != 2 + self.dims:
            kind, other = ("pictures", "a volume") if self.dims == 2 else ("volumes", "a picture")
            raise InputError(f"these weights are for {kind}, but the case is {other}; choose others by --weights")
        device = next(network.parameters()).device
        matrix = torch.as_tensor(inputs.affine).double().reshape(-1, 4, 4)[0] if hasattr(inputs, "affine") else None
        images = torch.as_tensor(inputs).as_subclass(Tensor).to(torch.uint8).to(device)
        cases = BoxCases(images)
        if matrix is not None:
            axes = torch.arange(self.dims)
            cases.scale = matrix[axes, axes].float().expand(len(images), -1).to(device)
            cases.origin = matrix[axes, 3].float().expand(len(images), -1).to(device)
        return self.detect(cases, network.eval())

    def detect(self, cases: BoxCases, network: nn.Module, *, threshold: float | None = None) -> list[list[Detection]]:
        """Search all cases; boxes in pixels or mm of the files."""
        task = LocalisationTask(cases, **self.task_options)
        least = self.threshold if threshold is None else threshold
        floor = (np.log(max(least, 1e-4) / max(1 - least, 1e-4)) - self.bias) / self.slope
        case = torch.arange(len(cases), device=cases.device)
        found = search(
            task, network, case, limit=self.limit, patience=self.patience, floor=float(floor),
            attended=self.answers == "attended",
        )  # fmt: skip
        chance = torch.sigmoid(self.slope * found.logit + self.bias).cpu()
        out: list[list[Detection]] = []
        for row in range(len(cases)):
            here = torch.full((1,), row, device=cases.device)
            out.append([])
            for number, path in enumerate(found.paths[row]):
                if float(chance[row, number]) < max(least, 1e-6):
                    continue
                box = cases.in_file(here, found.box[row, number][None])[0]
                trail = cases.in_file(here.expand(len(path)), path.to(cases.device))
                out[-1].append(Detection(
                    box=tuple(box.tolist()), score=float(chance[row, number]), steps=int(found.steps[row, number]),
                    path=trail.cpu().numpy(),
                ))  # fmt: skip
            out[-1].sort(key=lambda one: -one.score)
        return out
