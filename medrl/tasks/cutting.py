"""Cut an object out of a video: move its box, choose its context, stop, next frame [RCAL: Han et al., CVPR 2018]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from medrl.data.seed_cases import count_bits, pack
from medrl.data.video_cases import VideoCases
from medrl.geometry.boxes import from_middle_and_size, iou, middle_and_size
from medrl.geometry.pasting import boxes_of_masks, mark_box, paste_boxes
from medrl.rewards.cutting import CuttingBand
from medrl.tasks.base import Task
from medrl.types import Reward

OBJECT_ACTIONS = ("right", "left", "down", "up", "larger", "smaller", "wider", "taller", "stop")
MOVES = len(OBJECT_ACTIONS) - 1
STOP = MOVES
CONTEXTS = (0.2, 0.4, 0.6)
# of a side: shift in x, shift in y, growth in x, growth in y, in units of ``shift`` and ``growth``
CHANGES = torch.tensor(
    [[1, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, -1, -1], [0, 0, 1, 0],
     [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float32,
)  # fmt: skip
WINDOW = 2.0  # sides of what the policy sees, in sides of the object box
SMALLEST = 3.0  # side of an object box in canvas pixels
IMAGE = ("red", "green", "blue", "mask", "mask before")


class CuttingState(NamedTuple):
    """B objects; 27 bytes a row, 2 an action of the history, and two packed masks."""

    case: Tensor  # (B,) int16
    frame: Tensor  # (B,) int16, the one that is being cut; 0 was given
    box: Tensor  # (B, 4) float32, object box on the canvas
    context: Tensor  # (B,) int8, the choice that the mask was cut with
    mask: Tensor  # (B, P) uint8: the cutter's mask of this frame, bit-packed
    previous: Tensor  # (B, P) uint8: the mask of the frame before
    start: Tensor  # (B,) float32, IoU of this frame's first mask, cut before any move, with the truth
    history: Tensor  # (B, K, 2) int8: the last actions, latest first; -1 where there was none
    step: Tensor  # (B,) int8, moves made in this frame
    ended: Tensor  # (B,) bool


class CuttingTask(Task):
    """An action is one of nine for the object box and one of three contexts, 0.2, 0.4 or 0.6 larger than that box.

    Every action but the last stop is followed by a cut: the frozen ``cutter`` sees the context box of this frame and of
    the one before, with the mask found there and the object box marked, and draws the new mask inside the context box
    and nowhere else.  A stop ends the frame, and so does whatever comes after ``moves`` moves; the next frame starts
    with the same box, and its context is the one chosen by the stop.  After the last frame the episode has ended.  The
    score is the IoU of the present mask, of two empty masks 1.

    An episode starts in a random frame that shows the object (``random_start``; else the first) and is given: its mask
    is the true one, its box round that, moved by up to ``jitter`` of its sides, and its moves are spent, so that
    whatever comes first is a stop.

    ``expert``: the box action that brings the box nearest to that of the truth (by IoU, more than ``worthwhile``), stop
    where none does; the context under which the next mask is best, or always ``expert_context``.
    """

    def __init__(
        self, cases: VideoCases, *, cutter: nn.Module, size: int = 32, look: int = 24, moves: int = 5,
        shift: float = 0.1, growth: float = 0.1, contexts: Sequence[float] = CONTEXTS, history: int = 8,
        max_steps: int | None = None, reward: Reward | None = None, random_start: bool = True, jitter: float = 0.03,
        expert_context: int | None = None, worthwhile: float = 0.01,
    ) -> None:  # fmt: skip
        self.cases, self.cutter = cases, cutter.eval().requires_grad_(False)
        self.size, self.look, self.moves, self.history = size, look, moves, history
        self.max_steps = cases.frames.shape[1] * (moves + 1) if max_steps is None else max_steps
        self.reward_shape = CuttingBand() if reward is None else reward
        self.random_start, self.jitter = random_start, jitter
        self.expert_context, self.worthwhile = expert_context, worthwhile
        self.contexts = torch.tensor(list(contexts), device=cases.device)
        scale = torch.tensor([shift, shift, growth, growth])
        self.changes = (CHANGES * scale).to(cases.device)
        self.first = torch.arange(cases.frames.shape[1], device=cases.device)
        self.action_space = gymnasium.spaces.MultiDiscrete([MOVES + 1, len(self.contexts)])
        features = 12 + len(self.contexts) + moves + 1 + history * (MOVES + 1 + len(self.contexts))
        self.observation_space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (len(IMAGE), look, look), np.uint8),
                "vector": gymnasium.spaces.Box(-5.0, 5.0, (features,), np.float32),
            }
        )

    # -- the contract -------------------------------------------------------------------------------------------

    def initial(self, case: Tensor, generator: torch.Generator) -> CuttingState:
        """A frame whose mask is given."""
        case = case.long()
        usable = self.cases.present[case] & (self.first < self.cases.length[case, None] - 1)
        chance = torch.rand(usable.shape, generator=generator, device=case.device)
        order = usable * (chance + 1) if self.random_start else usable * (self.first.flip(0) + 1)
        given = order.argmax(1)
        box = self.cases.box[case, given]
        noise = 2 * torch.rand(box.shape, generator=generator, device=box.device) - 1
        _, side = middle_and_size(box)
        box = self.kept(case, box + self.jitter * noise * torch.cat([side, side], 1))
        context = torch.full_like(case, len(self.contexts) // 2)
        return self.given(case, given, box, context, self.cases.truth[case, given])

    def observe(self, state: CuttingState) -> dict[str, Tensor]:
        """The surroundings of the box with both masks (B, 5, n, n) uint8, and (B, F) numbers."""
        middle, side = middle_and_size(state.box)
        window = from_middle_and_size(middle, WINDOW * side)
        colour = self.cases.crop(state.case, state.frame, window, self.look)
        masks = [self.cases.crop_mask(packed, window, self.look) for packed in (state.mask, state.previous)]
        image = torch.cat([colour, *(255 * mask for mask in masks)], 1).round().clamp(0, 255).to(torch.uint8)
        return {"image": image, "vector": self._numbers(state)}

    def advance(self, state: CuttingState, action: Tensor) -> CuttingState:
        """Move the box, or go on to the next frame; then cut."""
        moved, context = action.long().unbind(1)
        stop = self.stops(state, action)
        over = state.ended | (stop & (state.frame >= self.cases.length[state.case.long()] - 1))
        onward = stop & ~over
        box = torch.where(stop[:, None], state.box, self._after(state.case.long(), state.box, moved))
        frame = state.frame + onward.to(torch.int16)
        previous = torch.where(onward[:, None], state.mask, state.previous)
        mask = self.cut(state.case, frame, box, context, previous)
        start = torch.where(onward, self.agreement(state.case, frame, mask), state.start)
        now = torch.stack([moved, context], 1).to(torch.int8)[:, None]
        return CuttingState(
            state.case, frame, torch.where(over[:, None], state.box, box),
            torch.where(over, state.context, context.to(torch.int8)),
            torch.where(over[:, None], state.mask, mask), previous, start,
            torch.cat([now, state.history], 1)[:, : self.history],
            torch.where(stop, 0, state.step + 1).to(torch.int8), over,
        )  # fmt: skip

    def terminated(self, state: CuttingState) -> Tensor:
        """The last frame is done."""
        return state.ended

    def score(self, state: CuttingState) -> Tensor:
        """IoU (B,) of the present mask with the truth of its frame."""
        return self.agreement(state.case, state.frame, state.mask)

    def expert(self, state: CuttingState) -> Tensor:
        """(B, 2): greedy in the box, by the truth's box; then in the context, by the truth's mask."""
        rows, moved = len(state.case), self.action_gains(state)[:, : MOVES + 1].argmax(1)
        if self.expert_context is not None:
            return torch.stack([moved, torch.full_like(moved, self.expert_context)], 1)
        count = len(self.contexts)
        many = CuttingState(*(value.repeat_interleave(count, 0) for value in state))
        context = torch.arange(count, device=moved.device).repeat(rows)
        after = self.advance(many, torch.stack([moved.repeat_interleave(count), context], 1))
        return torch.stack([moved, self.score(after).reshape(rows, count).argmax(1)], 1)

    def outputs(self, state: CuttingState) -> dict[str, Any]:
        """Masks (B, H, W) bool and boxes (B, 4) on the canvas, with the names of their cases."""
        return {
            "case": [self.cases.names[int(c)] for c in state.case], "frame": state.frame.clone(),
            "mask": self.cases.unpacked(state.mask), "box": state.box.clone(),
        }  # fmt: skip

    def picture(self, state: CuttingState, *, enlarge: int = 6) -> np.ndarray:
        """The first row's frame (H, W, 3) uint8, enlarged, with its mask tinted red and both boxes drawn."""
        frame = self.cases.frames[state.case[0].long(), state.frame[0].long()].float()
        mask = self.cases.unpacked(state.mask[:1])[0]
        red = torch.tensor([255.0, 0.0, 0.0], device=frame.device)[:, None, None]
        frame = torch.where(mask, 0.5 * frame + 0.5 * red, frame).repeat_interleave(enlarge, 1)
        frame = frame.repeat_interleave(enlarge, 2).clone()
        height, width = frame.shape[1:]
        around = self.context_box(state.box[:1], state.context[:1])[0]
        for box, value in ((around, 255.0), (state.box[0], 0.0)):
            left, top, right, bottom = (int(n) for n in (box * enlarge).round())
            x, y = slice(max(0, left), max(0, right)), slice(max(0, top), max(0, bottom))
            for row in (min(max(top, 0), height - 1), min(max(bottom, 1), height) - 1):
                frame[:, row, x] = value
            for column in (min(max(left, 0), width - 1), min(max(right, 1), width) - 1):
                frame[:, y, column] = value
        return frame.permute(1, 2, 0).round().to(torch.uint8).cpu().numpy()

    # -- what rewards, baselines and inferers use beside the contract ---------------------------------------------

    def action_gains(self, state: CuttingState) -> Tensor:
        """What every choice gains (B, 9 + 3): IoU of the box with the truth's; nothing is known of contexts, 0."""
        case, frame = state.case.long(), state.frame.long()
        truth, there = self.cases.box[case, frame], self.cases.present[case, frame]
        rows, every = len(case), torch.arange(MOVES, device=case.device)
        boxes = self._after(case.repeat_interleave(MOVES), state.box.repeat_interleave(MOVES, 0), every.repeat(rows))
        gain = iou(boxes.reshape(rows, MOVES, 4), truth[:, None]) - iou(state.box, truth)[:, None]
        gain = torch.where(there[:, None], gain, 0.0)
        stop = torch.full_like(gain[:, :1], self.worthwhile)
        return torch.cat([gain, stop, torch.zeros((rows, len(self.contexts)), device=case.device)], 1)

    def stops(self, state: CuttingState, action: Tensor) -> Tensor:
        """(B,) bool: the action ends the frame, by choice or because there are no more moves."""
        return (action[:, 0] == STOP) | (state.step >= self.moves)

    def gain(self, state: CuttingState, action: Tensor, next_state: CuttingState) -> Tensor:
        """IoU (B,) gained by a move; by a stop, what the frame's last mask is better than the mask at its start."""
        present = self.score(state)
        return torch.where(self.stops(state, action), present - state.start, self.score(next_state) - present)

    def agreement(self, case: Tensor, frame: Tensor, mask: Tensor) -> Tensor:
        """IoU (B,) of packed masks (B, P) with the truth of a frame."""
        truth = self.cases.truth[case.long(), frame.long()]
        union = count_bits(mask | truth)
        return torch.where(union > 0, count_bits(mask & truth) / union.clamp(min=1), 1.0)

    def given(self, case: Tensor, frame: Tensor, box: Tensor, context: Tensor, mask: Tensor) -> CuttingState:
        """States (B rows) in frames (B,) whose masks (B, P) and boxes (B, 4) are known: no moves are left."""
        rows, device = len(case), case.device
        return CuttingState(
            case.to(torch.int16), frame.to(torch.int16), box, context.to(torch.int8), mask, mask,
            self.agreement(case, frame, mask), torch.full((rows, self.history, 2), -1, dtype=torch.int8, device=device),
            torch.full((rows,), self.moves, dtype=torch.int8, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )  # fmt: skip

    def context_box(self, box: Tensor, context: Tensor) -> Tensor:
        """Context boxes (B, 4) of object boxes (B, 4)."""
        middle, side = middle_and_size(box)
        return from_middle_and_size(middle, side * (1 + self.contexts[context.long()])[:, None])

    def pair(self, case: Tensor, frame: Tensor, box: Tensor, context: Tensor, previous: Tensor) -> Tensor:
        """What the cutter sees, (B, 8, n, n) in 0..1."""
        around = self.context_box(box, context)
        seen = (frame, (frame - 1).clamp(min=0))
        colours = [self.cases.crop(case, at, around, self.size) / 255 for at in seen]
        before = self.cases.crop_mask(previous, around, self.size)
        return torch.cat([*colours, before, mark_box(box, around, self.size)], 1)

    def cut(self, case: Tensor, frame: Tensor, box: Tensor, context: Tensor, previous: Tensor) -> Tensor:
        """The cutter's masks (B, P), packed: empty outside the context box."""
        logits = self.logits(case, frame, box, context, previous)
        pasted = paste_boxes(logits, self.context_box(box, context), self.cases.shape)
        return pack((pasted > 0).flatten(1))

    def logits(self, case: Tensor, frame: Tensor, box: Tensor, context: Tensor, previous: Tensor) -> Tensor:
        """The cutter's answers (B, n, n) in the context box."""
        with torch.no_grad():
            return self.cutter(self.pair(case, frame, box, context, previous))[:, 0]

    def kept(self, case: Tensor, box: Tensor) -> Tensor:
        """Boxes (B, 4) that have some size, are no larger than the video, and whose centres lie in it."""
        middle, side = middle_and_size(box)
        extent = self.cases.extent[case]
        side = torch.minimum(side.clamp(min=SMALLEST), extent)
        return from_middle_and_size(torch.minimum(middle.clamp(min=0), extent), side)

    def _after(self, case: Tensor, box: Tensor, moved: Tensor) -> Tensor:
        """Boxes (B, 4) after the object actions (B,)."""
        middle, side = middle_and_size(box)
        change = self.changes[moved]
        return self.kept(case, from_middle_and_size(middle + change[:, :2] * side, side * (1 + change[:, 2:])))

    def _numbers(self, state: CuttingState) -> Tensor:
        """(B, F): how both masks lie in the box, context, moves made, last actions."""
        rows, device = len(state.case), state.box.device
        _, side = middle_and_size(state.box)
        parts = []
        for packed in (state.mask, state.previous):
            box, there = boxes_of_masks(self.cases.unpacked(packed))
            beside = (box - state.box) / torch.cat([side, side], 1)
            share = count_bits(packed) / side.prod(1)
            parts += [torch.where(there[:, None], 4 * beside, 0.0), there.float()[:, None], share[:, None]]
        choices = [
            (state.context, len(self.contexts)), (state.step, self.moves + 1),
            *((state.history[:, n, 0], MOVES + 1) for n in range(self.history)),
            *((state.history[:, n, 1], len(self.contexts)) for n in range(self.history)),
        ]  # fmt: skip
        flags = [(value.long()[:, None] == torch.arange(count, device=device)).float() for value, count in choices]
        return torch.cat([*parts, *flags], 1).reshape(rows, -1).clamp(-5, 5)
