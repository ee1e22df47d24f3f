"""Whole videos cut: by a policy, or along boxes that a rule places, as baselines do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medrl.agents.categorical import best
from medrl.geometry.pasting import boxes_of_masks
from medrl.tasks.cutting import STOP, CuttingState, CuttingTask
from medrl.types import where

CHECK = 8  # steps between looks at the host
Rule = Callable[[CuttingTask, CuttingState], Tensor]


class Cuts(NamedTuple):
    """How B objects were cut in each of T frames, those that were not visited included (zeros)."""

    mask: Tensor  # (B, T, P) uint8, bit-packed
    previous: Tensor  # (B, T, P) uint8: the mask of the frame before
    box: Tensor  # (B, T, 4)
    context: Tensor  # (B, T) int8
    moves: Tensor  # (B, T) int8
    visited: Tensor  # (B, T) bool


@torch.no_grad()
def follow(
    task: CuttingTask, network: nn.Module, state: CuttingState, *, context: int | None = None,
    generator: torch.Generator | None = None,
) -> Cuts:  # fmt: skip
    """Cut all frames from given ones (``task.given``) with the greedy policy.

    ``context`` takes the place of the policy's own; with a ``generator`` the object actions are drawn evenly instead.
    """
    memory: Any = None
    cuts = _empty(task, state)
    for step in range(task.cases.frames.shape[1] * (task.moves + 1)):
        logits, _, memory = network(task.observe(state), memory)
        action = best(logits, network.nvec)
        if generator is not None:
            action = torch.stack([torch.randint(STOP + 1, (len(action),), generator=generator), action[:, 1]], 1)
        if context is not None:
            action = torch.stack([action[:, 0], torch.full_like(action[:, 1], context)], 1)
        _keep(cuts, state, task.stops(state, action) & ~state.ended)
        state = where(state.ended, state, task.advance(state, action))
        if step % CHECK == CHECK - 1 and bool(state.ended.all()):
            break
    return cuts


@torch.no_grad()
def cut_along(task: CuttingTask, rule: Rule, state: CuttingState, *, context: int) -> Cuts:
    """Cut all frames from given ones, each under the box that the rule says at the end of the frame before."""
    cuts = _empty(task, state)
    stop = torch.stack([torch.full_like(state.case, STOP), torch.full_like(state.case, context)], 1).long()
    for _ in range(task.cases.frames.shape[1]):
        _keep(cuts, state, ~state.ended)
        state = where(state.ended, state, task.advance(state._replace(box=rule(task, state)), stop))
    return cuts


def static_box(task: CuttingTask, state: CuttingState) -> Tensor:
    """The box that there is."""
    return state.box


def true_box(task: CuttingTask, state: CuttingState) -> Tensor:
    """The box of the truth in the next frame; where the object is hidden, the last one."""
    case = state.case.long()
    after = torch.minimum(state.frame.long() + 1, task.cases.length[case] - 1)
    return task.cases.box[case, after]


def mask_box(task: CuttingTask, state: CuttingState) -> Tensor:
    """The box round the mask that was just cut: tracking without an agent; where it is empty, the box that there is."""
    box, there = boxes_of_masks(task.cases.unpacked(state.mask))
    return torch.where(there[:, None], box, state.box)


def given_first(task: CuttingTask, case: Tensor | None = None) -> CuttingState:
    """The first frame of every case, or of those (B,) named, given with its true mask and box."""
    case = torch.arange(len(task.cases), device=task.cases.device) if case is None else case.long()
    frame, context = torch.zeros_like(case), torch.full_like(case, len(task.contexts) // 2)
    return task.given(case, frame, task.cases.box[case, 0], context, task.cases.truth[case, 0])


def agreements(task: CuttingTask, cuts: Cuts) -> Tensor:
    """J (B, T): IoU with the truth; NaN in the first frame, which was given, and after a video's last."""
    count, steps = cuts.visited.shape
    case = torch.arange(count, device=cuts.mask.device)
    rows = [task.agreement(case, torch.full_like(case, t), cuts.mask[:, t]) for t in range(steps)]
    value = torch.where(cuts.visited, torch.stack(rows, 1), torch.nan)
    value[:, 0] = torch.nan
    return value


def decay(agreement: Tensor) -> Tensor:
    """What J (B, T) loses (B,): the mean of the first quarter of the frames less that of the last."""
    known = agreement.isfinite()
    order = known.cumsum(1)
    quarter = (known.sum(1, keepdim=True) / 4).ceil().clamp(min=1)
    first, last = known & (order <= quarter), known & (order > known.sum(1, keepdim=True) - quarter)
    value = agreement.nan_to_num()
    return (value * first).sum(1) / first.sum(1) - (value * last).sum(1) / last.sum(1)


def _empty(task: CuttingTask, state: CuttingState) -> Cuts:
    def spread(value: Tensor) -> Tensor:
        return torch.zeros_like(value)[:, None].repeat(1, task.cases.frames.shape[1], *[1] * (value.ndim - 1))

    return Cuts(*(spread(x) for x in (state.mask, state.mask, state.box, state.context, state.step, state.ended)))


def _keep(cuts: Cuts, state: CuttingState, done: Tensor) -> None:
    """Write what the rows of a mask (B,) have done in their frames."""
    row, frame = torch.arange(len(done), device=done.device), state.frame.long()
    values = (state.mask, state.previous, state.box, state.context, state.step, torch.ones_like(done))
    for kept, value in zip(cuts, values, strict=True):
        mask = done.reshape(-1, *[1] * (value.ndim - 1))
        kept[row, frame] = torch.where(mask, value, kept[row, frame])
