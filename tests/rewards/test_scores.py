"""Rewards against the papers' formulas, worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from probes import small_landmark_task

from medrl.rewards.scores import (
    AtStop,
    Band,
    Exponential,
    Gain,
    Scaled,
    Sign,
    SquaredGain,
    StepCost,
    Sum,
    Terminal,
)  # fmt: skip

ACTION = torch.zeros(4, dtype=torch.int64)


def scored(*, step_mm: list[float] | None = None, ends: list[bool] | None = None) -> SimpleNamespace:
    """A task whose states are their own scores."""
    task = SimpleNamespace(score=lambda state: state, terminated=lambda state: torch.tensor(ends or [False] * 4))
    if step_mm is not None:
        task.step_length = lambda state: torch.tensor(step_mm)
    return task


def reward(shape, before: list[float], after: list[float], **task) -> list[float]:
    return shape(scored(**task), torch.tensor(before), ACTION[: len(before)], torch.tensor(after)).tolist()


def test_gain_is_distance_gained_per_step_length():
    # 10 mm away, a step of 3 mm straight towards it, straight away from it, and across: sqrt(109) mm
    before, after = [-10.0, -10.0, -10.0], [-7.0, -13.0, -math.sqrt(109)]
    assert reward(Gain(), before, after, step_mm=[3.0] * 3) == pytest.approx([1.0, -1.0, (10 - math.sqrt(109)) / 3])
    assert reward(Gain(per_step_length=False), before, after, step_mm=[3.0] * 3)[0] == pytest.approx(3.0)
    assert reward(Gain(), before, after) == pytest.approx([3.0, -3.0, 10 - math.sqrt(109)])  # a task without steps


def test_clipped_gain_of_alansary_2019():
    # clip(D(p) - D(p'), -1, 1)
    clipped = Gain(per_step_length=False).clip(-1, 1)
    assert reward(clipped, [-10.0, -10.0, -10.0], [-7.0, -13.0, -9.5]) == pytest.approx([1.0, -1.0, 0.5])


def test_squared_gain_of_ghesu_2016():
    # |p - g|^2 - |p' - g|^2 = 100 - 49 and 100 - 169, in units of the squared step
    assert reward(SquaredGain(), [-10.0, -10.0], [-7.0, -13.0], step_mm=[3.0] * 2) == pytest.approx([51 / 9, -69 / 9])
    assert reward(SquaredGain(), [-10.0], [-7.0]) == pytest.approx([51.0])


def test_exponential_of_seednet():
    # (e^(k IoU) - 1) / (e^k - 1), k = 5
    value = reward(Exponential(), [0.3] * 3, [0.0, 0.5, 1.0])
    assert value == pytest.approx([0.0, (math.exp(2.5) - 1) / (math.exp(5) - 1), 1.0])
    assert value[1] == pytest.approx(0.0758582, abs=1e-6)


def test_at_stop_pays_only_at_the_end_and_by_the_new_score():
    """gml16/rl-medical tests the distance of the previous step: success comes one step late."""
    shape = AtStop(threshold=0.6, eta=3.0)
    ends = [True, True, True, False]
    assert reward(shape, [0.9, 0.1, 0.1, 0.1], [0.1, 0.6, 0.7, 0.9], ends=ends) == [-3.0, 3.0, 3.0, 0.0]


def test_sign_of_caicedo_and_band():
    assert reward(Sign(Gain()), [0.5, 0.5, 0.5], [0.6, 0.4, 0.5]) == [1.0, -1.0, 0.0]
    assert reward(Band(Gain(), 0.05), [0.5, 0.5, 0.5, 0.5], [0.6, 0.4, 0.52, 0.48]) == [1.0, -1.0, 0.0, 0.0]


def test_terminal_and_step_cost():
    assert reward(Terminal(), [0.0] * 4, [0.2, 0.4, 0.6, 0.8], ends=[True, False, True, False]) == pytest.approx(
        [0.2, 0.0, 0.6, 0.0]
    )
    assert reward(StepCost(), [0.0] * 4, [0.0] * 4) == [1.0] * 4


def test_rewards_add_scale_negate_and_clip():
    shape = 0.5 * Gain() + AtStop(threshold=0.6, eta=3) - 0.01 * StepCost()
    ends = [True, False]
    assert reward(shape, [0.2, 0.2], [0.7, 0.1], ends=ends) == pytest.approx([0.25 + 3 - 0.01, -0.05 - 0.01])
    assert reward(-Gain() * 2, [0.2], [0.7]) == pytest.approx([-1.0])
    assert reward((Gain() + StepCost()).clip(0.0, 1.2), [0.2, 0.9], [0.7, -0.9]) == pytest.approx([1.2, 0.0])


def test_learned_rewards_join_in():
    learned = torch.nn.Linear(1, 1)
    calls = []

    def preference(task, state, action, next_state):
        calls.append(learned)
        return next_state * 0 + 5.0

    assert reward(Gain() + preference, [0.2], [0.7]) == pytest.approx([5.5])
    assert reward(preference + Gain(), [0.2], [0.7]) == pytest.approx([5.5])
    assert reward(Sum(preference, Scaled(preference, -1.0)), [0.2], [0.7]) == [0.0]
    assert len(calls) == 4


def test_gain_per_step_length_lies_between_minus_one_and_one(torch_generator):
    task = small_landmark_task()
    state = task.initial(torch.arange(300) % 3, torch_generator)
    state = state._replace(scale=torch.randint(2, (300,), generator=torch_generator).to(torch.int8))
    action = torch.randint(7, (300,), generator=torch_generator)
    gain = Gain()(task, state, action, task.advance(state, action))
    assert float(gain.abs().max()) <= 1 + 1e-4
    assert float(gain.max()) > 0.5
    assert float(gain.min()) < -0.5
