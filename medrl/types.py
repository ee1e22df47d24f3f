"""Records that every layer exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class InputError(ValueError):
    """A wrong input, told in one line: what, where, what was expected, what to do.  Never holds a patient tag."""


class Step(NamedTuple):
    """What an environment returns for B rows.

    ``final_state`` is the true successor of every row, also of those that were reset; ``observation`` is what the
    policy sees next, after any reset.
    """

    observation: Any
    reward: Tensor  # (B,) float32
    terminated: Tensor  # (B,) bool: the episode ended by itself
    truncated: Tensor  # (B,) bool: the clock ran out; bootstrap from final_state
    final_state: Any
    metrics: dict[str, Tensor]


class Decision(NamedTuple):
    """What an agent answers: ``action`` (B,), or (B, H) of H choices, the next memory, and ``value`` (B,)."""

    action: Tensor
    memory: Any = None
    value: Tensor | None = None


class Reward(Protocol):
    """A written or learned reward over one transition; every reward of the package has this signature."""

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        """Return the (B,) rewards of the transitions."""
        ...


FOUND, MISSING, NOT_CONVERGED = "found", "missing", "not converged"


@dataclass(frozen=True)
class Landmark:
    """One answer of a landmark agent, in RAS millimetres."""

    label: str
    position_mm: tuple[float, float, float]
    status: str = FOUND  # FOUND, MISSING (outside the field of view) or NOT_CONVERGED
    uncertainty_mm: float = 0.0
    presence: float = 1.0  # probability that the point lies inside the field of view
    steps: int = 0
    path_mm: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32), compare=False)  # (T, 3)


@dataclass(frozen=True)
class Detection:
    """One answer of a localisation agent: a box (2 D,), low corner and then high corner, x first.

    In pixels of the picture's file, where pixel i covers [i, i + 1), or in RAS mm of the volume.
    """

    box: tuple[float, ...]
    score: float  # in [0, 1]: the chance that it fits an object by an IoU of 0.5
    steps: int = 0  # of the walk that found it
    path: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32), compare=False)  # (T, 2 D)


CONVERGED = "converged"


@dataclass(frozen=True)
class Registration:
    """The answer of a registration agent; all matrices map fixed RAS mm to moving RAS mm."""

    moving_from_fixed: Tensor  # (4, 4) float64
    confidence: float  # in [0, 1]: the chance that the error is small
    status: str = CONVERGED  # CONVERGED or NOT_CONVERGED
    reason: str = ""  # why it did not converge, in one line
    path: Tensor | None = field(default=None, compare=False)  # (T, 4, 4): from the winning start to the answer
    polish_mm: float = 0.0  # mean distance that the polish moved the agent's answer
    evidence: Mapping[str, float] = field(default_factory=dict, compare=False)  # what the confidence is made of

    @property
    def scale(self) -> float:
        """Size in the moving image over size in the fixed one."""
        return float(torch.linalg.det(self.moving_from_fixed[:3, :3]).abs()) ** (1 / 3)


def rows(state: Any, index: Tensor) -> Any:
    """Select rows of a state (a NamedTuple of tensors with B first)."""
    return type(state)(*(value[index] for value in state))


def where(mask: Tensor, first: Any, second: Any) -> Any:
    """Row-wise choice between two states of equal shape; ``mask`` is (B,) bool."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return type(first)(*(choose(a, b) for a, b in zip(first, second, strict=True)))
