"""Association in multi-object tracking: one row an object, which takes a detection or does without [Ren et al. 2018].

Geometry is not learned by reward: a Kalman filter, fitted to the training videos, predicts and fuses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from medrl.data.track_cases import NOBODY, Clip, Company, TrackCases
from medrl.geometry.box_motion import Motion, box_of, predict, start, update
from medrl.geometry.boxes import iou
from medrl.geometry.track_views import CANDIDATES, FAR, LENGTH, Frame, Record, View, likeliest, look
from medrl.rewards.tracking import Identity
from medrl.tasks.base import Task
from medrl.types import Reward, rows

IGNORE, BLOCK, DELETE = CANDIDATES, CANDIDATES + 1, CANDIDATES + 2  # actions below IGNORE take that candidate
ACTIONS = ("update 1", "update 2", "update 3", "ignore", "block", "delete")
EMPTY = -2  # a slot without an object; NOBODY follows a false detection
MEMORY = 0.8  # of the means of what was taken


class TrackingState(NamedTuple):
    """Of B objects after their frame; 144 bytes a row."""

    case: Tensor  # int16
    slot: Tensor  # int16, whom the row follows: an object of the video, NOBODY, or EMPTY
    frame: Tensor  # int16
    mean: Tensor  # (B, 4, 2), see `Motion`
    covariance: Tensor  # (B, 4, 3)
    appearance: Tensor  # (B, 9)
    age: Tensor  # int16
    hits: Tensor  # int16
    misses: Tensor  # int16
    score: Tensor  # (B,) mean score of the detections taken
    surprise: Tensor  # (B,) mean distance of the detections taken
    shown: Tensor  # bool: the box is an answer for this frame
    deleted: Tensor  # bool
    name: Tensor  # int32: its neighbours have others

    @property
    def motion(self) -> Motion:
        """Where the object is."""
        return Motion(self.mean, self.covariance)

    @property
    def record(self) -> Record:
        """What it remembers beside."""
        return Record(
            self.age, self.hits, self.misses, ~self.shown, self.score, self.surprise, self.appearance
        )  # fmt: skip


class TrackingTask(Task):
    """Actions: update with the first, second or third likeliest detection, ignore, block and delete.

    Update fuses prediction and detection.  Ignore shows the prediction as the object's place although no detection is
    its own.  Block carries the prediction on without showing it, as behind something.  Delete ends the row.  A
    candidate that is not there is ignored.  The observation (B, F) is `look`'s; the score is the overlap of the shown
    box with the row's own object, 0 where nothing is shown.

    An episode follows an object from a detection, the first with the chance ``from_first``, or (``clutter``) a false
    detection, which is best deleted, to the end of the video.  Neighbours go where a tracker that makes no mistake
    expects them: they are part of the environment, as for independent learners.  ``group`` rows in turn share a video
    (``Environment(group_size=...)``): their slots are its objects in order, and those left over start from clutter or
    stay empty: an empty slot shows zeros and ends at its first step with reward 0.

    In a company (`medrl.data.track_cases.Company`) the neighbours are tracks that a tracker has made, with their
    mistakes.  An episode goes on from any moment of any of them, to the end of the video; the row's own object is that
    of most of its detections, or nobody; and where another track holds that object, a second box there counts as no
    overlap and is best deleted.  Rows are apart (``group`` 1).

    ``foresight`` frames ahead are looked at; ``horizon``, if it is not 0, cuts episodes short.
    """

    def __init__(
        self, *, cases: TrackCases, group: int = 1, clutter: float = 0.2, from_first: float = 0.5,
        foresight: int = 4, horizon: int = 0, reward: Reward | None = None,
    ) -> None:  # fmt: skip
        self.foresight = foresight
        self.cases, self.noise, self.group = cases, cases.noise, group
        self.clutter, self.from_first = clutter, from_first
        self.max_steps = min(horizon, cases.longest) if horizon else cases.longest
        self.reward_shape = Identity() if reward is None else reward
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = gymnasium.spaces.Box(-FAR, FAR, (LENGTH,), np.float32)

    # -- the contract -------------------------------------------------------------------------------------------

    def initial(self, case: Tensor, generator: torch.Generator) -> TrackingState:
        """Objects of the cases (B,), each at one of its detections, or in the place of a track."""
        case, cases, device = case.long(), self.cases, case.device
        if cases.company is not None:
            if self.group > 1:
                raise ValueError(f"in a company rows are apart: group must be 1, not {self.group}")
            return self._joined(cases.company, case, generator)
        chance = torch.rand(5, len(case), generator=generator, device=device)
        there = cases.objects_there[case]  # (B, K)
        if self.group > 1:
            slot = torch.arange(len(case), device=device) % self.group
            known = there.gather(1, slot.clamp(max=cases.objects - 1)[:, None])[:, 0] & (slot < cases.objects)
            slot = torch.where(known, slot, torch.where(chance[0] < self.clutter, NOBODY, EMPTY))
        else:
            rank = (chance[1] * there.sum(1)).long()  # the how many-th of those that are there
            slot = (there.cumsum(1) > rank[:, None]).int().argmax(1)
            slot = torch.where(chance[0] < self.clutter, NOBODY, torch.where(there.any(1), slot, NOBODY))
        slot = torch.where((slot == NOBODY) & (cases.false_count[case] == 0), EMPTY, slot)
        number = slot.clamp(min=0)
        pick = torch.where(chance[2] < self.from_first, 0.0, chance[3] * cases.found_count[case, number]).long()
        place = cases.found[case, number].gather(1, pick[:, None])[:, 0]
        dream = cases.false[case].gather(1, (chance[4] * cases.false_count[case]).long()[:, None])[:, 0]
        place = torch.where(slot == NOBODY, dream, place)
        crowd = cases.clip.box.shape[2]
        frame, which = torch.where(slot == EMPTY, 0, place // crowd), place % crowd
        return self.at(case, slot, frame, which)

    def at(self, case: Tensor, slot: Tensor, frame: Tensor, which: Tensor) -> TrackingState:
        """The state of objects (B,) that were just found as detections ``which`` of their frames."""
        clip, count = self.cases.clip, len(case)
        motion = start(clip.box[case, frame, which], self.noise)
        none = torch.zeros(count, dtype=torch.int16, device=case.device)
        empty = torch.zeros(count, dtype=torch.bool, device=case.device)
        return TrackingState(
            case.to(torch.int16), slot.to(torch.int16), frame.to(torch.int16), *motion,
            clip.appearance[case, frame, which], none, none + 1, none, clip.score[case, frame, which],
            torch.zeros(count, device=case.device), ~empty, empty, slot.to(torch.int32),
        )  # fmt: skip

    def observe(self, state: TrackingState) -> Tensor:
        """(B, F) float32 of the next frame; zeros of an empty slot."""
        return torch.where((state.slot == EMPTY)[:, None], 0.0, self.view(state).vector)

    def advance(self, state: TrackingState, action: Tensor) -> TrackingState:
        """Go on to the next frame."""
        frame, clip, case = self._next(state), self.cases.clip, state.case.long()
        candidate, exists, ahead = self._candidates(state, frame)
        choice = action.long().clamp(max=CANDIDATES - 1)[:, None]
        which = candidate.gather(1, choice)[:, 0]
        taken = (action < CANDIDATES) & exists.gather(1, choice)[:, 0]
        return follow(
            state, ahead, self.noise, taken=taken, box=clip.box[case, frame, which],
            score=clip.score[case, frame, which], appearance=clip.appearance[case, frame, which],
            block=action == BLOCK, delete=(action == DELETE) | (state.slot == EMPTY),
        )._replace(frame=frame.to(torch.int16))  # fmt: skip

    def terminated(self, state: TrackingState) -> Tensor:
        """Deleted, or the video is over."""
        return state.deleted | (state.frame >= self.cases.clip.frames[state.case.long()] - 1)

    def score(self, state: TrackingState) -> Tensor:
        """Overlap of the shown box with the row's own object."""
        box, present = self._truth(state, state.frame.long())
        counts = present & self.shown(state) & ~self._held(state, state.frame.long())
        return torch.where(counts, iou(box_of(state.motion), box), 0.0)

    def expert(self, state: TrackingState) -> Tensor:
        """The object's own detection; else show the prediction where it is right; else wait while the object lasts.

        What another track holds is left to it.
        """
        frame, clip, case = self._next(state), self.cases.clip, state.case.long()
        candidate, exists, ahead = self._candidates(state, frame)
        owner = clip.owner[case, frame].gather(1, candidate)
        own = exists & (owner == state.slot[:, None]) & (state.slot >= 0)[:, None]
        box, present = self._truth(state, frame)
        right = present & (iou(box_of(ahead), box) >= 0.5)
        time = torch.arange(self.cases.longest, device=case.device)
        later = clip.present[case, :, state.slot.long().clamp(min=0)] & (time >= frame[:, None])
        lasts = later.any(1) & (state.slot >= 0)
        without = torch.where(right, IGNORE, torch.where(lasts, BLOCK, DELETE))
        best = torch.where(own.any(1), own.int().argmax(1), without)
        return torch.where(self._held(state, frame), DELETE, best)

    def outputs(self, state: TrackingState) -> dict[str, Any]:
        """``box`` (B, 4) in pixels, ``frame`` (B,) and whether it is ``shown`` (B,)."""
        return {"box": box_of(state.motion), "frame": state.frame.long(), "shown": self.shown(state)}

    # -- what rewards and inference ask -----------------------------------------------------------------------------

    def shown(self, state: TrackingState) -> Tensor:
        """(B,) bool: the box is an answer for its frame."""
        return state.shown & ~state.deleted & (state.slot != EMPTY)

    def alive(self, state: TrackingState) -> Tensor:
        """(B,) bool: not deleted."""
        return ~state.deleted

    def mistaken(self, state: TrackingState, action: Tensor) -> Tensor:
        """(B,) bool: the action leaves the object's own detection, or takes another's; never in an empty slot."""
        frame, case, action = self._next(state), state.case.long(), action.long()
        candidate, exists, _ = self._candidates(state, frame)
        owner = torch.where(exists, self.cases.clip.owner[case, frame].gather(1, candidate), NOBODY)
        own = (owner == state.slot[:, None]) & ~self._held(state, frame)[:, None]
        taken = own.new_zeros(len(own), len(ACTIONS)).scatter(1, action[:, None], True)[:, :CANDIDATES]
        left = (own & ~taken).any(1) & (state.slot >= 0)
        stolen = (taken & ~own & (owner != NOBODY)).any(1)
        return (left | stolen) & (state.slot != EMPTY)

    def view(self, state: TrackingState) -> View:
        """What the rows see of their next frames."""
        case, frame, clip, beside = state.case.long(), self._next(state), self.cases.clip, self.cases.neighbours
        there = beside.there[case, frame] & (beside.name[case, frame] != state.name[:, None])
        seen = Frame(
            clip.size[case], clip.box[case, frame], clip.score[case, frame], clip.exists[case, frame],
            clip.appearance[case, frame], clip.known[case], beside.box[case, frame], there,
            beside.shared[case, frame], *later(clip, case, frame, clip.exists, self.foresight),
        )  # fmt: skip
        return look(predict(state.motion, self.noise), self.noise, state.record, seen)

    def _candidates(self, state: TrackingState, frame: Tensor) -> tuple[Tensor, Tensor, Motion]:
        """Candidates (B, C) in frames (B,), whether they exist, and the motions predicted for them."""
        clip, case, ahead = self.cases.clip, state.case.long(), predict(state.motion, self.noise)
        candidate, exists, _ = likeliest(ahead, self.noise, clip.box[case, frame], clip.exists[case, frame])
        return candidate, exists, ahead

    def _joined(self, company: Company, case: Tensor, generator: torch.Generator) -> TrackingState:
        """Tracks of a company on the cases (B,); an empty slot where it has none."""
        chance = torch.rand(len(case), generator=generator, device=case.device)
        count = company.count[case]
        which = (company.first[case] + (chance * count).long()).clamp(max=len(company.starts.case) - 1)
        state = rows(company.starts, which)
        nobody = count == 0
        return state._replace(
            case=case.to(state.case.dtype), slot=torch.where(nobody, EMPTY, state.slot).to(state.slot.dtype)
        )

    def _held(self, state: TrackingState, frame: Tensor) -> Tensor:
        """(B,) bool: another track is shown where the row's own object is in frames (B,)."""
        company, case = self.cases.company, state.case.long()
        if company is None:
            return torch.zeros_like(state.deleted)
        number = state.slot.long().clamp(min=0)
        holder = company.holder[case, frame, number]
        return (holder != NOBODY) & (holder != state.name) & company.held[case, frame, number] & (state.slot >= 0)

    def _next(self, state: TrackingState) -> Tensor:
        """(B,) the frame after a state's, or the last one."""
        return torch.minimum(state.frame.long() + 1, self.cases.clip.frames[state.case.long()] - 1)

    def _truth(self, state: TrackingState, frame: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4) boxes of the rows' own objects in frames (B,), and whether they are there."""
        case, slot = state.case.long(), state.slot.long()
        clip, number = self.cases.clip, slot.clamp(min=0)
        return clip.truth[case, frame, number], clip.present[case, frame, number] & (slot >= 0)


def later(clip: Clip, case: Tensor, frame: Tensor, exists: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Detections (B, count, D, 4) of the frames after (B,), and which there are (B, count, D)."""
    after = frame[:, None] + 1 + torch.arange(count, device=frame.device)
    within = after < clip.frames[case][:, None]
    at = after.clamp(max=clip.box.shape[1] - 1)
    return clip.box[case[:, None], at], exists[case[:, None], at] & within[..., None]


def follow(
    state: Any, ahead: Motion, noise: Any, *, taken: Tensor, box: Tensor, score: Tensor, appearance: Tensor,
    block: Tensor, delete: Tensor,
) -> Any:  # fmt: skip
    """The states (B) one frame later: those that have ``taken`` a detection (its box, score and appearance) and others.

    ``state`` has the fields of a `TrackingState`; ``ahead`` is its motion, predicted.
    """
    fused = update(ahead, box, noise)
    mean, covariance = (torch.where(taken[:, None, None], a, b) for a, b in zip(fused, ahead, strict=True))
    shift = (fused.mean - ahead.mean)[..., 0] / ahead.covariance[..., 0].clamp(min=1e-9).sqrt()
    wrong = shift.square().mean(-1).sqrt()

    def mixed(old: Tensor, new: Tensor) -> Tensor:
        mask = taken.reshape(-1, *[1] * (old.ndim - 1))
        return torch.where(mask, MEMORY * old + (1 - MEMORY) * new, old)

    return state._replace(
        mean=mean, covariance=covariance, appearance=mixed(state.appearance, appearance), age=state.age + 1,
        hits=state.hits + taken.to(state.hits.dtype), misses=torch.where(taken, 0, state.misses + 1),
        score=mixed(state.score, score), surprise=mixed(state.surprise, wrong), shown=taken | ~(block | delete),
        deleted=state.deleted | delete,
    )  # fmt: skip
