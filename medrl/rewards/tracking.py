"""Rewards of tracking: what a shown box is worth that lies on its own object, or does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrl.rewards.scores import Shape


class Identity(Shape):
    """``right`` for a frame in which the object is shown where it is, minus ``wrong`` where it is shown elsewhere.

    Where it is: an overlap (the score) of at least ``threshold`` with its own truth.  Their sum over an episode is the
    identity true positives less the false ones, of which IDF1 is made.  A frame in which it is carried on but not shown
    costs ``hidden``; what is deleted costs nothing any more.
    """

    def __init__(
        self, *, threshold: float = 0.5, right: float = 1.0, wrong: float = 1.0, hidden: float = 0.02
    ) -> None:
        self.threshold, self.right, self.wrong, self.hidden = threshold, right, wrong, hidden

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        good = task.score(next_state) >= self.threshold
        shown = torch.where(good, self.right, -self.wrong)
        silent = torch.where(task.alive(next_state), -self.hidden, 0.0)
        return torch.where(task.shown(next_state), shown, silent)


class Mistake(Shape):
    """One for an association that others pay for; subtract a multiple of it.

    A detection of the row's own object that is left over starts the object a second time; one that is taken from
    another object is missing there.
    """

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return task.mistaken(state, action).float()
