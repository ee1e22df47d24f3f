"""From what tracked objects did to the boxes that are written: frame by frame, or looking back from the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.tracks import Boxes, Video
from medrl.geometry.box_motion import Motion, box_of, smooth


class Present(NamedTuple):
    """B objects after a frame of T."""

    case: Tensor  # (B,) the video of each
    names: Tensor  # (B,) int64, numbered over all videos
    mean: Tensor  # (B, 4, 2), see `Motion`
    covariance: Tensor  # (B, 4, 3)
    ahead_mean: Tensor  # (B, 4, 2): as it was predicted for the frame
    ahead_covariance: Tensor  # (B, 4, 3)
    taken: Tensor  # (B,) bool: it took a detection
    shown: Tensor  # (B,) bool
    score: Tensor  # (B,)
    hits: Tensor  # (B,) detections taken so far


def at_once(written: Sequence[Present], videos: Sequence[Video], *, confirm: int) -> list[Boxes]:
    """The boxes as they were at the end of each of T frames, of objects that take ``confirm`` detections in all."""
    together = _together(written)
    hits = torch.zeros(_count(together), dtype=torch.int64, device=together.names.device)
    hits = hits.scatter_reduce(0, together.names, together.hits.long(), "amax")
    kept = together.shown & (hits[together.names] >= confirm)
    return _boxes(together, box_of(Motion(together.mean, together.covariance)), kept, _frames(written), videos)


def looking_back(
    written: Sequence[Present], videos: Sequence[Video], *, confirm: int, fill: int, tail: int, still: bool
) -> list[Boxes]:
    """The boxes as they look from the end: smoothed (not if ``still``), gaps of up to ``fill`` frames filled.

    After an object's last detection its boxes are shown for ``tail`` frames at most, if they were then.
    """
    together, frame = _together(written), _frames(written)
    count, names = _count(together), together.names
    if count == 0:
        return at_once(written, videos, confirm=confirm)
    # (ages, objects, ...): everybody from its own first frame on, so that a long video costs what its tracks last
    first = frame.new_full((count,), len(written)).scatter_reduce(0, names, frame, "amin")
    age = frame - first[names]
    ages, place = int(age.max()) + 1, age * count + names

    def spread(value: Tensor, empty: Any = 0) -> Tensor:
        table = torch.full((ages * count, *value.shape[1:]), empty, dtype=value.dtype, device=value.device)
        return table.index_copy(0, place, value).unflatten(0, (ages, count))

    taken, alive = spread(together.taken, False), spread(torch.ones_like(together.taken), False)
    motion = Motion(spread(together.mean), spread(together.covariance))
    if not still:
        motion = smooth(motion, Motion(spread(together.ahead_mean), spread(together.ahead_covariance)), alive)
    time = torch.arange(ages, device=place.device)[:, None]
    last = torch.where(taken, time, -1).cummax(0).values
    after = torch.where(taken, time, ages).flip(0).cummin(0).values.flip(0)
    between = taken | (after - last <= fill + 1)
    shown = torch.where(after < ages, between, spread(together.shown, False) & (time - last <= tail))
    kept = (shown & (taken.sum(0) >= confirm)).flatten()[place]
    box = box_of(Motion(*(part.flatten(0, 1)[place] for part in motion)))
    return _boxes(together, box, kept, frame, videos)


def join(first: Any, second: Any) -> Any:
    """Rows of two states of one kind, in turn."""
    return type(first)(*(torch.cat([a, b.to(a.dtype)]) for a, b in zip(first, second, strict=True)))


def _together(written: Sequence[Present]) -> Present:
    return Present(*(torch.cat(parts) for parts in zip(*written, strict=True)))


def _frames(written: Sequence[Present]) -> Tensor:
    count = torch.tensor([len(present.names) for present in written], device=written[0].names.device)
    return torch.arange(len(written), device=count.device).repeat_interleave(count)


def _count(together: Present) -> int:
    return int(together.names.max()) + 1 if len(together.names) else 0


def _boxes(
    together: Present, box: Tensor, kept: Tensor, frame: Tensor, videos: Sequence[Video]
) -> list[Boxes]:
    """Those kept that touch the picture, numbered video by video in the order in which they appear."""
    case, name, place, score, mask, time = (
        value.cpu().numpy() for value in (together.case, together.names, box, together.score, kept, frame)
    )
    answers = []
    for number, video in enumerate(videos):
        inside = (place[:, 2:] > 0).all(1) & (place[:, :2] < np.array(video.size)).all(1)
        chosen = mask & inside & (case == number)
        _, numbered = np.unique(name[chosen], return_inverse=True)
        numbers = (place[chosen].astype(np.float32), score[chosen].astype(np.float32), numbered.astype(np.int64) + 1)
        answers.append(Boxes(time[chosen], *numbers))
    return answers
