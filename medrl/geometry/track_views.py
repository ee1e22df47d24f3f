"""What a tracked object sees of a frame: its prediction, the detections near it, and who else may want them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medrl.geometry.box_motion import Motion, MotionNoise, box_of, measure, surprise
from medrl.geometry.boxes import iou, iou_matrix, middle_and_size, volume
from medrl.geometry.track_foresight import NUMBERS, foresee

CANDIDATES = 3  # detections that are looked at
OTHERS = 2  # neighbours that are looked at
FAR = 10.0  # no number goes further
NOWHERE = 1e3  # standard deviations: the distance of a detection that is not there
OWN, A_CANDIDATE, AN_OTHER = 27, 15, 5  # numbers of each
FORESEEN = (CANDIDATES + 1) * NUMBERS
LENGTH = OWN + CANDIDATES * A_CANDIDATE + OTHERS * AN_OTHER + FORESEEN


class Frame(NamedTuple):
    """What B objects find in their frames: D detections and M neighbours each."""

    size: Tensor  # (B, 2) width and height of the picture
    box: Tensor  # (B, D, 4)
    score: Tensor  # (B, D)
    exists: Tensor  # (B, D) bool
    appearance: Tensor  # (B, D, A)
    known: Tensor  # (B,) bool: appearances mean something
    other: Tensor  # (B, M, 4) predictions of the neighbours
    there: Tensor  # (B, M) bool
    shared: Tensor  # (B, M, D) overlaps of neighbours and detections
    later: Tensor  # (B, L, D, 4) detections of the frames after
    later_exists: Tensor  # (B, L, D) bool


class Record(NamedTuple):
    """What an object remembers beside its motion."""

    age: Tensor  # (B,) frames since it was found
    hits: Tensor  # (B,) detections that were taken
    misses: Tensor  # (B,) frames since the last of them
    hidden: Tensor  # (B,) bool: not shown in the last frame
    score: Tensor  # (B,) mean of the taken detections
    surprise: Tensor  # (B,) mean distance of the taken detections, in standard deviations
    appearance: Tensor  # (B, A)


class View(NamedTuple):
    """An observation, and which detections its candidates are."""

    vector: Tensor  # (B, LENGTH)
    candidate: Tensor  # (B, CANDIDATES) int64, indices of detections, the likeliest first
    exists: Tensor  # (B, CANDIDATES) bool


def look(motion: Motion, noise: MotionNoise, record: Record, frame: Frame) -> View:
    """See a frame from motions (B) predicted for it."""
    box = box_of(motion)
    middle, side = middle_and_size(box)
    side = side.clamp(min=1.0)
    candidate, exists, distance = likeliest(motion, noise, frame.box, frame.exists)
    seen = _candidates(motion, box, side, record, frame, candidate, distance)
    others = _others(box, middle, side, frame)
    own = _own(motion, box, middle, side, record, frame, exists)
    here = frame.box.gather(1, candidate[..., None].expand(-1, -1, 4))
    follows = foresee(motion, noise, here, exists, frame.later, frame.later_exists)
    vector = torch.cat([own, (seen * exists[..., None]).flatten(1), others.flatten(1), follows.flatten(1)], 1)
    return View(vector.nan_to_num(0.0).clamp(-FAR, FAR), candidate, exists)


def likeliest(motion: Motion, noise: MotionNoise, box: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B, C) of the detections (B, D, 4) nearest to predictions, whether there are so many, and distances.

    Distances are in standard deviations (Mahalanobis).
    """
    wrong, deviation = surprise(Motion(*(part[:, None] for part in motion)), box, noise)
    distance = torch.where(exists, (wrong / deviation).square().sum(-1).sqrt(), NOWHERE)
    pad = max(0, CANDIDATES - distance.shape[1])
    order = torch.nn.functional.pad(distance, (0, pad), value=NOWHERE).topk(CANDIDATES, largest=False)
    return order.indices.clamp(max=distance.shape[1] - 1), order.values < NOWHERE, order.values


def _candidates(
    motion: Motion, box: Tensor, side: Tensor, record: Record, frame: Frame, candidate: Tensor, distance: Tensor
) -> Tensor:
    """(B, C, A_CANDIDATE)."""

    def chosen(values: Tensor) -> Tensor:
        index = candidate.reshape(*candidate.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    here = chosen(frame.box)  # (B, C, 4)
    theirs = frame.shared * frame.there[..., None] * frame.exists[:, None]  # (B, M, D)
    first = theirs.topk(2, dim=-1).values if theirs.shape[-1] > 1 else torch.nn.functional.pad(theirs, (0, 1))
    of_these = theirs.gather(2, candidate[:, None].expand(-1, theirs.shape[1], -1))  # (B, M, C)
    runner = torch.where(of_these >= first[..., :1], first[..., -1:], first[..., :1])  # a neighbour's without this one
    claim = of_these.amax(1)
    need = torch.where(frame.there[..., None], of_these - runner, -1.0).amax(1)
    middle, _ = middle_and_size(here)
    their_middle, their_side = middle_and_size(frame.other)
    apart = (middle[:, None] - their_middle[:, :, None]) / their_side.clamp(min=1.0)[:, :, None]
    near = torch.where(frame.there[..., None], apart.norm(dim=-1), FAR).amin(1)
    mine = iou(box[:, None], here)
    same = torch.arange(frame.box.shape[1], device=box.device) == candidate[..., None]
    double = torch.where(same | ~frame.exists[:, None], 0.0, iou_matrix(here, frame.box)).amax(-1)
    gap = (measure(here) - motion.mean[:, None, :, 0]) / torch.cat([side, torch.ones_like(side)], -1)[:, None]
    unlike = (chosen(frame.appearance) - record.appearance[:, None]).square().mean(-1).sqrt()
    known = frame.known[:, None].expand_as(unlike).float()
    parts = [
        torch.ones_like(mine), *(4 * gap).unbind(-1), mine, chosen(frame.score), claim, 2 * need, near.clamp(max=4.0),
        mine - claim, double, 10 * unlike * known, known, torch.log1p(distance),
    ]  # fmt: skip
    return torch.stack(parts, -1)


def _others(box: Tensor, middle: Tensor, side: Tensor, frame: Frame) -> Tensor:
    """(B, OTHERS, AN_OTHER) of the nearest neighbours."""
    their_middle, _ = middle_and_size(frame.other)
    apart = (their_middle - middle[:, None]) / side[:, None]
    distance = torch.where(frame.there, apart.norm(dim=-1), FAR)
    pad = max(0, OTHERS - distance.shape[1])
    order = torch.nn.functional.pad(distance, (0, pad), value=FAR).topk(OTHERS, largest=False)
    index = order.indices.clamp(max=distance.shape[1] - 1)
    lower = (frame.other[..., 3] - box[:, None, 3]) / side[:, None, 1]
    shared = iou(box[:, None], frame.other)
    parts = torch.stack([torch.ones_like(shared), *apart.unbind(-1), lower, shared], -1).clamp(-4, 4)
    values = parts.gather(1, index[..., None].expand(-1, -1, parts.shape[-1]))
    return values * (order.values < FAR)[..., None]


def _own(
    motion: Motion, box: Tensor, middle: Tensor, side: Tensor, record: Record, frame: Frame, exists: Tensor
) -> Tensor:  # fmt: skip
    """(B, OWN)."""
    height = side[:, 1:]
    low = torch.maximum(box[:, None, :2], frame.other[..., :2])
    high = torch.minimum(box[:, None, 2:], frame.other[..., 2:])
    cover = (high - low).clamp(min=0).prod(-1) / volume(box).clamp(min=1.0)[:, None] * frame.there
    nearer = frame.other[..., 3] > box[:, None, 3]
    border = torch.cat([middle / side, (frame.size - middle) / side], 1).clamp(-1, 3)
    speed = motion.mean[:, :2, 1] / height
    spread = motion.covariance[:, :2, 0].clamp(min=0).sqrt() / side
    age, hits, misses = record.age.float(), record.hits.float(), record.misses.float()
    numbers = [
        (box[:, 3] / frame.size[:, 1]), side[:, 1] / frame.size[:, 1] * 4, (side[:, 0] / side[:, 1]).log(),
        10 * speed[:, 0], 10 * speed[:, 1], spread[:, 0].add(1e-3).log() + 2, spread[:, 1].add(1e-3).log() + 2,
        torch.log1p(age), torch.log1p(hits), torch.log1p(misses), (misses == 0).float(), misses / 10,
        (hits == 1).float(), (hits == 2).float(), hits / (age + 1), record.hidden.float(), 2 * record.score - 1,
        record.surprise, (cover * nearer).amax(1), (cover * ~nearer).amax(1),
        torch.log1p(frame.there.float().sum(1)), torch.log1p(frame.exists.float().sum(1)), exists.float().sum(1),
    ]  # fmt: skip
    return torch.cat([torch.stack(numbers, 1), border], 1)
