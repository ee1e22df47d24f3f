"""Tracks of a video: frame by frame every object decides, and who wants the same detection is settled for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medrl.data.track_cases import NOBODY, Clip, stack_videos
from medrl.data.tracks import Boxes, Video, make_boxes
from medrl.geometry.box_motion import Motion, MotionNoise, box_of, measure, predict, start
from medrl.geometry.boxes import iou, iou_matrix
from medrl.geometry.track_views import CANDIDATES, Frame, look
from medrl.tasks.tracking import BLOCK, DELETE, IGNORE, TrackingState, follow
from medrl.types import rows

MOST = 400  # objects at once in a video; no more are started


class Choice(NamedTuple):
    """What B objects do in a frame."""

    which: Tensor  # (B,) int64, the detection that is taken, -1 for none
    block: Tensor  # (B,) bool
    delete: Tensor  # (B,) bool


class Decider(Protocol):
    """How objects decide."""

    still: bool  # the prediction is the last detection; no filter

    def __call__(self, state: TrackingState, ahead: Motion, frame: Frame, network: nn.Module | None) -> Choice:
        """Choose for B objects with predicted motions; ``state.case`` is the video of each."""
        ...


@dataclass(frozen=True)
class Overlap:
    """Rules: detections go to the predictions they overlap most, in sum, if by ``overlap`` at least.

    With ``still`` this is the IoU tracker, else a tracker of the SORT type [Bewley 2016].  An object without a
    detection is shown where it is predicted for ``coast`` frames, and deleted after ``patience`` frames, or at once if
    it has fewer than ``probation`` detections.
    """

    overlap: float = 0.3
    patience: int = 5
    coast: int = 0
    probation: int = 0
    still: bool = False

    def __call__(self, state: TrackingState, ahead: Motion, frame: Frame, network: nn.Module | None) -> Choice:
        """Choose by overlap."""
        shared = iou(box_of(ahead)[:, None], frame.box) * frame.exists
        which = assign(torch.where(shared >= self.overlap, shared, 0.0), state.case)
        misses = state.misses.long() + 1
        none = which < 0
        delete = none & ((misses > self.patience) | (state.hits < self.probation))
        return Choice(which, none & (misses > self.coast), delete)


@dataclass(frozen=True)
class Policy:
    """A learned policy: its odds of taking a detection over the best it would do without are the affinities."""

    noise: MotionNoise
    still: bool = False

    def __call__(self, state: TrackingState, ahead: Motion, frame: Frame, network: nn.Module | None) -> Choice:
        """Choose by the network's logits."""
        if network is None:
            raise ValueError("a policy needs its network")
        view = look(ahead, self.noise, state.record, frame)
        logits = network(view.vector)
        logits = logits if isinstance(logits, Tensor) else logits.logits
        without, quiet = logits[:, IGNORE:].max(1)
        gain = torch.where(view.exists, logits[:, :CANDIDATES] - without[:, None], 0.0).clamp(min=0)
        table = torch.zeros(len(gain), frame.box.shape[1], device=gain.device)
        which = assign(table.scatter_reduce(1, view.candidate, gain, "amax"), state.case)
        none = which < 0
        return Choice(which, none & (quiet == BLOCK - IGNORE), none & (quiet == DELETE - IGNORE))


def assign(affinity: Tensor, video: Tensor) -> Tensor:
    """For every row of (B, D) its column in the assignment of the largest sum among the rows of its ``video`` (B,).

    Returns (B,) int64; -1 where the affinity is not above 0.  The rows of a video follow each other.
    """
    from scipy.optimize import linear_sum_assignment

    table = affinity.double().cpu().numpy()
    which = np.full(len(table), -1, np.int64)
    cuts = np.flatnonzero(np.diff(video.cpu().numpy())) + 1
    for rows_of in np.split(np.arange(len(table)), cuts):
        part = table[rows_of]
        if part.size:
            row, column = linear_sum_assignment(-part)
            good = part[row, column] > 0
            which[rows_of[row[good]]] = column[good]
    return torch.from_numpy(which).to(affinity.device)


@dataclass(frozen=True)
class Tracker:
    """Follows all objects of videos at once.

    Detections with a score below ``lowest`` are not there.  One that nobody takes starts an object if its score is
    ``newest`` at least and no shown object overlaps it by ``crowded``.  An object is written once it has taken
    ``confirm`` detections, from its first frame on, in all frames in which it is shown.
    """

    decider: Any
    noise: MotionNoise
    lowest: float = 0.0
    newest: float = 0.0
    crowded: float = 0.7
    confirm: int = 2

    def track(self, video: Video, network: nn.Module | None = None, look: np.ndarray | None = None) -> Boxes:
        """Boxes with identities from 1; ``look`` (detections, 9) are their appearances, where there are pictures."""
        return self.track_all([video], network, [look])[0]

    @torch.no_grad()
    def track_all(
        self, videos: Sequence[Video], network: nn.Module | None = None,
        looks: Sequence[np.ndarray | None] | None = None,
    ) -> list[Boxes]:  # fmt: skip
        """The same of many videos, frame by frame side by side; none knows of another."""
        device = next(network.parameters()).device if network is not None else torch.device("cpu")
        clip = Clip(*(value.to(device) for value in stack_videos(videos, looks, truth=False)))
        exists = clip.exists & (clip.score >= self.lowest)
        state = _start(clip, torch.zeros(0, 3, dtype=torch.int64, device=device), self.noise)
        names, count = torch.zeros(0, dtype=torch.int64, device=device), 0
        written = []
        for number in range(clip.box.shape[1]):
            lasting = clip.frames[state.case.long()] > number
            state, names = rows(state, lasting), names[lasting]
            free = exists[:, number]
            if len(names):
                ahead = predict(state.motion, self.noise)
                case = state.case.long()
                frame = _frame(clip, number, exists, ahead, state)
                choice = self.decider(state, ahead, frame, network)
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
                alive = ~state.deleted
                state, names = rows(state, alive), names[alive]
            born = self._born(clip, number, free, state)
            if len(born):
                state = _join(state, _start(clip, born, self.noise))
                names = torch.cat([names, count + torch.arange(len(born), device=device)])
                count += len(born)
                order = state.case.argsort(stable=True)
                state, names = rows(state, order), names[order]
            if len(names):
                now = (state.case, names, box_of(state.motion), state.score, state.shown, state.hits)
                written.append((number, *(value.cpu().numpy() for value in now)))
        return _written(written, self.confirm, videos)

    def _born(self, clip: Clip, number: int, free: Tensor, state: TrackingState) -> Tensor:
        """(new, 3) video, frame and number of detections that start an object."""
        wanted = free & (clip.score[:, number] >= self.newest)
        if len(state.case):
            case = state.case.long()
            shared = iou(clip.box[case, number], box_of(state.motion)[:, None]) * state.shown[:, None]
            most = torch.zeros_like(clip.score[:, number])
            most = most.scatter_reduce(0, case[:, None].expand_as(shared), shared, "amax")
            room = torch.bincount(case, minlength=len(free)) < MOST
            wanted = wanted & (most < self.crowded) & room[:, None]
        place = wanted.nonzero()
        return torch.cat([place[:, :1], torch.full_like(place[:, :1], number), place[:, 1:]], 1)


def _frame(clip: Clip, number: int, exists: Tensor, ahead: Motion, state: TrackingState) -> Frame:
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
    )  # fmt: skip


def _start(clip: Clip, born: Tensor, noise: MotionNoise) -> TrackingState:
    """Objects found at detections (B, 3)."""
    video, number, which = born.unbind(1)
    none = torch.zeros(len(born), dtype=torch.int16, device=born.device)
    no = torch.zeros(len(born), dtype=torch.bool, device=born.device)
    return TrackingState(
        video.to(torch.int16), none + NOBODY, number.to(torch.int16), *start(clip.box[video, number, which], noise),
        clip.appearance[video, number, which], none, none + 1, none, clip.score[video, number, which],
        torch.zeros(len(born), device=born.device), ~no, no,
    )  # fmt: skip


def _stand(state: TrackingState, taken: Tensor, box: Tensor) -> TrackingState:
    """Objects are where they were detected last, at rest."""
    at = torch.where(taken[:, None], measure(box), state.mean[..., 0])
    return state._replace(mean=torch.stack([at, torch.zeros_like(at)], -1))


def _join(first: TrackingState, second: TrackingState) -> TrackingState:
    return TrackingState(*(torch.cat([a, b.to(a.dtype)]) for a, b in zip(first, second, strict=True)))


def _written(written: list[Any], confirm: int, videos: Sequence[Video]) -> list[Boxes]:
    """Boxes of all confirmed objects, numbered video by video in the order in which they appear."""
    if not written:
        return [make_boxes([]) for _ in videos]
    frame = np.concatenate([np.full(len(part[1]), part[0]) for part in written])
    case, name, box, score, shown, hits = (np.concatenate([part[n] for part in written]) for n in range(1, 7))
    kept = shown & np.isin(name, name[hits >= confirm])
    answers = []
    for number, video in enumerate(videos):
        inside = (box[:, 2:] > 0).all(1) & (box[:, :2] < np.array(video.size)).all(1)
        mask = kept & inside & (case == number)
        _, numbered = np.unique(name[mask], return_inverse=True)
        numbers = (box[mask].astype(np.float32), score[mask].astype(np.float32), numbered.astype(np.int64) + 1)
        answers.append(Boxes(frame[mask], *numbers))
    return answers


def settings_of(tracker: Tracker) -> Mapping[str, float]:
    """What a bundle keeps of a tracker beside its network."""
    return {name: getattr(tracker, name) for name in ("lowest", "newest", "crowded", "confirm")}
