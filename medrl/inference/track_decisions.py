"""How tracked objects decide on the detections of a frame: by rules or by a policy, and settled for all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medrl.geometry.box_motion import Motion, MotionNoise, box_of
from medrl.geometry.boxes import iou
from medrl.geometry.track_views import CANDIDATES, Frame, look
from medrl.tasks.tracking import BLOCK, DELETE, IGNORE, TrackingState


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
