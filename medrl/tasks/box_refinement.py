"""Box refinement between frames: nudge an object's last box until it fits again [Yun 2017, Jiang 2019].

Jiang et al. give nine actions and a terminal reward; step length, number of actions and the whole-clip reward are
ADNet's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from medrl.data.frame_cases import FrameCases
from medrl.geometry.boxes import grown, iou, middle_and_size
from medrl.rewards.scores import AtStop
from medrl.tasks.base import Task
from medrl.types import Reward

ACTIONS = ("right", "left", "up", "down", "larger", "smaller", "fatter", "taller", "stop")
MOVES = torch.tensor(
    [
        [1, 0, 1, 0], [-1, 0, -1, 0], [0, -1, 0, -1], [0, 1, 0, 1],
        [-0.5, -0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5],
    ]
)  # fmt: skip
STOP = len(MOVES)
HISTORY = 10
THINNEST = 4.0  # pixels; a side never gets shorter


class RefinementState(NamedTuple):
    """Of B boxes; 69 bytes a row."""

    case: Tensor  # int16
    slot: Tensor  # int16, the object
    frame: Tensor  # int16
    left: Tensor  # int16, frames to go, this one included; 0 when over
    used: Tensor  # int16, actions in this frame
    last: Tensor  # (B, 4), the box in the frame before
    box: Tensor  # (B, 4)
    history: Tensor  # (B, 10) int8, actions, the latest first; -1 before
    source: Tensor  # int16, the frame of the template
    template: Tensor  # (B, 4), where the object was known to be in it


class BoxRefinementTask(Task):
    """Four moves by ``step`` of the box's sides (a pixel at least), larger, smaller, fatter, taller, and stop.

    Observation: ``image`` (6, size, size), the box of the frame before and the present one with ``margin`` of their
    sides around, and ``vector``, the last ten actions.  With ``template`` the first view is of the object as it was
    last known for sure, when it was given or detected, so that small errors of every frame need not add up.

    A frame ends by stop or after ``most`` actions; an episode has ``frames`` frames, 1 (Jiang et al.) or a clip (ADNet:
    10), which starts from the true box of the frame before.  The score is the overlap with the truth in the present
    frame; the reward +1 if the last overlap is above 0.7 and -1 otherwise, which with several frames is ADNet's label
    of a whole clip.
    """

    def __init__(
        self, *, cases: FrameCases, frames: int = 1, step: float = 0.03, most: int = 20, size: int = 24,
        margin: float = 0.5, template: bool = False, shaken: float = 0.0, apart: float = 0.0,
        reward: Reward | None = None,
    ) -> None:  # fmt: skip
        if not 1 <= frames < cases.length:
            raise ValueError(f"frames {frames} must be 1 to {cases.length - 1}, what the clips have after their first")
        self.cases, self.frames, self.step, self.most = cases, frames, step, most
        self.size, self.margin, self.shaken, self.apart = size, margin, shaken, apart
        self.template, self.max_steps = template, frames * most
        self.reward_shape = AtStop(threshold=0.7) if reward is None else reward
        self.moves = MOVES.to(cases.device)
        self.action_space = spaces.Discrete(len(ACTIONS))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (6, size, size), np.uint8),
                "vector": spaces.Box(0, 1, (HISTORY * len(ACTIONS),), np.float32),
            }
        )

    def initial(self, case: Tensor, generator: torch.Generator) -> RefinementState:
        """An object of each clip (B,), at its box of a random frame, ``shaken`` (a share of its sides), in the next.

        There the box is shaken once more, by ``apart``, as a guess of where the object went is; the template is of any
        frame before, shaken half as much.
        """
        case, device, count = case.long(), case.device, len(case)
        chance = torch.rand(2, count, generator=generator, device=device)
        slot = (chance[0] * self.cases.count[case]).long()
        frame = (chance[1] * (self.cases.length - self.frames)).long()

        def about(box: Tensor, shake: float) -> Tensor:
            if shake == 0:
                return box
            side = middle_and_size(box)[1].repeat(1, 2)
            return box + shake * torch.randn(count, 4, generator=generator, device=device) * side

        last = about(self.cases.truth[case, frame, slot], self.shaken)
        box = about(last, self.apart)
        source, template = frame, last
        if self.template:
            source = (torch.rand(count, generator=generator, device=device) * (frame + 1)).long()
            template = about(self.cases.truth[case, source, slot], self.shaken / 2)
        return self.given(case, slot, frame + 1, last, box, source, template)

    def given(
        self, case: Tensor, slot: Tensor, frame: Tensor, last: Tensor, box: Tensor, source: Tensor, template: Tensor
    ) -> RefinementState:
        """Objects (B,) with their boxes (B, 4) of the frame before, what to start from in ``frame``, and templates."""
        case, slot, frame, source = (value.to(torch.int16) for value in (case, slot, frame, source))
        zero = torch.zeros_like(case)
        history = torch.full((len(case), HISTORY), -1, dtype=torch.int8, device=case.device)
        return RefinementState(case, slot, frame, zero + self.frames, zero, last, box, history, source, template)

    def observe(self, state: RefinementState) -> dict[str, Tensor]:
        """What the boxes hold, and what was done."""
        case, frame = state.case.long(), state.frame.long()
        crops = []
        before = (state.source.long(), state.template) if self.template else (frame - 1, state.last)
        for when, box in (before, (frame, state.box)):
            _, side = middle_and_size(box)
            crops.append(self.cases.crop(case, when, grown(box, self.margin * side), self.size))
        done = state.history[..., None] == torch.arange(len(ACTIONS), device=self.cases.device)
        return {"image": torch.cat(crops, 1), "vector": done.flatten(1).float()}

    def advance(self, state: RefinementState, action: Tensor) -> RefinementState:
        """Nudge; or go on to the next frame."""
        over = state.left == 0
        move = (action < STOP) & ~over
        box = torch.where(move[:, None], self._nudged(state.box, action.long().clamp(max=STOP - 1)), state.box)
        used = state.used + 1
        done = ((action == STOP) | (used >= self.most)) & ~over
        left = state.left - done.to(state.left.dtype)
        onward = done & (left > 0)
        history = torch.cat([action.to(torch.int8)[:, None], state.history[:, :-1]], 1)
        return state._replace(
            frame=state.frame + onward.to(state.frame.dtype), left=left, used=torch.where(onward, 0, used), box=box,
            last=torch.where(onward[:, None], box, state.last), history=history,
        )  # fmt: skip

    def terminated(self, state: RefinementState) -> Tensor:
        """No frame is left."""
        return state.left == 0

    def score(self, state: RefinementState) -> Tensor:
        """Overlap with the truth in the present frame."""
        return iou(state.box, self._truth(state))

    def action_gains(self, state: RefinementState) -> Tensor:
        """(B, 9) by how much each action raises the overlap; stopping gains nothing."""
        count = len(state.case)
        every = torch.arange(STOP, device=self.cases.device).repeat(count)
        box = self._nudged(state.box.repeat_interleave(STOP, 0), every).unflatten(0, (count, STOP))
        then = iou(box, self._truth(state)[:, None])
        return torch.nn.functional.pad(then - self.score(state)[:, None], (0, 1))

    def expert(self, state: RefinementState) -> Tensor:
        """The nudge that raises the overlap most, or stop where none does."""
        best, action = self.action_gains(state)[:, :STOP].max(1)
        return torch.where(best > 1e-6, action, STOP)

    def outputs(self, state: RefinementState) -> dict[str, Any]:
        """``box`` (B, 4) in pixels."""
        return {"box": state.box}

    def _truth(self, state: RefinementState) -> Tensor:
        return self.cases.truth[state.case.long(), state.frame.long(), state.slot.long()]

    def _nudged(self, box: Tensor, action: Tensor) -> Tensor:
        """Boxes (B, 4) after moves (B,); one that would get thinner than 4 pixels stays."""
        _, side = middle_and_size(box)
        length = (self.step * side).clamp(min=1.0).repeat(1, 2)
        new = box + self.moves[action] * length
        thin = middle_and_size(new)[1].amin(1) < THINNEST
        return torch.where(thin[:, None], box, new)
