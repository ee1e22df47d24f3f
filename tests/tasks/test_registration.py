"""Registration over features: numbers that the agent sees and is paid, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from probes import small_registration_task

from medrl.data.pair_cases import PairCases
from medrl.data.pair_fields import draw_pair
from medrl.geometry.poses import Nudges, Pose, nudged, to_matrices
from medrl.geometry.quaternions import from_vector
from medrl.rewards.scores import AtStop, Gain, Score
from medrl.tasks.registration import CELLS, RegistrationTask

PLUS_Z, MINUS_Z = 4, 5  # of the coarse nudges


def apart(task: RegistrationTask, shift_mm: tuple[float, float, float]):
    """States of the first case, shifted from the truth."""
    truth = Pose(*(value[:1] for value in task.cases.truth))
    change = Nudges(from_vector(torch.zeros(1, 3)), torch.zeros(1), torch.tensor([shift_mm]))
    return task.at(torch.zeros(1, dtype=torch.int64), nudged(truth, change))


@pytest.fixture(scope="module")
def task() -> RegistrationTask:
    """Images of one size, so that mm are mm."""
    pair = draw_pair(torch.Generator().manual_seed(0), side=8, counts=(30, 60), scale=1.0)
    return RegistrationTask(cases=PairCases([pair], scale=20.0))


def walked(task, state, *actions):
    """The rewards of some actions, one after another."""
    rewards = []
    for number in actions:
        action = torch.full_like(state.case, number)
        after = task.advance(state, action)
        rewards.append(float(task.reward(state, action, after)))
        state = after
    return rewards


def test_rewards_by_hand(task):
    """From 20 mm away, a nudge of 16 mm leaves 4 mm; below 5 mm it is right to stop."""
    start = apart(task, (0.0, 0.0, 20.0))
    assert float(task.score(start)) == pytest.approx(-20, abs=1e-4)
    task.reward_shape = 0.1 * Gain(per_step_length=False) + AtStop(threshold=-5.0)
    assert walked(task, start, MINUS_Z, task.stop) == pytest.approx([1.6, 1.0], abs=1e-4)
    assert walked(task, start, PLUS_Z, task.stop) == pytest.approx([-1.6, -1.0], abs=1e-4)
    # Sun et al. 2018: minus the error at each step, and a bonus at an end below the threshold
    task.reward_shape = Score() + AtStop(threshold=-5.0, eta=10.0)
    assert walked(task, start, MINUS_Z, task.stop) == pytest.approx([-4, -4 + 10], abs=1e-4)
    assert walked(task, start, task.stop) == pytest.approx([-20 - 10], abs=1e-4)


def test_the_default_reward_by_hand():
    pair = draw_pair(torch.Generator().manual_seed(0), side=6, scale=1.0)
    task = RegistrationTask(cases=PairCases([pair], scale=1.0))
    assert walked(task, apart(task, (0.0, 0.0, 20.0)), MINUS_Z, task.stop) == pytest.approx([1.59, 0.99], abs=1e-4)


def test_actions_nudge_and_stop(task):
    assert task.action_space.n == 3 * 14 + 1
    start = apart(task, (0.0, 0.0, 20.0))
    after = task.advance(start, torch.tensor([MINUS_Z]))
    torch.testing.assert_close(after.translation_mm, start.translation_mm - torch.tensor([0, 0, 16.0]))
    assert (int(after.time), int(after.previous), bool(after.stopped)) == (1, MINUS_Z, False)
    stopped = task.advance(after, torch.tensor([task.stop]))
    assert task.terminated(stopped).tolist() == [True]
    again = task.advance(stopped, torch.tensor([PLUS_Z]))  # after the end nothing moves any more
    assert torch.equal(again.translation_mm, after.translation_mm)
    assert task.terminated(again).tolist() == [True]
    torch.testing.assert_close(task.outputs(after)["moving_from_fixed"], to_matrices(after.pose))
    rigid = small_registration_task(scaled=False)
    assert rigid.action_space.n == 2 * 12 + 1
    assert not rigid.changes.log_scale.any()


def test_a_turn_moves_tissue_as_far_as_a_shift(task):
    place = torch.tensor([[[0.0, 40, 0], [0, 0, 40]]])  # 40 mm from the axis of a turn about x
    turn = Pose(*(value[6:7] for value in task.changes))
    matrix = to_matrices(turn)
    moved = (place @ matrix[:, :3, :3].mT - place).norm(dim=-1)
    assert moved[0].tolist() == pytest.approx([2 * 40 * math.sin(0.2)] * 2, abs=1e-3)  # an arc of 16 mm
    assert math.exp(float(task.changes.log_scale[12])) == pytest.approx(math.exp(0.16))


def test_best_is_the_highest_score_of_the_walk(task):
    state = apart(task, (0.0, 0.0, 20.0))
    scores = [float(state.best)]
    assert scores[0] == float(task.cases.look(state.case, state.pose).score)
    for number in (MINUS_Z, PLUS_Z, 0, 7):
        state = task.advance(state, torch.tensor([number]))
        scores.append(float(task.cases.look(state.case, state.pose).score))
        assert float(state.best) == max(scores)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_observation_is_what_it_says(scaled):
    task = small_registration_task(scaled=scaled)
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(1))
    state = task.advance(state, torch.tensor([2, 0, 5]))
    seen = task.observe(state)
    parts = dict(zip(task.layout, seen.split(list(task.layout.values()), 1), strict=True))
    now = task.cases.look(state.case, state.pose)
    for number in range(task.moves + 1):
        after = task.advance(state, torch.full((3,), number))
        then = task.cases.look(after.case, after.pose)
        wanted = torch.asinh(4 * (then.score - now.score))
        torch.testing.assert_close(parts["score_gain"][:, number], wanted, atol=1e-3, rtol=1e-3)
        wanted = torch.asinh(80 * (then.information - now.information))
        torch.testing.assert_close(parts["information_gain"][:, number], wanted, atol=1e-3, rtol=1e-3)
    assert not parts["score_gain"][:, -1].any()
    clock = torch.full((3,), 1 / task.max_steps)
    wanted = torch.stack([now.score, now.score - state.best, 5 * now.information, now.inside, clock], 1)
    torch.testing.assert_close(parts["now"], wanted)
    assert parts["previous"].argmax(1).tolist() == [2, 0, 5]
    assert parts["previous"].sum(1).tolist() == [1, 1, 1]
    # every point counts in one part of the body: the parts' means add up to the mean of all
    assert parts["products"].shape == (3, CELLS**3)
    places = task.cell.gt(0).sum(1)  # of each part
    assert places.sum(1).tolist() == [16] * 3
    total = (parts["products"] * places).sum(1) / 16
    torch.testing.assert_close(total, now.score)


def test_an_observation_in_numbers():
    """Trained policies depend on them: found by an earlier, slower way of looking."""
    task = small_registration_task()
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(1))
    seen = task.observe(task.advance(state, torch.tensor([2, 0, 5])))
    wanted = [0.88697, -3.91755, -4.09518, 2.10309, -4.12676, -2.10235, -2.83224, 1.98977]
    assert seen[0, :8].tolist() == pytest.approx(wanted, abs=2e-4)
    wanted = [4.0821, -2.76601, 2.20546, 4.11786, 3.192, 3.5426, 1.60803, 1.06362]
    assert seen[1, 29:37].tolist() == pytest.approx(wanted, abs=5e-4)
    assert seen[2, 58:63].tolist() == pytest.approx([15.50134, -0.65092, 3.36864, 1.0, 0.125], abs=2e-4)
    assert seen.mean(1).tolist() == pytest.approx([1.839904, 0.554333, 0.908520], abs=2e-5)


def test_the_expert_walks_to_the_truth(task):
    state = task.initial(torch.zeros(6, dtype=torch.int64), torch.Generator().manual_seed(0))
    error = -task.score(state)
    assert error.min() > 2
    for _ in range(task.max_steps):
        gains = task.action_gains(state)
        action = task.expert(state)
        state = task.advance(state, action)
        better = -task.score(state)
        moved = action != task.stop
        assert (better[moved] < error[moved]).all()
        assert torch.equal(better[~moved], error[~moved])
        torch.testing.assert_close(error - better, gains.gather(1, action[:, None])[:, 0], atol=1e-4, rtol=0)
        error = better
    assert state.stopped.all()
    assert error.max() < 3  # about the finest nudge


def test_gains_are_those_of_the_actions():
    task = small_registration_task()
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(0))
    gains = task.action_gains(state)
    for number in range(task.moves + 1):
        after = task.advance(state, torch.full((3,), number))
        torch.testing.assert_close(gains[:, number], task.score(after) - task.score(state), atol=1e-4, rtol=0)


def test_starts_lie_within_their_range():
    task = small_registration_task(start_mm=10.0, start_degrees=30.0, start_scale=1.1)
    case = torch.arange(3).repeat(100)
    state = task.initial(case, torch.Generator().manual_seed(0))
    truth = Pose(*(value[case] for value in task.cases.truth))
    shift = (state.translation_mm - truth.translation_mm).norm(dim=1)
    degrees = 2 * (state.quaternion * truth.quaternion).sum(1).abs().clamp(max=1).acos() * 180 / math.pi
    growth = (state.log_scale - truth.log_scale).abs()
    for value, most in ((shift, 10.0), (degrees, 30.0), (growth, math.log(1.1))):
        assert 0.9 * most < float(value.max()) <= most + 1e-3
        assert float(value.min()) < 0.1 * most
    rigid = small_registration_task(scaled=False).initial(case, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rigid.log_scale, truth.log_scale)


def test_starts_that_a_search_proposed():
    starts = torch.eye(4).repeat(3, 2, 1, 1)
    starts[:, :, 0, 3] = torch.arange(6.0).reshape(3, 2) * 100
    task = small_registration_task(starts=starts, perturbed=0.3)
    case = torch.arange(3).repeat(200)
    state = task.initial(case, torch.Generator().manual_seed(0))
    place = state.translation_mm[:, 0]
    proposed = (state.quaternion[:, 0] == 1) & (place % 100 == 0)
    assert float(proposed.float().mean()) == pytest.approx(0.7, abs=0.06)
    for number in range(3):
        assert set(place[proposed & (case == number)].tolist()) == {200.0 * number, 200.0 * number + 100}
    always = small_registration_task(starts=starts, perturbed=0.0).initial(case, torch.Generator().manual_seed(0))
    assert (always.translation_mm[:, 0] % 100 == 0).all()


def test_a_transition_is_small(task):
    state = task.initial(torch.zeros(2, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert sum(value[0].nbytes for value in state) == 43
