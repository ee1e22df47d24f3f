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
from medrl.geometry.crops import crop_boxes
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
WINDOW, WIDE = 2.0, 5.0  # sides of what the policy sees, in sides of the object box
NEARER = 0.5  # what a box that misses the object gains by a side of its own nearer, in IoU
SMALLEST = 3.0  # side of an object box in canvas pixels
IMAGE = ("red", "green", "blue", "chance", "mask", "mask before", "wide chance", "wide mask")


class CuttingState(NamedTuple):
    """B objects; 29 bytes a row, 2 an action of the history, and three packed masks."""

    case: Tensor  # (B,) int16
    given: Tensor  # (B,) int16, the frame that was given; it is remembered
    known: Tensor  # (B, P) uint8: the mask given there, bit-packed
    frame: Tensor  # (B,) int16, the one that is being cut
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
    the one before, with the mask found there, the object box, and how likely every colour is the object's by the frame
    that was given; it draws the new mask inside the context box and nowhere else.  A stop ends the frame, and so does
    whatever comes after ``moves`` moves; the next frame starts with the same box, and its context is the one chosen by
    the stop.  After the last frame the episode has ended.  The score is the IoU of the present mask, of two empty ones
    1.

    An episode starts in a random frame that shows the object (``random_start``; else the first) and is given: its mask
    is the true one, its box round that, moved by up to ``jitter`` of its sides, and its moves are spent, so that
    whatever comes first is a stop.  A share of ``lost`` episodes starts with a box anywhere and without a mask.

    ``expert``: the box action that gains most (`action_gains`), stop where none gains more than ``worthwhile``; the
    context under which the next mask is best, or always ``expert_context``.
    """

    def __init__(
        self, cases: VideoCases, *, cutter: nn.Module, size: int = 32, look: int = 24, moves: int = 5,
        shift: float = 0.1, growth: float = 0.1, contexts: Sequence[float] = CONTEXTS, history: int = 8,
        max_steps: int | None = None, reward: Reward | None = None, random_start: bool = True, jitter: float = 0.03,
        lost: float = 0.0, expert_context: int | None = None, worthwhile: float = 0.01,
    ) -> None:  # fmt: skip
        self.cases, self.cutter = cases, cutter.eval().requires_grad_(False)
        self.size, self.look, self.moves, self.history = size, look, moves, history
        self.max_steps = cases.frames.shape[1] * (moves + 1) if max_steps is None else max_steps
        self.reward_shape = CuttingBand() if reward is None else reward
        self.random_start, self.jitter, self.lost, self.worthwhile = random_start, jitter, lost, worthwhile
        self.expert_context = expert_context
        self.contexts, self.middle = torch.tensor(list(contexts), device=cases.device), len(contexts) // 2
        scale = torch.tensor([shift, shift, growth, growth])
        self.changes = (CHANGES * scale).to(cases.device)
        self.first = torch.arange(cases.frames.shape[1], device=cases.device)
        self.action_space = gymnasium.spaces.MultiDiscrete([MOVES + 1, len(self.contexts)])
        features = 15 + len(self.contexts) + moves + 1 + history * (MOVES + 1 + len(self.contexts))
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
        noise, lost = (torch.rand((len(case), n), generator=generator, device=case.device) for n in (4, 3))
        _, side = middle_and_size(box)
        box = box + self.jitter * (2 * noise - 1) * torch.cat([side, side], 1)
        elsewhere = from_middle_and_size(lost[:, 1:] * self.cases.extent[case], side * (0.5 + chance[:, :1]))
        lost = lost[:, :1] < self.lost
        box = self.kept(case, torch.where(lost, elsewhere, box))
        state = self.given(case, given, box, torch.full_like(case, self.middle), self.cases.truth[case, given])
        mask = torch.where(lost, 0, state.mask)
        return state._replace(mask=mask, previous=mask)

    def observe(self, state: CuttingState) -> dict[str, Tensor]:
        """The surroundings of the box near and far, `IMAGE` (B, 8, n, n) uint8, and (B, F) numbers.

        The chance is that of the colours, by the frame that was given.
        """
        middle, side = middle_and_size(state.box)
        window, wide = (from_middle_and_size(middle, times * side) for times in (WINDOW, WIDE))
        rows = torch.arange(len(side), device=side.device)
        chance = self.cases.chance(state.case, state.frame, state.given, state.known)[:, -1:]
        mask, before = (self.cases.unpacked(packed)[:, None].float() for packed in (state.mask, state.previous))
        near = crop_boxes(torch.cat([chance, mask, before], 1), rows, window, (self.look, self.look))
        far = crop_boxes(torch.cat([chance, mask], 1), rows, wide, (self.look, self.look))
        colour = self.cases.crop(state.case, state.frame, window, self.look)
        image = torch.cat([colour, 255 * near, 255 * far], 1).round().clamp(0, 255).to(torch.uint8)
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
        mask = self.cut(state._replace(frame=frame, box=box, context=context, previous=previous))
        start = torch.where(onward, self.agreement(state.case, frame, mask), state.start)
        now = torch.stack([moved, context], 1).to(torch.int8)[:, None]
        return CuttingState(
            state.case, state.given, state.known, frame, torch.where(over[:, None], state.box, box),
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
        """(B, 2): what gains most, of the box by the truth's box, of the context by the truth's mask."""
        gains = self.action_gains(state)
        return torch.stack([gains[:, : MOVES + 1].argmax(1), gains[:, MOVES + 1 :].argmax(1)], 1)

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
        """What every choice gains (B, 9 + 3): IoU of the box with the truth's, of the mask beside the best context's.

        A box that does not meet the truth's gains `NEARER` of every side of its own that its middle comes nearer.
        The masks are those after the best choice for the box; ``expert_context`` is told to be the best by 1.
        """
        case, frame = state.case.long(), state.frame.long()
        truth, there = self.cases.box[case, frame][:, None], self.cases.present[case, frame]
        rows, every = len(case), torch.arange(MOVES, device=case.device)
        boxes = self._after(case.repeat_interleave(MOVES), state.box.repeat_interleave(MOVES, 0), every.repeat(rows))
        boxes = torch.cat([boxes.reshape(rows, MOVES, 4), state.box[:, None]], 1)
        overlap, middle = iou(boxes, truth), middle_and_size(boxes)[0]
        away = ((middle - middle_and_size(truth)[0]) / middle_and_size(state.box)[1][:, None]).norm(dim=2)
        worth = torch.where(overlap[:, -1:] > 0, overlap, overlap - NEARER * away)
        gain = torch.where(there[:, None], worth[:, :-1] - worth[:, -1:], 0.0)
        gain = torch.cat([gain, torch.full_like(gain[:, :1], self.worthwhile)], 1)
        count, context = len(self.contexts), torch.arange(len(self.contexts), device=case.device)
        if self.expert_context is not None:
            return torch.cat([gain, -(context != self.expert_context).float().expand(rows, count)], 1)
        many = CuttingState(*(value.repeat_interleave(count, 0) for value in state))
        action = torch.stack([gain.argmax(1).repeat_interleave(count), context.repeat(rows)], 1)
        score = self.score(self.advance(many, action)).reshape(rows, count)
        return torch.cat([gain, score - score.amax(1, keepdim=True)], 1)

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
        at, history = frame.to(torch.int16), torch.full((rows, self.history, 2), -1, dtype=torch.int8, device=device)
        return CuttingState(
            case.to(torch.int16), at, mask, at, box, context.to(torch.int8), mask, mask,
            self.agreement(case, frame, mask), history,
            torch.full((rows,), self.moves, dtype=torch.int8, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )  # fmt: skip

    def context_box(self, box: Tensor, context: Tensor) -> Tensor:
        """Context boxes (B, 4) of object boxes (B, 4)."""
        middle, side = middle_and_size(box)
        return from_middle_and_size(middle, side * (1 + self.contexts[context.long()])[:, None])

    def pair(self, state: CuttingState) -> Tensor:
        """What the cutter sees (B, 10, n, n), in 0..1: the context box in this frame and in the one before."""
        case, frame, rows = state.case.long(), state.frame.long(), torch.arange(len(state.box), device=state.box.device)
        around = self.context_box(state.box, state.context)
        frames = [self.cases.frames[case, at] / 255 for at in (frame, (frame - 1).clamp(min=0))]
        before = self.cases.unpacked(state.previous)[:, None].float()
        chance = self.cases.chance(case, frame, state.given, state.known)
        seen = crop_boxes(torch.cat([*frames, before, chance], 1), rows, around, (self.size, self.size))
        return torch.cat([seen[:, :7], mark_box(state.box, around, self.size), seen[:, 7:]], 1)

    def cut(self, state: CuttingState) -> Tensor:
        """The cutter's masks (B, P), packed, of the state's frame after ``previous``: empty outside the context box."""
        pasted = paste_boxes(self.logits(state), self.context_box(state.box, state.context), self.cases.shape)
        return pack((pasted > 0).flatten(1))

    def logits(self, state: CuttingState) -> Tensor:
        """The cutter's answers (B, n, n) in the context box."""
        with torch.no_grad():
            return self.cutter(self.pair(state))[:, 0]

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
        """(B, F): how both masks lie in the box, sizes beside what was given, context, moves made, last actions."""
        rows, device = len(state.case), state.box.device
        _, side = middle_and_size(state.box)
        parts = []
        for packed in (state.mask, state.previous):
            box, there = boxes_of_masks(self.cases.unpacked(packed))
            beside = (box - state.box) / torch.cat([side, side], 1)
            share = count_bits(packed) / side.prod(1)
            parts += [torch.where(there[:, None], 4 * beside, 0.0), there.float()[:, None], share[:, None]]
        _, known = middle_and_size(boxes_of_masks(self.cases.unpacked(state.known))[0])
        areas = [count_bits(packed)[:, None].float() for packed in (state.mask, state.known)]
        parts += [(side / known.clamp(min=1)).log(), ((areas[0] + 1) / (areas[1] + 1)).log()]
        choices = [
            (state.context, len(self.contexts)), (state.step, self.moves + 1),
            *((state.history[:, n, 0], MOVES + 1) for n in range(self.history)),
            *((state.history[:, n, 1], len(self.contexts)) for n in range(self.history)),
        ]  # fmt: skip
        flags = [(value.long()[:, None] == torch.arange(count, device=device)).float() for value, count in choices]
        return torch.cat([*parts, *flags], 1).reshape(rows, -1).clamp(-5, 5)
