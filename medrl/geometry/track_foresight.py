"""What would follow if an object took a detection: its way through the frames after, by the nearest detections."""

from __future__ import annotations

import torch
from torch import Tensor

from medrl.geometry.box_motion import Motion, MotionNoise, predict, surprise, update

GATE = 5.0  # standard deviations in which a chain goes on
NUMBERS = 3  # of each choice


def foresee(
    motion: Motion, noise: MotionNoise, box: Tensor, exists: Tensor, later: Tensor, later_exists: Tensor
) -> Tensor:
    """Follow the chains that begin with each of C detections, and with none.

    A chain takes the nearest detection of each frame, if it lies within ``GATE``, and fuses it.

    Args:
        motion: B objects as predicted for this frame.
        noise: of the filter.
        box: the detections (B, C, 4) that may be taken now, which there are by ``exists`` (B, C).
        later: the detections (B, L, D, 4) of the L frames after, which there are by ``later_exists`` (B, L, D).

    Returns:
        (B, C + 1, 3), the last without a detection: the share of the frames that go on, how far their detections lie
        in the mean (in standard deviations, those that fail by ``GATE``; of frames with any), and how much the velocity
        has changed at the end, in twentieths of a height a frame; zeros for detections that are not there.
    """
    count = box.shape[1] + 1
    ahead = Motion(*(part[:, None].expand(-1, count, *part.shape[1:]) for part in motion))
    fused = update(Motion(*(part[:, :-1] for part in ahead)), box, noise)
    chain = Motion(*(torch.cat([new, old[:, -1:]], 1) for new, old in zip(fused, ahead, strict=True)))
    first = chain.mean[..., :2, 1]
    found = torch.zeros_like(chain.mean[..., 0, 0])
    wrong, frames = torch.zeros_like(found), torch.zeros_like(found[:, :1])
    for step in range(later.shape[1]):
        chain = predict(chain, noise)
        there = later_exists[:, step]
        error, deviation = surprise(
            Motion(*(part[:, :, None] for part in chain)), later[:, None, step], noise
        )  # (B, C + 1, D, 4)
        distance = (error / deviation).square().sum(-1).sqrt().masked_fill(~there[:, None], GATE)
        nearest, which = distance.clamp(max=GATE).min(-1)
        taken = nearest < GATE
        seen = later[:, step].gather(1, which[..., None].expand(-1, -1, 4))
        new = update(chain, seen, noise)
        chain = Motion(*(torch.where(taken[..., None, None], a, b) for a, b in zip(new, chain, strict=True)))
        any_there = there.any(1, keepdim=True).float()
        found, wrong, frames = found + taken, wrong + nearest * any_there, frames + any_there
    turn = (chain.mean[..., :2, 1] - first).norm(dim=-1) / motion.mean[:, None, 3, 0].exp().clamp(min=1)
    frames = frames.clamp(min=1)
    numbers = torch.stack([found / frames, wrong / frames, 20 * turn], -1)
    known = torch.cat([exists, torch.ones_like(exists[:, :1])], 1) & later_exists.flatten(1).any(1, keepdim=True)
    return torch.where(known[..., None], numbers, 0.0)
