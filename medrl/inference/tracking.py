"""Tracks of a video: frame by frame every object decides, and who wants the same detection is settled for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medrl.data.track_cases import NOBODY, Clip, stack_videos
from medrl.data.tracks import Boxes, Video
from medrl.geometry.box_motion import Motion, MotionNoise, box_of, measure, predict, start
from medrl.geometry.boxes import iou, iou_matrix
from medrl.geometry.track_views import Frame
from medrl.inference.track_answers import Present, at_once, join, looking_back
from medrl.inference.track_decisions import Choice
from medrl.tasks.tracking import TrackingState, follow, later
from medrl.types import rows


class Deciding(NamedTuple):
    """B objects before a frame, what they see there, and what they do."""

    names: Tensor  # (B,)
    state: TrackingState
    ahead: Motion
    frame: Frame
    choice: Choice


class Moment(NamedTuple):
    """One frame of all videos."""

    deciding: Deciding | None  # None where there is nobody yet
    present: Present  # after it
    born: Tensor  # (new, 3) video, frame and number of the detections that started an object


@dataclass(frozen=True)
class Tracker:
    """Follows all objects of videos at once.

    Detections with a score below ``lowest`` are not there.  One that nobody takes starts an object if its score is
    ``newest`` at least and no shown object overlaps it by ``crowded``.  An object is written once it has taken
    ``confirm`` detections, from its first frame on, in all frames in which it is shown.  With ``most`` objects at once
    no more are started.

    With ``fill`` the answer is given when the video is over: places are smoothed over all frames, gaps of up to
    ``fill`` frames between two detections are shown, and after the last one only ``tail`` frames are.  Without it, a
    box depends on what was before, but for the ``foresight``: frames ahead that a policy looks at.
    """

    decider: Any
    noise: MotionNoise
    lowest: float = 0.0
    newest: float = 0.0
    crowded: float = 0.7
    confirm: int = 2
    foresight: int = 4
    fill: int | None = None
    tail: int = 1
    most: int = 400

    def track(self, video: Video, network: nn.Module | None = None, look: np.ndarray | None = None) -> Boxes:
        """Boxes with identities from 1; ``look`` (detections, 9) are their appearances, where there are pictures."""
        return self.track_all([video], network, [look])[0]

    def track_all(
        self, videos: Sequence[Video], network: nn.Module | None = None,
        looks: Sequence[np.ndarray | None] | None = None,
    ) -> list[Boxes]:  # fmt: skip
        """The same of many videos, frame by frame side by side; none knows of another."""
        device = next(network.parameters()).device if network is not None else torch.device("cpu")
        clip = Clip(*(value.to(device) for value in stack_videos(videos, looks, truth=False)))
        written = [moment.present for moment in self.moments(clip, network)]
        if self.fill is None:
            return at_once(written, videos, confirm=self.confirm)
        still = self.decider.still
        return looking_back(written, videos, confirm=self.confirm, fill=self.fill, tail=self.tail, still=still)

    @torch.no_grad()
    def moments(self, clip: Clip, network: nn.Module | None = None) -> Iterator[Moment]:
        """Follow the objects of videos; yields what they decide, frame by frame."""
        exists = clip.exists & (clip.score >= self.lowest)
        device = exists.device
        state = _start(clip, torch.zeros(0, 3, dtype=torch.int64, device=device), self.noise)
        names, count = torch.zeros(0, dtype=torch.int64, device=device), 0
        for number in range(clip.box.shape[1]):
            lasting = clip.frames[state.case.long()] > number
            state, names = rows(state, lasting), names[lasting]
            free, deciding = exists[:, number], None
            ahead, taken = state.motion, torch.zeros_like(names, dtype=torch.bool)
            if len(names):
                ahead = predict(state.motion, self.noise)
                case = state.case.long()
                frame = _frame(clip, number, exists, ahead, state, self.foresight)
                choice = self.decider(state, ahead, frame, network)
                deciding = Deciding(names, state, ahead, frame, choice)
                taken, which = choice.which >= 0, choice.which.clamp(min=0)
                state = follow(
                    state, ahead, self.noise, taken=taken, box=clip.box[case, number, which],
                    score=clip.score[case, number, which], appearance=clip.appearance[case, number, which],
                    block=choice.block, delete=choice.delete,
                )  # fmt: skip
                if self.decider.still:
                    state = _stand(state, taken, clip.box[case, number, which])
                free = free.clone()
                free[case[taken], which[taken]] = False
            place = self._born(clip, number, free, rows(state, ~state.deleted))
            born = _start(clip, place, self.noise)
            new = torch.arange(count, count + len(place), device=device)
            count += len(place)
            here = _present(state, names, ahead, taken)
            here = join(rows(here, ~state.deleted), _present(born, new, born.motion, torch.ones_like(new) > 0))
            state = join(rows(state, ~state.deleted), born)
            order = state.case.argsort(stable=True)
            state, present = rows(state, order), rows(here, order)
            names = present.names
            yield Moment(deciding, present, place)

    def _born(self, clip: Clip, number: int, free: Tensor, state: TrackingState) -> Tensor:
        """(new, 3) video, frame and number of detections that start an object."""
        wanted = free & (clip.score[:, number] >= self.newest)
        if len(state.case):
            case = state.case.long()
            shared = iou(clip.box[case, number], box_of(state.motion)[:, None]) * state.shown[:, None]
            most = torch.zeros_like(clip.score[:, number])
            most = most.scatter_reduce(0, case[:, None].expand_as(shared), shared, "amax")
            room = torch.bincount(case, minlength=len(free)) < self.most
            wanted = wanted & (most < self.crowded) & room[:, None]
        place = wanted.nonzero()
        return torch.cat([place[:, :1], torch.full_like(place[:, :1], number), place[:, 1:]], 1)


def _frame(
    clip: Clip, number: int, exists: Tensor, ahead: Motion, state: TrackingState, foresight: int
) -> Frame:
    """The frame as each of B objects sees it: the others of its video are its neighbours."""
    case = state.case.long()
    of_video = torch.bincount(case, minlength=len(clip.frames))
    rank = torch.arange(len(case), device=case.device) - (of_video.cumsum(0) - of_video)[case]
    most = int(of_video.max())
    other = ahead.mean.new_zeros(len(clip.frames), most, 4)
    other[case, rank] = box_of(ahead)
    there = torch.zeros(len(clip.frames), most, dtype=torch.bool, device=case.device)
    there[case, rank] = state.hits >= 2
    apart = torch.arange(most, device=case.device) != rank[:, None]
    shared = iou_matrix(other, clip.box[:, number])
    return Frame(
        clip.size[case], clip.box[case, number], clip.score[case, number], exists[case, number],
        clip.appearance[case, number], clip.known[case], other[case], there[case] & apart, shared[case],
        *later(clip, case, torch.full_like(case, number), exists, foresight),
    )  # fmt: skip


def _start(clip: Clip, born: Tensor, noise: MotionNoise) -> TrackingState:
    """Objects found at detections (B, 3)."""
    video, number, which = born.unbind(1)
    none = torch.zeros(len(born), dtype=torch.int16, device=born.device)
    no = torch.zeros(len(born), dtype=torch.bool, device=born.device)
    return TrackingState(
        video.to(torch.int16), none + NOBODY, number.to(torch.int16), *start(clip.box[video, number, which], noise),
        clip.appearance[video, number, which], none, none + 1, none, clip.score[video, number, which],
        torch.zeros(len(born), device=born.device), ~no, no, torch.zeros_like(video, dtype=torch.int32),
    )  # fmt: skip


def _stand(state: TrackingState, taken: Tensor, box: Tensor) -> TrackingState:
    """Objects are where they were detected last, at rest."""
    at = torch.where(taken[:, None], measure(box), state.mean[..., 0])
    return state._replace(mean=torch.stack([at, torch.zeros_like(at)], -1))


def _present(state: TrackingState, names: Tensor, ahead: Motion, taken: Tensor) -> Present:
    return Present(
        state.case, names, state.mean, state.covariance, *ahead, taken, state.shown, state.score, state.hits
    )


def settings_of(tracker: Tracker) -> dict[str, Any]:
    """What a bundle keeps of a tracker beside its decider and its motion."""
    return {name: getattr(tracker, name) for name in SETTINGS}


SETTINGS = tuple(field.name for field in fields(Tracker) if field.name not in ("decider", "noise"))
