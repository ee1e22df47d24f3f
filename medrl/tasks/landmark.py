"""Walk through scales to a 3D landmark [Ghesu 2019, Alansary 2019, Vlontzos 2019]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from medrl.data.cases import Cases
from medrl.rewards.scores import Gain
from medrl.tasks.base import Task
from medrl.types import Reward

MOVES = torch.tensor(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [0, 0, 0]], dtype=torch.float32
)
STEPS = (4.0, 1.5, 0.5)  # default step lengths, in voxels of the finest grid
NEAR = (1.25, 4.0, 12.5)  # default widths of the starts round a landmark, in voxels
SETTLE = 6  # the seventh action: go on with the next finer step, and from the finest end the walk


class LandmarkState(NamedTuple):
    """B walkers; 18 bytes a row without history."""

    case: Tensor  # (B,) int16
    head: Tensor  # (B,) int16: the landmark this walker looks for
    position: Tensor  # (B, 3) float32, mm from the centre of the case's grid
    scale: Tensor  # (B,) int8, 0 is the coarsest
    settled: Tensor  # (B,) bool
    history: Tensor  # (B, H, 3) float16, mm from the present place to the last ones, latest first


class LandmarkTask(Task):
    """Six moves of ``step_mm[scale]`` and settle; the score is minus the distance in mm.

    ``observation`` is "concentric" (crops at all levels around the place) or "frames" (the crops at the state's own
    level along the last ``frames`` places).  With ``settle=False`` there are six actions, and a walker that comes back
    to one of its last four places goes on with the next finer step.  A walker ends when it settles at the finest step
    or has left the grid by ``leave_mm``.  Starts: ``start`` "near" (Gaussian of three widths round the landmark),
    "anywhere" (uniform in the grid) or "mixed".
    """

    def __init__(
        self, cases: Cases, *, size: int = 17, step_mm: Sequence[float] | None = None, max_steps: int = 60,
        reward: Reward | None = None, observation: str = "concentric", frames: int = 1, settle: bool = True,
        start: str = "mixed", near_mm: Sequence[float] | None = None,
        near_share: Sequence[float] = (0.5, 0.3, 0.2), leave_mm: float | None = None,
    ) -> None:  # fmt: skip
        if observation not in ("concentric", "frames") or start not in ("near", "anywhere", "mixed"):
            raise ValueError(f"unknown observation {observation!r} or start {start!r}")
        spacing_mm = cases.pyramid.spacing_mm
        step_mm = [n * spacing_mm for n in STEPS] if step_mm is None else step_mm
        near_mm = [n * spacing_mm for n in NEAR] if near_mm is None else near_mm
        if list(step_mm) != sorted(step_mm, reverse=True):
            raise ValueError("step_mm must go from coarse to fine")
        levels = len(cases.pyramid.strides)
        if observation == "frames" and len(step_mm) > levels:
            raise ValueError("frames need a level for every step")
        self.cases, self.size, self.max_steps, self.observation = cases, size, max_steps, observation
        self.step_mm = torch.tensor(list(step_mm), dtype=torch.float32, device=cases.device)
        self.reward_shape = Gain(per_step_length=False) if reward is None else reward
        self.frames, self.settle, self.start = frames, settle, start
        self.near_mm = torch.tensor(list(near_mm), device=cases.device)
        share = torch.tensor(list(near_share), device=cases.device)
        self.near_limit = (share.cumsum(0) / share.sum())[:-1]  # a uniform number falls into one share
        self.leave_mm = 5 * spacing_mm if leave_mm is None else leave_mm
        self.history = max(frames - 1, 0 if settle else 4)
        self.moves = MOVES.to(cases.device)
        self.half_size_mm = cases.pyramid.half_size_mm().float()
        channels = levels if observation == "concentric" else frames
        self.action_space = spaces.Discrete(SETTLE + 1 if settle else SETTLE)
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (channels, size, size, size), np.uint8),
                "scale": spaces.Discrete(len(self.step_mm)),
                "head": spaces.Discrete(len(cases.labels)),
            }
        )

    # -- the contract -------------------------------------------------------------------------------------------

    def initial(self, case: Tensor, generator: torch.Generator) -> LandmarkState:
        """Start each row on its case, for a random known landmark, at the coarsest step."""
        case = case.long()
        head = self._known_head(case, generator)
        near = self._near(case, head, generator)
        half = self.half_size_mm[case]
        near = near.clamp(-half, half)  # beside a landmark beyond the field of view, but not beyond it oneself
        anywhere = (2 * self._uniform(case, generator) - 1) * half
        choice = {"near": 0.0, "mixed": 0.5, "anywhere": 1.0}[self.start]
        far = torch.rand(len(case), 1, generator=generator, device=self.cases.device) < choice
        return self.state(case, head, torch.where(far, anywhere, near))

    def observe(self, state: LandmarkState) -> dict[str, Tensor]:
        """Crops (B, C, n, n, n) uint8 with 0 outside the volume, the scale (B,) and the landmark (B,)."""
        if self.observation == "concentric":
            image = self.cases.pyramid.crop(state.case, state.position, self.size)
        else:
            places = torch.cat([state.position[:, None], state.position[:, None] + state.history.float()], 1)
            image = torch.cat([self._own_level(state, places[:, n]) for n in range(self.frames)], 1)
        return {"image": image, "scale": state.scale.long(), "head": state.head.long()}

    def advance(self, state: LandmarkState, action: Tensor) -> LandmarkState:
        """Move, or settle into the next finer step."""
        action = action.long()
        move = self.moves[action] * self.step_length(state)[:, None]
        position = state.position + move
        history = state.history
        finer = action == SETTLE
        if self.history:
            past = torch.cat([torch.zeros_like(history[:, :1]), history], 1) - move.to(history.dtype)[:, None]
            history = past[:, : self.history]
            if not self.settle:
                # places not visited yet are marked by infinity
                finer = (past[:, 1:].float().abs().amax(-1) < 0.01).any(1)
        last = len(self.step_mm) - 1
        settled = state.settled | (finer & (state.scale == last))
        scale = torch.where(finer, (state.scale + 1).clamp(max=last), state.scale).to(torch.int8)
        if self.history and not self.settle:
            history = torch.where(finer[:, None, None], torch.inf, history)
        return LandmarkState(state.case, state.head, position, scale, settled, history)

    def terminated(self, state: LandmarkState) -> Tensor:
        """Settled at the finest step, or left the grid by more than ``leave_mm``."""
        return state.settled | self.left(state)

    def score(self, state: LandmarkState) -> Tensor:
        """Minus the distance (B,) to the row's landmark in mm; 0 where the truth is unknown."""
        case, head = state.case.long(), state.head.long()
        distance = (self.cases.points_mm[case, head] - state.position).norm(dim=-1)
        return torch.where(self.cases.known[case, head], -distance, 0.0)

    def expert(self, state: LandmarkState) -> Tensor:
        """The move (B,) that gains most distance; settle, if the task has it, where no move of this step gains any."""
        gains = self.gains(self.cases.points_mm[state.case.long(), state.head.long()] - state.position)
        gain, move = gains[torch.arange(len(gains), device=gains.device), state.scale.long(), :SETTLE].max(-1)
        return torch.where(gain > 0, move, SETTLE) if self.settle else move

    def outputs(self, state: LandmarkState) -> dict[str, Any]:
        """Places (B, 3) in RAS mm with their case and label names."""
        ras = [self.cases.to_ras(int(c), p) for c, p in zip(state.case, state.position.cpu(), strict=True)]
        return {
            "position_ras_mm": torch.stack(ras),
            "case": [self.cases.names[int(c)] for c in state.case],
            "label": [self.cases.labels[int(h)] for h in state.head],
        }

    # -- what agents may use beside the contract -----------------------------------------------------------------

    def state(self, case: Tensor, head: Tensor, position: Tensor, scale: Tensor | int = 0) -> LandmarkState:
        """A fresh state (B rows) at positions (B, 3) in mm."""
        rows, device = len(case), self.cases.device
        unvisited = 0.0 if self.settle else torch.inf
        history = torch.full((rows, self.history, 3), unvisited, dtype=torch.float16, device=device)
        if isinstance(scale, int):
            scale = torch.full((rows,), scale, device=device)
        settled = torch.zeros(rows, dtype=torch.bool, device=device)
        return LandmarkState(
            case.to(torch.int16), head.to(torch.int16), position.float(), scale.to(torch.int8), settled, history
        )

    def sample(self, count: int, generator: torch.Generator) -> LandmarkState:
        """States of supervised training: a random known landmark, near starts, a random scale."""
        case = torch.randint(len(self.cases), (count,), generator=generator, device=self.cases.device)
        head = self._known_head(case, generator)
        scale = torch.randint(len(self.step_mm), (count,), generator=generator, device=self.cases.device)
        return self.state(case, head, self._near(case, head, generator), scale)

    def step_length(self, state: LandmarkState) -> Tensor:
        """Length (B,) in mm of a move at the row's scale."""
        return self.step_mm[state.scale.long()]

    def left(self, state: LandmarkState) -> Tensor:
        """(B,) bool: outside the grid by more than ``leave_mm``."""
        return (state.position.abs() > self.half_size_mm[state.case.long()] + self.leave_mm).any(1)

    def gains(self, offset_mm: Tensor) -> Tensor:
        """Distance gained (..., scales, 7) by every action at every scale, over the step length; offset (..., 3)."""
        step = self.step_mm[:, None, None] * self.moves  # (scales, 7, 3)
        after = (offset_mm[..., None, None, :] - step).norm(dim=-1)
        return (offset_mm.norm(dim=-1)[..., None, None] - after) / self.step_mm[:, None]

    def each_head(self, state: LandmarkState) -> LandmarkState:
        """The same walkers looking for every landmark in turn: B * L rows, landmarks of a row together."""
        heads = len(self.cases.labels)
        out = LandmarkState(*(x.repeat_interleave(heads, 0) for x in state))
        every = torch.arange(heads, dtype=torch.int16, device=state.case.device).repeat(len(state.case))
        return out._replace(head=every)

    def targets(self, state: LandmarkState) -> dict[str, Tensor]:
        """What one crop teaches of all landmarks: offset from the crop's centre, one-step gains, presence."""
        case = state.case.long()
        voxel = self.cases.pyramid.nearest_voxel(case, state.position)
        offset = self.cases.points_mm[case] - self.cases.pyramid.voxel_position(case, voxel)[:, None]
        return {
            "offset_mm": offset,
            "gains": self.gains(self.cases.points_mm[case] - state.position[:, None]),
            "present": self.cases.present[case],
            "known": self.cases.known[case],
        }

    def _uniform(self, case: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(len(case), 3, generator=generator, device=self.cases.device)

    def _known_head(self, case: Tensor, generator: torch.Generator) -> Tensor:
        """A random landmark of each case that the truth knows; a case without any still walks, for no reward."""
        known = self.cases.known[case]
        return (known + torch.rand(known.shape, generator=generator, device=self.cases.device)).argmax(1)

    def _near(self, case: Tensor, head: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(case), 1, generator=generator, device=self.cases.device)
        width = self.near_mm[(share >= self.near_limit).sum(1)]
        noise = torch.randn(len(case), 3, generator=generator, device=self.cases.device)
        return self.cases.points_mm[case, head] + width[:, None] * noise

    def _own_level(self, state: LandmarkState, place: Tensor) -> Tensor:
        place = torch.where(place.isfinite().all(-1, keepdim=True), place, state.position)
        crops = self.cases.pyramid.crop(state.case, place, self.size)
        level = len(self.cases.pyramid.strides) - 1 - state.scale.long()
        return crops[torch.arange(len(crops), device=crops.device), level][:, None]
