"""Rewards without a truth: the gains of what is seen, and their sums."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from probes import small_pair_cases, small_registration_task

from medrl.data.pair_cases import PairCases
from medrl.data.pair_fields import draw_pair
from medrl.geometry.poses import Nudges, Pose, nudged
from medrl.geometry.quaternions import from_vector
from medrl.rewards.scores import Gain, StepCost
from medrl.rewards.similarity import AlikenessGain, InformationGain, SelfSimilarityGain, SimilarityGain
from medrl.tasks.registration import RegistrationTask

ALL = (SimilarityGain, InformationGain, SelfSimilarityGain)


@pytest.fixture(scope="module")
def task() -> RegistrationTask:
    generator = torch.Generator().manual_seed(1)
    options = {"counts": (100, 500), "degrees": 5.0, "scale": 1.0, "mind": True}
    pairs = [draw_pair(generator, **options) for _ in range(3)]
    return RegistrationTask(cases=PairCases(pairs, scale=20.0))


def shifted(task: RegistrationTask, shift_mm: float):
    """The states of all cases, so far from the truth along x."""
    change = Nudges(from_vector(torch.zeros(3, 3)), torch.zeros(3), torch.tensor([[shift_mm, 0, 0]]).expand(3, 3))
    return task.at(torch.arange(3), nudged(task.cases.truth, change))


def test_gains_by_hand():
    """A task whose poses are what they look like."""

    cases = SimpleNamespace(
        look=lambda case, pose, information: SimpleNamespace(score=2 * pose),
        information=lambda case, pose: (torch.tensor([1.0, 0.5]), pose + 1),
        self_similarity=lambda case, pose: -pose.square(),
    )
    task = SimpleNamespace(cases=cases)
    before, after = (SimpleNamespace(case=None, pose=torch.tensor(x)) for x in ([1.0, 2.0], [4.0, 0.0]))
    action = torch.zeros(2)
    assert SimilarityGain()(task, before, action, after).tolist() == [6, -4]
    assert InformationGain()(task, before, action, after).tolist() == [3, -1]  # counts half where half is inside
    assert SelfSimilarityGain()(task, before, action, after).tolist() == [-15, 4]
    shaped = (0.5 * SimilarityGain() - 0.25 * StepCost()).clip(-1, 1) + SelfSimilarityGain()
    assert shaped(task, before, action, after).tolist() == [-14, 3]


@pytest.mark.parametrize("kind", ALL)
def test_coming_nearer_pays_and_leaving_costs(task, kind):
    action = torch.zeros(3, dtype=torch.int64)
    near, far = shifted(task, 4.0), shifted(task, 16.0)
    gain = kind()(task, far, action, near)
    assert gain.dtype == torch.float32
    assert (gain > 0).all()
    torch.testing.assert_close(kind()(task, near, action, far), -gain)
    assert kind()(task, near, action, near).tolist() == [0, 0, 0]


def test_the_gains_of_a_walk_add_up(task):
    states = [shifted(task, x) for x in (30.0, 14.0, 6.0, 0.0)]
    action = torch.zeros(3, dtype=torch.int64)
    total = sum(SimilarityGain()(task, a, action, b) for a, b in pairwise(states))
    seen = [task.cases.look(s.case, s.pose).score for s in (states[-1], states[0])]
    torch.testing.assert_close(total, seen[0] - seen[1], atol=1e-4, rtol=0)


def test_it_does_not_pay_to_leave_the_image(task):
    """Few points share information by chance; what they share counts for little."""
    near, action = shifted(task, 0.0), torch.zeros(3, dtype=torch.int64)
    for shift_mm in range(60, 130, 5):
        assert (InformationGain()(task, near, action, shifted(task, shift_mm)) < -0.3).all()


def test_a_task_takes_them_as_it_takes_any_reward():
    reward = 0.1 * SimilarityGain() + 20 * InformationGain().clip(-0.1, 0.1)
    task = small_registration_task(reward=reward)
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(0))
    action = task.expert(state)
    after = task.advance(state, action)
    before, now = (task.cases.look(s.case, s.pose) for s in (state, after))
    information = now.information * now.inside - before.information * before.inside
    wanted = 0.1 * (now.score - before.score) + 20 * information.clamp(-0.1, 0.1)
    torch.testing.assert_close(task.reward(state, action, after), wanted)
    # and no truth: the same rewards when nobody knows it
    task.cases.known[:] = False
    torch.testing.assert_close(task.reward(state, action, after), wanted)
    assert Gain()(task, state, action, after).isnan().all()


def test_the_base_says_nothing():
    cases = small_pair_cases(1)
    state = SimpleNamespace(case=torch.zeros(1), pose=cases.truth)
    assert isinstance(cases.truth, Pose)
    with pytest.raises(TypeError, match="how it measures"):
        AlikenessGain()(SimpleNamespace(cases=cases), state, torch.zeros(1), state)
