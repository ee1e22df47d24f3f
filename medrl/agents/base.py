"""The contract of an agent, and what every learner of values shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medrl.types import Decision


class Agent(nn.Module):
    """Acts, records and learns; ``state_dict()`` is the checkpoint of its networks.

    ``network`` maps the image of an observation to values.  A network with several heads or scales names them by a
    method ``action_values(output, scale) -> (B, H, A)``; any other answers (B, A).
    """

    network: nn.Module
    ready: bool = True  # whether enough was recorded to learn from
    gradient_hook: Callable[[list[nn.Parameter]], None] | None = None  # called between backward and step

    def act(self, observation: Any, memory: Any = None, explore: bool = False) -> Decision:
        """Choose actions (B,) for B observations."""
        raise TypeError(f"{type(self).__name__} does not act")

    def record(self, state: Any, action: Tensor, step: Any) -> None:
        """Keep what ``learn`` will need of one environment step; nothing by default."""

    def learn(self) -> dict[str, Tensor]:
        """One gradient update; returns scalars on the device, never synchronised here."""
        raise TypeError(f"{type(self).__name__} does not learn")

    def extra_state(self) -> dict[str, Any]:
        """Optimiser, schedules and generators, for an exact resume: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Undo ``extra_state``."""


def image_of(observation: Any) -> Tensor:
    """The tensor that the network sees."""
    return observation["image"] if isinstance(observation, dict) else observation


def every_value(network: nn.Module, output: Tensor, observation: Any) -> Tensor:
    """Action values (B, H, A) of all heads at the rows' own scales."""
    if hasattr(network, "action_values"):
        return network.action_values(output, observation["scale"] if isinstance(observation, dict) else None)
    return output if output.ndim == 3 else output[:, None]


def every_quantile(network: nn.Module, output: Tensor, observation: Any) -> Tensor:
    """Return distributions (B, H, A, N) of all heads at the rows' own scales."""
    return network.action_quantiles(output, observation["scale"])


def own_value(values: Tensor, observation: Any) -> Tensor:
    """Action values (B, A) of the head that each row follows."""
    if values.shape[1] > 1 and isinstance(observation, dict) and "head" in observation:
        return values[torch.arange(len(values), device=values.device), observation["head"]]
    return values[:, 0]


def schedule(update: int, total: int, warm_up: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to ``floor``."""
    rise = min(1.0, (update + 1) / max(1, warm_up))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, total))))
    return rise * (floor + (1 - floor) * fall)


def look(network: nn.Module, image: Tensor, targets: dict[str, Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """The network's output, and its place loss (B, L) where it votes over places and the targets are known."""
    if targets is None or not hasattr(network, "place_loss"):
        return network(image).float(), None
    output, place = network.locate(image)
    return output.float(), network.place_loss(place, targets["offset_mm"])
