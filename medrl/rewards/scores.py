"""Shapes over a task's score: every hand-made reward of the papers is one of these, or a sum of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medrl.types import Reward


class Shape:
    """A reward that adds, scales, negates and clips like a number."""

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        """Return the (B,) rewards."""
        raise TypeError(f"{type(self).__name__} does not say how it rewards")

    def __add__(self, other: Reward) -> Shape:
        return Sum(self, other)

    def __radd__(self, other: Reward) -> Shape:
        return Sum(other, self)

    def __neg__(self) -> Shape:
        return Scaled(self, -1.0)

    def __sub__(self, other: Reward) -> Shape:
        return Sum(self, Scaled(other, -1.0))

    def __mul__(self, factor: float) -> Shape:
        return Scaled(self, factor)

    __rmul__ = __mul__

    def clip(self, low: float, high: float) -> Shape:
        """Limit the reward to [low, high]; (-1, 1) is the form of Alansary et al. 2019."""
        return Clipped(self, low, high)


class Sum(Shape):
    """The sum of rewards."""

    def __init__(self, *parts: Reward) -> None:
        self.parts = parts

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return torch.stack([part(task, state, action, next_state) for part in self.parts]).sum(0)


class Scaled(Shape):
    """A reward times a number."""

    def __init__(self, part: Reward, factor: float) -> None:
        self.part, self.factor = part, factor

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return self.factor * self.part(task, state, action, next_state)


class Clipped(Shape):
    """A reward limited to an interval."""

    def __init__(self, part: Reward, low: float, high: float) -> None:
        self.part, self.low, self.high = part, low, high

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return self.part(task, state, action, next_state).clamp(self.low, self.high)


class Gain(Shape):
    """Score gained by the action: ``score(next) - score(state)``, over the step length if the task knows one.

    For landmarks the score is minus the distance in mm, so this is the distance gained per mm walked, in [-1, 1].
    """

    def __init__(self, *, per_step_length: bool = True) -> None:
        self.per_step_length = per_step_length

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        gain = task.score(next_state) - task.score(state)
        return gain / _step_length(task, state) if self.per_step_length else gain


class SquaredGain(Shape):
    """Ghesu et al. 2016: the squared distance lost, ``score(state)^2 - score(next)^2``.

    Over the squared step length, if the task knows one.
    """

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        gain = task.score(state).square() - task.score(next_state).square()
        return gain / _step_length(task, state) ** 2


class Score(Shape):
    """The score itself, at every step."""

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return task.score(next_state)


class Progress(Shape):
    """The gain of the score; what is lost again counts ``1 + overshoot`` times, so that it pays to stop at the peak."""

    def __init__(self, overshoot: float = 1.0) -> None:
        self.overshoot = overshoot

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        gain = task.score(next_state) - task.score(state)
        return gain + self.overshoot * gain.clamp(max=0)


class Sign(Shape):
    """The sign of another reward [Caicedo and Lazebnik 2015]."""

    def __init__(self, part: Reward) -> None:
        self.part = part

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return torch.sign(self.part(task, state, action, next_state))


class Band(Shape):
    """+1 where another reward exceeds a margin, -1 where it falls below minus the margin, else 0."""

    def __init__(self, part: Reward, margin: float) -> None:
        self.part, self.margin = part, margin

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        value = self.part(task, state, action, next_state)
        return (value > self.margin).float() - (value < -self.margin).float()


class Exponential(Shape):
    """``(exp(k score) - 1) / (exp(k) - 1)`` of the next state, for scores in [0, 1] [Song et al. 2018, k = 5]."""

    def __init__(self, k: float = 5.0) -> None:
        self.k = k

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return torch.expm1(self.k * task.score(next_state)) / math.expm1(self.k)


class AtStop(Shape):
    """``+eta`` where the episode ends with a score of at least ``threshold``, ``-eta`` where it ends below."""

    def __init__(self, *, threshold: float, eta: float = 1.0) -> None:
        self.threshold, self.eta = threshold, eta

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        good = (task.score(next_state) >= self.threshold).float() * 2 - 1
        return self.eta * good * task.terminated(next_state).float()


class Terminal(Shape):
    """The score itself, where the episode ends."""

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return task.score(next_state) * task.terminated(next_state).float()


class StepCost(Shape):
    """One for every step; subtract a multiple of it."""

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return torch.ones(len(action), device=action.device)


def _step_length(task: Any, state: Any) -> Tensor | float:
    return task.step_length(state) if hasattr(task, "step_length") else 1.0
