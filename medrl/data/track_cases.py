"""Videos as padded tensors on one device: detections, truth, and where an ideal tracker would expect every object."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.track_phantoms import COLOURS, Phantom, render
from medrl.data.track_pictures import appearances
from medrl.data.tracks import Boxes, Video
from medrl.geometry.box_motion import Motion, MotionNoise, box_of, predict, start, update
from medrl.geometry.boxes import iou_matrix
from medrl.types import InputError

NOBODY = -1  # the owner of a false detection
SAME = 0.5  # intersection over union of a detection with its object, at least


class Clip(NamedTuple):
    """Tensors of N videos: T frames, D detections, K objects at most.  The rest is padded."""

    frames: Tensor  # (N,) int64
    size: Tensor  # (N, 2) float32, width and height
    box: Tensor  # (N, T, D, 4)
    score: Tensor  # (N, T, D)
    exists: Tensor  # (N, T, D) bool
    owner: Tensor  # (N, T, D) int64, the object of a detection or NOBODY
    appearance: Tensor  # (N, T, D, 9)
    known: Tensor  # (N,) bool
    truth: Tensor  # (N, T, K, 4)
    present: Tensor  # (N, T, K) bool


class Neighbours(NamedTuple):
    """The other tracks of N videos, M at once, as they are predicted for each of T frames."""

    box: Tensor  # (N, T, M, 4)
    there: Tensor  # (N, T, M) bool
    name: Tensor  # (N, T, M) int64: nobody is a neighbour of its own
    shared: Tensor  # (N, T, M, D) overlaps with the detections


class Company(NamedTuple):
    """What a tracker made of the videos: a learner takes the place of one of its tracks, among the others."""

    neighbours: Neighbours
    holder: Tensor  # (N, T, K) int64: the name of the track that each object belongs to after a frame, or NOBODY
    held: Tensor  # (N, T, K) bool: that track is shown where the object is
    starts: Any  # states (S rows), sorted by case
    first: Tensor  # (N,) the first start of each video
    count: Tensor  # (N,) how many there are


class TrackCases:
    """Videos with a truth.

    ``neighbours`` are the tracks that a learner sees: those of an ideal tracker, which gives every object its own
    detections and has the object's number as its name; or those of a ``company``.  ``found`` (N, K, T) lists the
    places of an object's detections in the flattened (T, D), ``found_count`` (N, K) how many there are; ``false``
    (N, F) and ``false_count`` (N,) likewise those of nobody.  Detections of a video's last frame start nothing and are
    left out.
    """

    def __init__(self, clip: Clip, *, noise: MotionNoise | None = None) -> None:
        self.clip = clip
        self.noise = MotionNoise() if noise is None else noise
        self.longest, self.objects = clip.truth.shape[1:3]
        self.company: Company | None = None
        expected, tracked = _expect(clip, self.noise)
        names = torch.arange(self.objects, device=clip.box.device).expand_as(tracked)
        self.neighbours = Neighbours(expected, tracked, names, iou_matrix(expected, clip.box))
        early = torch.arange(self.longest, device=clip.box.device)[None, :, None] < clip.frames[:, None, None] - 1
        exists = clip.exists & early
        owned = [exists & (clip.owner == k) for k in range(self.objects)]
        self.found, self.found_count = _places(torch.stack([mask.flatten(1) for mask in owned], 1))
        self.false, self.false_count = _places((exists & (clip.owner == NOBODY)).flatten(1))
        self.objects_there = self.found_count > 0

    def __len__(self) -> int:
        return len(self.clip.frames)

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.clip.box.device

    def to(self, device: torch.device | str) -> TrackCases:
        """A copy on another device."""
        return TrackCases(Clip(*(value.to(device) for value in self.clip)), noise=self.noise)

    def accompanied(self, company: Company) -> TrackCases:
        """The same videos with other tracks beside the learner's."""
        cases = copy.copy(self)
        cases.company, cases.neighbours = company, company.neighbours
        return cases

    @classmethod
    def from_phantoms(
        cls, phantoms: Sequence[Phantom], *, noise: MotionNoise | None = None, appearance: float = 0.5
    ) -> TrackCases:
        """Of procedural videos; a share of them, ``appearance``, is rendered, and its colours are known."""
        shown = [int((n + 1) * appearance) > int(n * appearance) for n in range(len(phantoms))]
        looks = [appearances(p.video, render(p)) if show else None for p, show in zip(phantoms, shown, strict=True)]
        return cls(stack_videos([p.video for p in phantoms], looks), noise=noise)

    @classmethod
    def from_videos(
        cls, videos: Sequence[Video], looks: Sequence[np.ndarray | None] | None = None, *,
        noise: MotionNoise | None = None,
    ) -> TrackCases:  # fmt: skip
        """Of videos with a truth that tells whose the detections are; InputError without one."""
        return cls(stack_videos([with_owners(video) for video in videos], looks), noise=noise)


def stack_videos(
    videos: Sequence[Video], looks: Sequence[np.ndarray | None] | None = None, *, truth: bool = True
) -> Clip:
    """Pad videos whose detections know their owners; ``looks`` are appearances (detections, 9), None where unknown.

    Without ``truth`` nothing of it is in the clip, as if nobody knew.
    """
    if not videos:
        raise InputError("no videos: expected at least one with detections and truth")
    looks = [None] * len(videos) if looks is None else looks
    longest = max(video.frames for video in videos)
    if not truth:
        videos = [replace(video, truth=None) for video in videos]
    objects = max(1, max(len(_names(video)) for video in videos))
    crowd = max(1, max(int(np.bincount(video.detections.frame).max(initial=0)) for video in videos))
    n = len(videos)
    box, place_of = np.zeros((n, longest, crowd, 4), np.float32), np.zeros((n, longest, objects, 4), np.float32)
    score, owner = np.zeros((n, longest, crowd), np.float32), np.full((n, longest, crowd), NOBODY, np.int64)
    exists, present = np.zeros((n, longest, crowd), bool), np.zeros((n, longest, objects), bool)
    look = np.zeros((n, longest, crowd, COLOURS), np.float32)
    for i, video in enumerate(videos):
        names = {name: k for k, name in enumerate(_names(video))}
        d, t = video.detections, video.truth
        place = _rank(d.frame)
        box[i, d.frame, place], score[i, d.frame, place], exists[i, d.frame, place] = d.box, d.score, True
        owner[i, d.frame, place] = [names.get(int(name), NOBODY) for name in d.identity]
        if looks[i] is not None:
            look[i, d.frame, place] = looks[i]
        if t is not None and len(t):
            k = np.array([names[int(name)] for name in t.identity])
            place_of[i, t.frame, k], present[i, t.frame, k] = t.box, True
    tensors = (
        np.array([v.frames for v in videos], np.int64), np.array([v.size for v in videos], np.float32), box, score,
        exists, owner, look, np.array([value is not None for value in looks]), place_of, present,
    )  # fmt: skip
    return Clip(*(torch.from_numpy(value) for value in tensors))


def with_owners(video: Video) -> Video:
    """The video, with each detection given to the object of its frame that it overlaps most, one to one."""
    from scipy.optimize import linear_sum_assignment

    if video.truth is None:
        raise InputError(f"{video.name}: no truth; expected gt/gt.txt beside the detections")
    identity = np.full(len(video.detections), NOBODY, np.int64)
    for frame in range(video.frames):
        mine, theirs = (np.flatnonzero(boxes.frame == frame) for boxes in (video.detections, video.truth))
        if len(mine) and len(theirs):
            boxes = (torch.from_numpy(b) for b in (video.detections.box[mine], video.truth.box[theirs]))
            shared = iou_matrix(*boxes).numpy()
            shared = np.where(shared >= SAME, shared, 0)
            for row, column in zip(*linear_sum_assignment(-shared), strict=True):
                if shared[row, column] > 0:
                    identity[mine[row]] = video.truth.identity[theirs[column]]
    d = video.detections
    return replace(video, detections=Boxes(d.frame, d.box, d.score, identity))


def _names(video: Video) -> list[int]:
    """Identities of a video's truth."""
    return [] if video.truth is None else np.unique(video.truth.identity).tolist()


def _rank(frame: np.ndarray) -> np.ndarray:
    """Number of each box within its frame, of rising frames."""
    return np.arange(len(frame)) - np.searchsorted(frame, frame, side="left")


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (..., most) of what is True on the last axis, in order, padded by 0, and how many there are (...)."""
    count = mask.sum(-1)
    most = max(1, int(count.max()))
    return mask.int().argsort(dim=-1, descending=True, stable=True)[..., :most], count


def _expect(clip: Clip, noise: MotionNoise) -> tuple[Tensor, Tensor]:
    """Predictions (N, T, K, 4) of filters that get their own detections, and from when to when there are some."""
    n, longest, objects = clip.present.shape
    number = torch.arange(objects, device=clip.box.device)
    mine = clip.exists[..., None] & (clip.owner[..., None] == number)  # (N, T, D, K)
    seen, which = mine.any(2), mine.int().argmax(2)
    box = clip.box.gather(2, which[..., None].expand(-1, -1, -1, 4))  # (N, T, K, 4)
    expected, tracked = torch.zeros_like(clip.truth), torch.zeros_like(clip.present)
    motion, alive = start(box[:, 0].clamp(min=0), noise), torch.zeros(n, objects, dtype=torch.bool, device=box.device)
    for t in range(longest):
        ahead = predict(motion, noise)
        expected[:, t], tracked[:, t] = box_of(ahead), alive & clip.present[:, t]
        fused, fresh, take = update(ahead, box[:, t], noise), start(box[:, t], noise), seen[:, t]

        def choose(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
            return torch.where(mask[..., None, None], first, second)

        motion = Motion(*(
            choose(choose(f, s, alive), a, take) for f, s, a in zip(fused, fresh, ahead, strict=True)
        ))  # fmt: skip
        alive = alive | take
    return expected, tracked
