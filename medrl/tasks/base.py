"""The contract of a task: pure batched functions over a small state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import torch
from torch import Tensor


class Task(ABC):
    """A problem.  Nothing of it changes after construction; all that changes is in the state.

    A state is a NamedTuple of tensors with the rows B first.  Spaces describe one row.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_steps: int
    cases: Any  # sized; holds the truth
    reward_shape: Any  # medrl.types.Reward

    @abstractmethod
    def initial(self, case: Tensor, generator: torch.Generator) -> Any:
        """States (B rows) at the start of an episode on the cases (B,)."""

    @abstractmethod
    def observe(self, state: Any) -> Tensor:
        """What the policy sees (B, ...), rendered from the state alone."""

    @abstractmethod
    def advance(self, state: Any, action: Tensor) -> Any:
        """The next states; never modifies its input."""

    @abstractmethod
    def terminated(self, state: Any) -> Tensor:
        """(B,) bool: the episode has ended by itself."""

    @abstractmethod
    def score(self, state: Any) -> Tensor:
        """(B,) agreement with the truth, higher is better; rewards are shapes over it and metrics report it."""

    def reward(self, state: Any, action: Tensor, next_state: Any) -> Tensor:
        """(B,) reward of the transitions."""
        return self.reward_shape(self, state, action, next_state)

    @abstractmethod
    def expert(self, state: Any) -> Tensor:
        """(B,) best action given the truth; for training only."""

    @abstractmethod
    def outputs(self, state: Any) -> dict[str, Any]:
        """Results in patient space, for ``medrl.data.write``."""
