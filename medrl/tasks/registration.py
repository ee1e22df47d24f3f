"""Registration: nudge the pose of a moving image until it lies on the fixed one, and say when it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from medrl.data.pair_cases import PairCases
from medrl.geometry.poses import Pose, after_every, from_matrices, nudges
from medrl.tasks.poses import PoseTask
from medrl.types import Reward, where

SHIFTS_MM = (16.0, 6.0, 2.0)
ARM_MM = 40.0  # a turn moves tissue at this distance as far as a shift does: half the breadth of a limb or head
NEAR_MM = 5.0  # an error that the default reward takes for success
FAR = 1e4  # no observed number comes near; learners ask for a bound
CELLS = 3  # the products of features are shown as means in CELLS^3 parts of the body


class RegistrationState(NamedTuple):
    """Of B rows; 43 bytes a row."""

    case: Tensor  # int16
    quaternion: Tensor  # (B, 4)
    log_scale: Tensor  # (B,)
    translation_mm: Tensor  # (B, 3)
    best: Tensor  # (B,) highest learned score so far in the episode
    previous: Tensor  # int16, the last action; -1 at the start
    time: Tensor  # int16, steps taken
    stopped: Tensor  # bool

    @property
    def pose(self) -> Pose:
        """moving_from_fixed, in the frames of the case."""
        return Pose(self.quaternion, self.log_scale, self.translation_mm)


class RegistrationTask(PoseTask):
    """A pair in 3D: rigid (6 parameters) or similarity (7).

    Actions: both signs of every parameter at a coarse, a medium and a fine size, and stop, the last one.  Observation
    (B, F), see `layout`: what each action would do to the learned similarity and to the mutual information, both now,
    the mean products of features in parts of the body, the last action and the clock.  The score is minus the mean
    distance (mm) of the body's lattice to where it belongs.

    An episode starts at one of the poses that a search proposed for the case (``starts`` (N, S, 4, 4)) or, with the
    chance ``perturbed`` and where there are none, at the truth moved by up to ``start_mm`` and ``start_degrees``, and
    for similarities a factor of up to ``start_scale``.
    """

    def __init__(
        self, *, cases: PairCases, scaled: bool = True, shifts_mm: Sequence[float] = SHIFTS_MM, max_steps: int = 40,
        starts: Tensor | None = None, perturbed: float = 0.3, start_mm: float = 60.0, start_degrees: float = 90.0,
        start_scale: float = 1.25, reward: Reward | None = None,
    ) -> None:  # fmt: skip
        degrees = [math.degrees(size / ARM_MM) for size in shifts_mm]
        log_scales = [size / (2.5 * ARM_MM) for size in shifts_mm] if scaled else []
        super().__init__(
            cases=cases, changes=nudges(shifts_mm=shifts_mm, turns_degrees=degrees, log_scales=log_scales),
            scaled=scaled, planar=False, max_steps=max_steps, start_mm=start_mm, start_degrees=start_degrees,
            start_scale=start_scale, reward=reward, near_mm=NEAR_MM,
        )  # fmt: skip
        self.starts, self.chance = starts, perturbed
        self.proposed = None if starts is None else Pose(*(v.to(cases.device) for v in from_matrices(starts)))
        self.cell = _cells(cases.coarse.place_mm)
        self.observation_space = gymnasium.spaces.Box(-FAR, FAR, (sum(self.layout.values()),), np.float32)

    @property
    def layout(self) -> dict[str, int]:
        """Parts of the observation, in order, and their lengths."""
        actions = self.moves + 1
        return {
            "score_gain": actions, "information_gain": actions, "now": 5, "products": CELLS**3, "previous": actions,
        }  # fmt: skip

    def initial(self, case: Tensor, generator: torch.Generator) -> RegistrationState:
        """A proposed or perturbed pose of each case."""
        pose = self.perturbed(case, generator)
        if self.proposed is not None:
            count = self.proposed.log_scale.shape[1]
            pick = torch.randint(count, case.shape, generator=generator, device=case.device)
            use = torch.rand(case.shape, generator=generator, device=case.device) >= self.chance
            pose = where(use, Pose(*(value[case.long(), pick] for value in self.proposed)), pose)
        return self.at(case, pose)

    def at(self, case: Tensor, pose: Pose) -> RegistrationState:
        """The state at the start of an episode from a pose (B,) of the cases (B,)."""
        count, device = len(case), case.device
        return RegistrationState(
            case.to(torch.int16), *pose, self.cases.look(case, pose, information=False).score,
            torch.full((count,), -1, dtype=torch.int16, device=device),
            torch.zeros(count, dtype=torch.int16, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
        )  # fmt: skip

    def observe(self, state: RegistrationState) -> Tensor:
        """(B, F) float32."""
        after = after_every(state.pose, self.changes)
        here = (value[:, None] for value in state.pose)
        seen = self.cases.look(state.case, Pose(*(torch.cat(poses, 1) for poses in zip(here, after, strict=True))))
        score, information, inside = seen.score[:, 0], seen.information[:, 0], seen.inside[:, 0]
        none = torch.zeros_like(score)[:, None]  # what stopping gains
        gains = torch.cat([
            seen.score[:, 1:] - score[:, None], none, 20 * (seen.information[:, 1:] - information[:, None]), none
        ], 1)  # fmt: skip
        clock = state.time.float() / self.max_steps
        present = torch.stack([score, score - state.best, 5 * information, inside, clock], 1)
        cell = self.cell[state.case.long()]  # (B, P, CELLS^3)
        product = self.cases.products(state.case, state.pose)
        products = (product[:, None] @ cell)[:, 0] * self.cases.scale
        actions = torch.arange(self.moves + 1, device=self.cases.device)
        last = (state.previous[:, None] == actions).float()
        return torch.cat([torch.asinh(4 * gains), present, products, last], 1)

    def advance(self, state: RegistrationState, action: Tensor) -> RegistrationState:
        """Nudge, or stop."""
        new = super().advance(state, action)
        best = torch.maximum(state.best, self.cases.look(new.case, new.pose, information=False).score)
        return new._replace(best=best, previous=action.to(torch.int16), time=state.time + 1)


def _cells(place_mm: Tensor) -> Tensor:
    """(N, P, CELLS^3): the share of each point in its cell's mean; cells split the points' box evenly."""
    low, high = place_mm.amin(1, keepdim=True), place_mm.amax(1, keepdim=True)
    part = ((place_mm - low) / (high - low).clamp(min=1e-3) * CELLS).long().clamp(max=CELLS - 1)
    index = (part * torch.tensor([CELLS * CELLS, CELLS, 1], device=place_mm.device)).sum(-1)
    member = torch.nn.functional.one_hot(index, CELLS**3).float()
    return member / member.sum(1, keepdim=True).clamp(min=1)
