"""Active object localisation: a box that is moved and deformed until it fits an object [Caicedo and Lazebnik 2015]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from medrl.data.box_cases import BoxCases
from medrl.geometry.boxes import crosses, from_middle_and_size, grown_by_share, iou, keep_valid, middle_and_size, moved
from medrl.geometry.crops import crop_boxes
from medrl.rewards.scores import AtStop, Gain, Sign
from medrl.tasks.base import Task
from medrl.types import Reward

HISTORY = 10  # actions that the observation shows
CONTEXT = 16 / 192  # the view is 224 pixels wide, 16 of them context on either side
FIT = 0.6  # IoU from which a trigger is right
CORNER = 0.75  # side of the corner starts, as a share of the image


class LocalisationState(NamedTuple):
    """Of B rows; 54 bytes a row in 2D with three crosses."""

    case: Tensor  # int16
    box: Tensor  # (B, 2 D) float32, pixels of the case's image
    history: Tensor  # (B, 10) int8: the last actions, latest first; -1 where there was none yet
    found: Tensor  # (B, K, 2 D) float16: boxes of objects found before, under a cross; empty ones for none
    triggered: Tensor  # bool


class LocalisationTask(Task):
    """Find an object of the class that has no cross yet, or none.

    Actions in 2D: right, left, down, up, bigger, smaller, fatter, taller, trigger; each changes the box by
    ``alpha`` of its present sides.  In volumes: both ways along x, y and z, bigger, smaller, thicker and thinner along
    each axis, trigger.  Boxes are clipped to the image and keep sides of ``least`` pixels.

    The observation (B, C + 1, *[view]) uint8 is the box with its context, averaged by area, 0 outside of the image and
    under the crosses of objects found before, which cover a third of their boxes; its last channel is no image but a
    page whose row k shows the action k steps ago as a column of 255 (in volumes, the first page of the channel).

    The score is the largest IoU with an object not found yet, 0 if there is none: then a trigger can only be wrong.  By
    default an action earns the sign of the score's change, and the trigger 3 or -3 at an IoU of 0.6.

    An episode starts at the whole image or at one of the boxes of 75 % in its corners, each as often, or, with the
    chance ``near``, at a rough box about an object; with the chance ``crossed`` some objects are found already.  A
    trigger ends it, as do 40 steps: that is the paper's restart.
    """

    def __init__(
        self, cases: BoxCases, *, view: int = 24, alpha: float = 0.2, least: float = 3.0, max_steps: int = 40,
        crosses: int = 3, near: float = 0.3, crossed: float = 0.3, reward: Reward | None = None,
    ) -> None:  # fmt: skip
        self.cases, self.view, self.alpha, self.least, self.max_steps = cases, view, alpha, least, max_steps
        self.crosses, self.near, self.crossed = crosses, near, crossed
        self.changes = (alpha * changes_of(cases.dims)).to(cases.device)  # (A - 1, 2 D)
        self.trigger = len(self.changes)
        if view < max(HISTORY, self.trigger + 1):
            raise ValueError(f"view {view} is too small for a page of {HISTORY} x {self.trigger + 1}")
        self.reward_shape = (
            Sign(Gain(per_step_length=False)) + AtStop(threshold=FIT, eta=3.0) if reward is None else reward
        )
        self.starts = starts_of(cases.dims).to(cases.device)  # (S, 2 D), shares of the image
        self.action_space = spaces.Discrete(self.trigger + 1)
        self.observation_space = spaces.Box(0, 255, (cases.channels + 1, *[view] * cases.dims), np.uint8)

    # -- the contract -------------------------------------------------------------------------------------------

    def initial(self, case: Tensor, generator: torch.Generator) -> LocalisationState:
        """Start each row on its case."""
        case, device = case.long(), self.cases.device
        count = len(case)

        def draw(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device)

        state = self.start(case, (draw() * len(self.starts)).long())
        # some of the objects were found before, roughly
        present, dims = self.cases.present[case], self.cases.dims
        objects = self.cases.boxes[case]
        chosen = present & (draw(present.shape[1]) < 0.6) & (draw(1) < self.crossed)
        middle, side = middle_and_size(objects)
        jitter = draw(present.shape[1], 2 * dims) * 2 - 1
        rough = from_middle_and_size(middle + 0.08 * jitter[..., :dims] * side, side * (1 + 0.12 * jitter[..., dims:]))
        rough = torch.where(chosen[..., None], keep_valid(rough, self.cases.size[case][:, None], self.least), 0.0)
        state = state._replace(found=self._first(rough, chosen))
        # others start near an object
        pick = (present + draw(present.shape[1])).argmax(1)
        target = objects[torch.arange(count, device=device), pick]
        middle, side = middle_and_size(target)
        shift, scale = draw(dims) * 2 - 1, torch.exp((draw(dims) * 2 - 1) * 0.7 + (draw(1) * 2 - 1) * 0.7)
        close = keep_valid(
            from_middle_and_size(middle + 0.5 * shift * side, side * scale), self.cases.size[case], self.least
        )
        nearby = (draw(1) < self.near) & present.any(1, keepdim=True)
        return state._replace(box=torch.where(nearby, close, state.box))

    def observe(self, state: LocalisationState) -> Tensor:
        """(B, C + 1, *[view]) uint8."""
        case, dims, view = state.case.long(), self.cases.dims, self.view
        window = grown_by_share(state.box, CONTEXT)
        crop = crop_boxes(self.cases.images, case, window, [view] * dims).round()
        low, side = window[:, :dims], window[:, dims:] - window[:, :dims]
        cell = (torch.arange(view, device=self.cases.device) + 0.5) / view
        hidden = crosses(low[..., None] + cell * side[..., None], state.found.float())
        hidden = (hidden if dims == 3 else hidden.mT)[:, None]  # pictures are stored as Y, X
        page = torch.zeros(len(case), *[view] * dims, device=self.cases.device)
        actions = torch.arange(view, device=self.cases.device)
        marks = (state.history[:, :, None] == actions) * 255.0
        first = page if dims == 2 else page[:, 0]
        first[:, :HISTORY] = marks
        return torch.cat([crop * ~hidden, page[:, None]], 1).to(torch.uint8)

    def advance(self, state: LocalisationState, action: Tensor) -> LocalisationState:
        """Change the box, or trigger."""
        change = self.changes[action.long().clamp(max=self.trigger - 1)]
        box = keep_valid(moved(state.box, change), self.cases.size[state.case.long()], self.least)
        box = torch.where((action == self.trigger)[:, None], state.box, box)
        history = torch.cat([action.to(torch.int8)[:, None], state.history[:, :-1]], 1)
        return state._replace(box=box, history=history, triggered=state.triggered | (action == self.trigger))

    def terminated(self, state: LocalisationState) -> Tensor:
        """Triggered."""
        return state.triggered

    def score(self, state: LocalisationState) -> Tensor:
        """Largest IoU (B,) with an object without a cross."""
        return self._best(state, state.box[:, None])[:, 0]

    def expert(self, state: LocalisationState) -> Tensor:
        """The move (B,) that gains most IoU; trigger where none gains any and the box fits by 0.6."""
        return self.action_gains(state).argmax(1)

    def outputs(self, state: LocalisationState) -> dict[str, Any]:
        """Boxes (B, 2 D) in pixels or mm of the files, and the cases' names."""
        boxes = self.cases.in_file(state.case, state.box)
        return {"box": boxes, "case": [self.cases.names[int(n)] for n in state.case]}

    # -- what agents may use beside the contract -----------------------------------------------------------------

    def start(self, case: Tensor, number: Tensor | int = 0, box: Tensor | None = None) -> LocalisationState:
        """States of the cases (B,) at the starts ``number`` (B,) (0: the whole image), or at boxes (B, 2 D)."""
        case, device, dims = case.long(), self.cases.device, self.cases.dims
        size = self.cases.size[case]
        if box is None:
            number = torch.as_tensor(number, device=device).expand(len(case))
            box = self.starts[number] * size.repeat(1, 2)
        return LocalisationState(
            case.to(torch.int16), keep_valid(box.float(), size, self.least),
            torch.full((len(case), HISTORY), -1, dtype=torch.int8, device=device),
            torch.zeros(len(case), self.crosses, 2 * dims, dtype=torch.float16, device=device),
            torch.zeros(len(case), dtype=torch.bool, device=device),
        )  # fmt: skip

    def action_gains(self, state: LocalisationState) -> Tensor:
        """IoU (B, A) that each action gains; the trigger's is 0 where the box fits by 0.6, else -0.2.

        Where no object is left every move gains 0, and the trigger alone is wrong.
        """
        best = self._best(state, torch.cat([state.box[:, None], self._after(state)], 1))
        now, after = best[:, 0], best[:, 1:]
        stop = torch.where(now >= FIT, 0.0, -0.2)[:, None]
        return torch.cat([after - now[:, None], stop], 1)

    def sample(self, count: int, generator: torch.Generator) -> LocalisationState:
        """States of supervised training, with their history: from the starts on, the expert with one third of noise."""
        device = self.cases.device
        case = torch.randint(len(self.cases), (count,), generator=generator, device=device)
        state = self.initial(case, generator)
        length = (torch.rand(count, generator=generator, device=device) ** 1.5 * 16).long()
        for step in range(15):
            chance = torch.rand(2, count, generator=generator, device=device)
            random = (chance[0] * self.trigger).long()
            best = self.action_gains(state)[:, : self.trigger].argmax(1)
            after = self.advance(state, torch.where(chance[1] < 0.33, random, best))
            on = step < length
            state = state._replace(
                box=torch.where(on[:, None], after.box, state.box),
                history=torch.where(on[:, None], after.history, state.history),
            )
        return state

    def targets(self, state: LocalisationState) -> dict[str, Tensor]:
        """What an observation teaches: ``gains`` (B, 1, 1, A), ``overlap`` (B,) in [0, 1], ``known`` (B, 1)."""
        return {
            "gains": self.action_gains(state)[:, None, None], "overlap": self.score(state),
            "known": torch.ones(len(state.case), 1, dtype=torch.bool, device=self.cases.device),
        }  # fmt: skip

    def _after(self, state: LocalisationState) -> Tensor:
        """Boxes (B, A - 1, 2 D) after each move."""
        box = moved(state.box[:, None], self.changes)
        size = self.cases.size[state.case.long()][:, None].expand(-1, self.trigger, -1)
        return keep_valid(box, size, self.least)

    def _best(self, state: LocalisationState, box: Tensor) -> Tensor:
        """Largest IoU (B, N) of boxes (B, N, 2 D) with an object that no cross lies on."""
        case = state.case.long()
        objects = self.cases.boxes[case]
        crossed = iou(objects[:, :, None], state.found.float()[:, None]).amax(2) >= 0.5
        open_ = self.cases.present[case] & ~crossed
        return (iou(box[:, :, None], objects[:, None]) * open_[:, None]).amax(2)

    def _first(self, box: Tensor, chosen: Tensor) -> Tensor:
        """The first chosen boxes (B, M, 2 D) as ``found`` (B, K, 2 D)."""
        order = chosen.float().argsort(dim=1, descending=True, stable=True)[:, : self.crosses]
        kept = box.gather(1, order[..., None].expand(-1, -1, box.shape[-1]))
        return torch.nn.functional.pad(kept, (0, 0, 0, self.crosses - kept.shape[1])).half()


def changes_of(dims: int) -> Tensor:
    """Changes (A - 1, 2 D) of the corners by each move, in units of alpha times the box's sides."""
    eye = torch.eye(dims)
    both = torch.cat([eye, eye], 1)  # along an axis
    wide = torch.cat([-eye, eye], 1)  # thicker along an axis
    whole = wide.sum(0, keepdim=True)
    shifts = torch.stack([both, -both], 1).reshape(-1, 2 * dims)
    if dims == 2:  # fatter is less high, taller is less wide
        return torch.cat([shifts, whole, -whole, -wide.flip(0)])
    return torch.cat([shifts, whole, -whole, wide, -wide])


def starts_of(dims: int) -> Tensor:
    """The whole image and boxes of 75 % in its corners (1 + 2^D, 2 D), as shares."""
    corner = torch.cartesian_prod(*[torch.tensor([0.0, 1 - CORNER])] * dims).flip(-1)
    whole = torch.cat([torch.zeros(1, dims), torch.ones(1, dims)], 1)
    return torch.cat([whole, torch.cat([corner, corner + CORNER], 1)])
