"""Means on the device against means worked by hand."""

from __future__ import annotations

import math

import torch

from medrl.training.progress import Meter


def test_meter_averages_since_the_last_reading() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "q": torch.tensor(-2.0)})
    meter.add({"loss": torch.tensor(4.0), "q": torch.tensor(0.0)})
    assert meter.read() == {"loss": 2.5, "q": -1.0}
    assert meter.read() == {}
    meter.add({"loss": torch.tensor(7.0)})
    assert meter.read() == {"loss": 7.0}


def test_meter_counts_only_episodes_that_ended() -> None:
    meter = Meter()

    def step(ended: list[bool], total: list[float], length: list[int], score: list[float]) -> None:
        metrics = {"episode_return": total, "length": length, "score": score, "ended": ended, "active": ended}
        meter.add_episodes({name: torch.tensor(value) for name, value in metrics.items()})

    step([False, True, False], [1.0, 5.0, 9.0], [1, 4, 1], [-1.0, -3.0, math.nan])
    step([True, False, True], [2.0, 1.0, 2.0], [2, 1, 6], [-6.0, math.nan, 0.0])
    assert meter.read() == {"episode_return": 3.0, "episode_length": 4.0, "episode_score": -3.0}
    step([False] * 3, [1.0] * 3, [1] * 3, [0.0] * 3)
    assert all(math.isnan(value) for value in meter.read().values())


def test_meter_keeps_groups_apart() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)})
    meter.add({"loss": torch.tensor(3.0)})
    none = {"episode_return": 1.0, "length": 1, "score": 1.0, "ended": False}
    meter.add_episodes({name: torch.tensor([value]) for name, value in none.items()})
    read = meter.read()
    assert read["loss"] == 2.0
    assert math.isnan(read["episode_return"])
