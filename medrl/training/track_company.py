"""The company of a learner that tracks: what a tracker with its present policy makes of the training videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn

from medrl.data.track_cases import NOBODY, Clip, Company, Neighbours, TrackCases
from medrl.geometry.box_motion import Motion, box_of
from medrl.geometry.boxes import iou, iou_matrix
from medrl.inference.tracking import Deciding, Moment, Tracker
from medrl.tasks.tracking import TrackingState
from medrl.types import rows

SAME = 0.5  # overlap with the object, at least
CONFIRMED = 2  # detections of a neighbour
MOST = 60  # tracks at once: a bad policy must not fill the memory


class Ledger:
    """Whose detections tracks have taken: counts (tracks, K + 1), those of nobody last."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.objects = clip, clip.present.shape[2]
        self.counts = torch.zeros(1024, self.objects + 1, dtype=torch.int32, device=clip.box.device)

    def add(self, names: Tensor, video: Tensor, frame: int, which: Tensor) -> None:
        """Tracks (B,) have taken detections (B,) of a frame of their videos."""
        while len(names) and int(names.max()) >= len(self.counts):
            self.counts = torch.cat([self.counts, torch.zeros_like(self.counts)])
        owner = self.clip.owner[video, frame, which]
        self.counts[names, torch.where(owner == NOBODY, self.objects, owner)] += 1

    def object(self, names: Tensor) -> tuple[Tensor, Tensor]:
        """The object (B,) of most of a track's detections, or NOBODY, and how many there are (B,)."""
        most, which = self.counts[names].max(1)
        return torch.where(which == self.objects, NOBODY, which), most


@torch.no_grad()
def keep_company(tracker: Tracker, network: nn.Module, cases: TrackCases) -> Company:
    """Track the videos of the cases, and write down who was where."""
    tracker, clip, ledger = replace(tracker, most=min(tracker.most, MOST)), cases.clip, Ledger(cases.clip)
    videos, longest, objects = clip.present.shape[0], clip.present.shape[1], clip.present.shape[2]
    holder = torch.full((videos, longest, objects), NOBODY, device=clip.box.device)
    held = torch.zeros_like(clip.present)
    seen, starts = [], []
    for number, moment in enumerate(tracker.moments(clip, network)):
        deciding, present = moment.deciding, moment.present
        if deciding is not None:
            own, _ = ledger.object(deciding.names)
            # before this frame: the state of the frame before
            frame = torch.full_like(own, number - 1).to(torch.int16)
            starts.append(deciding.state._replace(
                slot=own.to(torch.int16), frame=frame, name=deciding.names.to(torch.int32)
            ))  # fmt: skip
            seen.append((number, deciding))
            taken = deciding.choice.which >= 0
            video = deciding.state.case.long()
            ledger.add(deciding.names[taken], video[taken], number, deciding.choice.which[taken])
        _enter(ledger, moment, number)
        own, hits = ledger.object(present.names)
        video, there = present.case.long(), own >= 0
        place = (video * objects + own.clamp(min=0))[there]
        # of two tracks of an object, it belongs to that with more of its detections, then to the older
        rank = hits[there].double() - 1e-6 * present.names[there]
        best = torch.full((videos * objects,), -1.0, dtype=rank.dtype, device=rank.device)
        first = best.scatter_reduce(0, place, rank, "amax")[place] == rank
        box = box_of(Motion(present.mean, present.covariance))[there]
        truth, known = clip.truth[:, number].flatten(0, 1)[place], clip.present[:, number].flatten()[place]
        right = known & present.shown[there] & (iou(box, truth) >= SAME)
        entry = video[there][first], number, own[there][first]
        holder[entry], held[entry] = present.names[there][first], right[first]
    return _company(cases, holder, held, seen, starts)


class RenewCompany:
    """Gives a `TrackingTask` the company of its trainer's average policy when an epoch starts: a handler.

    A policy that has learned nothing is no company: the first epoch is without one where ``untrained`` is True.  Every
    row starts anew, in the place of one of the tracks.  Nothing needs to be saved: the average of a resumed
    training makes the same company again.
    """

    def __init__(self, *, environment: Any, tracker: Tracker, untrained: bool = False) -> None:
        self.environment, self.tracker, self.untrained = environment, tracker, untrained

    def attach(self, engine: Any) -> None:
        """Listen to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Track all videos again."""
        if self.untrained and engine.agent.update == 0:
            return
        task = self.environment.task
        task.cases = task.cases.accompanied(keep_company(self.tracker, engine.agent.average, task.cases))
        engine.drop(torch.arange(len(task.cases), device=task.cases.device))


def _enter(ledger: Ledger, moment: Moment, number: int) -> None:
    """Count the detections that started a track: their names are the last ones, in their order."""
    video, _, which = moment.born.unbind(1)
    if len(video):
        last = int(moment.present.names.max()) + 1
        names = torch.arange(last - len(video), last, device=which.device)
        ledger.add(names, video, number, which)


def _company(
    cases: TrackCases, holder: Tensor, held: Tensor, seen: list[tuple[int, Deciding]], starts: list[TrackingState]
) -> Company:
    """Tables of what was seen."""
    clip = cases.clip
    videos, longest = clip.present.shape[:2]
    ranks = []
    for _, deciding in seen:
        case = deciding.state.case.long()
        of_video = torch.bincount(case, minlength=videos)
        ranks.append(torch.arange(len(case), device=case.device) - (of_video.cumsum(0) - of_video)[case])
    most = max((int(rank.max()) + 1 for rank in ranks if len(rank)), default=1)
    box = clip.box.new_zeros(videos, longest, most, 4)
    there = torch.zeros(videos, longest, most, dtype=torch.bool, device=box.device)
    name = torch.full(there.shape, NOBODY, device=box.device)
    for (number, deciding), rank in zip(seen, ranks, strict=True):
        place = deciding.state.case.long(), number, rank
        box[place], name[place] = box_of(deciding.ahead), deciding.names
        there[place] = deciding.state.hits >= CONFIRMED
    together = TrackingState(*(torch.cat(parts) for parts in zip(*starts, strict=True)))
    together = rows(together, together.case.argsort(stable=True))
    count = torch.bincount(together.case.long(), minlength=videos)
    return Company(
        Neighbours(box, there, name, iou_matrix(box, clip.box)), holder, held, together, count.cumsum(0) - count, count
    )
