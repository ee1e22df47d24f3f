"""The geometry of tracking, fitted to videos with a truth before any agent learns."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from medrl.data.track_cases import Clip
from medrl.geometry.box_motion import Motion, MotionNoise, predict, start, surprise, update

logger = logging.getLogger(__name__)


def fit_noise(clip: Clip, *, updates: int = 30, learning_rate: float = 0.2, objects: int = 200) -> MotionNoise:
    """The noises under which a filter expects each object's own detections most (maximum likelihood).

    Args:
        clip: videos whose detections know their owners.
        updates: steps of Adam on the logarithms.
        objects: that many of them at most.
    """
    box, seen = _own_detections(clip)
    keep = seen.sum(0) >= 3
    box, seen = box[:, keep][:, :objects], seen[:, keep][:, :objects]
    if box.shape[1] == 0:
        return MotionNoise()
    logs = [torch.tensor(value).log().requires_grad_(True) for value in MotionNoise()]
    optimizer = torch.optim.Adam(logs, lr=learning_rate)
    for _ in range(updates):
        loss = unlikelihood(MotionNoise(*(value.exp() for value in logs)), box, seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    fitted = MotionNoise(*(round(float(value.detach().exp()), 5) for value in logs))
    logger.info("motion of %d objects: %s", box.shape[1], fitted)
    return fitted


def unlikelihood(noise: MotionNoise, box: Tensor, seen: Tensor) -> Tensor:
    """Mean negative log-likelihood () of detections (T, O, 4) where they are ``seen`` (T, O), given those before."""
    motion, alive = start(box[0], noise), seen[0]
    total, count = box.new_zeros(()), box.new_zeros(())
    for t in range(1, len(box)):
        ahead = predict(motion, noise)
        wrong, deviation = surprise(ahead, box[t], noise)
        # a detection of something else now and then must not rule the fit
        unlikely = (torch.log1p((wrong / deviation).square() / 4) * 2.5 + deviation.log()).sum(-1)
        both = alive & seen[t]
        total, count = total + torch.where(both, unlikely, 0.0).sum(), count + both.sum()
        fused, fresh = update(ahead, box[t], noise), start(box[t], noise)

        def choose(mask: Tensor, first: Motion, second: Motion) -> Motion:
            return Motion(*(torch.where(mask[:, None, None], a, b) for a, b in zip(first, second, strict=True)))

        motion = choose(seen[t], choose(alive, fused, fresh), ahead)
        alive = alive | seen[t]
    return total / count.clamp(min=1)


def _own_detections(clip: Clip) -> tuple[Tensor, Tensor]:
    """Boxes (T, N * K, 4) of every object's detections, and whether there is one."""
    number = torch.arange(clip.present.shape[2], device=clip.box.device)
    mine = clip.exists[..., None] & (clip.owner[..., None] == number)
    box = clip.box.gather(2, mine.int().argmax(2)[..., None].expand(-1, -1, -1, 4))
    # a box where there is none keeps logarithms finite
    box = torch.where(mine.any(2)[..., None], box, torch.tensor([0.0, 0.0, 10.0, 10.0], device=box.device))
    return box.transpose(0, 1).flatten(1, 2), mine.any(2).transpose(0, 1).flatten(1, 2)
