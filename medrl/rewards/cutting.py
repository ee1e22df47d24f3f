"""Rewards of cutting agents: the band over what an action gains [Han et al. 2018], and what a frame ends with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrl.rewards.scores import Shape


def band(gain: Tensor, *, alpha: Tensor | float = 1.0, margin: float = 0.1) -> Tensor:
    """``alpha`` above the margin, ``-alpha`` below minus the margin, and a line through 0 between: 10 alpha gain.

    (A printed form, ``10 - alpha gain`` between, jumps at both margins and pays 10 for doing nothing.)
    """
    return alpha * (gain / margin).clamp(-1, 1)


class CuttingBand(Shape):
    """The band over the IoU gained: by a move against the mask before it, by a stop against the frame's start.

    The task tells which by ``gain(state, action, next_state)`` and ``stops(state, action)``, (B,) both.
    """

    def __init__(self, *, move: float = 1.0, stop: float = 3.0, margin: float = 0.1) -> None:
        self.move, self.stop, self.margin = move, stop, margin

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        alpha = torch.where(task.stops(state, action), self.stop, self.move)
        return band(task.gain(state, action, next_state), alpha=alpha, margin=self.margin)


class FrameAgreement(Shape):
    """What the mask lacks when its frame ends, IoU - 1, and 0 before: the mean J, and nothing else.

    (The band pays for what a frame gains, and so for a bad start, too.)  The frame that was given does not count.
    """

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        ends = task.stops(state, action) & (state.frame != state.given)
        return torch.where(ends, task.score(state) - 1, 0.0)
