"""What a training tells the world: its events, and means that are summed on the device and read rarely."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ignite.engine import EventEnum
from torch import Tensor

# logged as: metric of the environment
EPISODE = {"episode_return": "episode_return", "episode_length": "length", "episode_score": "score"}


class RLEvents(EventEnum):
    """Events of :class:`medrl.training.trainer.RLTrainer`, beside those of ignite and MONAI."""

    ROLLOUT_COMPLETED = "rollout_completed"  # the environment has made its steps of this iteration
    UPDATE_COMPLETED = "update_completed"  # the agent has learned once
    POOL_REFRESHED = "pool_refreshed"  # some cases were replaced, their rows and transitions dropped
    LOG_COMPLETED = "log_completed"  # ``engine.state.log`` holds fresh numbers


class Meter:
    """Means of named scalars, kept as sums on the device until ``read`` fetches all in one transfer."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], tuple[Tensor, Tensor | int]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add scalars (), each weighing the same."""
        self._add(tuple(values), torch.stack([v.detach().float() for v in values.values()]), 1)

    def add_episodes(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics (B,) of those rows whose episode ended in this environment step."""
        values = torch.stack([metrics[name].float() for name in EPISODE.values()])
        ended = metrics["ended"]
        self._add(tuple(EPISODE), torch.where(ended, values, 0.0).sum(1), ended.sum())

    def read(self) -> dict[str, float]:
        """Means since the last reading; NaN where nothing was added.  Starts anew."""
        if not self.sums:
            return {}
        vectors = [torch.cat([total, torch.as_tensor(n, device=total.device)[None]]) for total, n in self.sums.values()]
        numbers = torch.cat(vectors).tolist()
        means = {}
        for names in self.sums:
            *totals, count = (numbers.pop(0) for _ in range(len(names) + 1))
            means |= {name: total / count if count else math.nan for name, total in zip(names, totals, strict=True)}
        self.sums = {}
        return means

    def _add(self, names: tuple[str, ...], total: Tensor, count: Tensor | int) -> None:
        before, number = self.sums.get(names, (0.0, 0))
        self.sums[names] = (before + total, number + count)
