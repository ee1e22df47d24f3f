"""Walks: they stop when the policy does, climb without one, and look ahead by the critic's values."""

from __future__ import annotations

import pytest
import torch
from probes import small_registration_task
from torch import nn

from medrl.geometry.poses import to_matrices
from medrl.inference.policy_walk import look_ahead, walk
from medrl.networks.policy import PolicyOutput


class Script(nn.Module):
    """Plays a list of actions for each row, the step number being its memory; its value is the step."""

    def __init__(self, actions: list[list[int]], count: int) -> None:
        super().__init__()
        self.actions, self.count = torch.tensor(actions), count

    def forward(self, observation, memory=None):
        memory = torch.zeros(len(observation), dtype=torch.int64) if memory is None else memory
        rows = torch.arange(len(observation))
        wanted = self.actions[rows, memory.clamp(max=self.actions.shape[1] - 1)]
        return PolicyOutput(nn.functional.one_hot(wanted, self.count) * 10.0, 1.0 + memory.float(), memory + 1)


@pytest.fixture(scope="module")
def task():
    return small_registration_task(max_steps=11)


@pytest.fixture
def state(task):
    return task.initial(torch.arange(3), torch.Generator().manual_seed(0))


def test_rows_stop_when_their_policy_does(task, state):
    stop = task.stop
    network = Script([[stop] * 3, [0, 0, stop], [0, 1, 0]], stop + 1)
    ended = walk(task, network, state)
    assert ended.state.stopped.tolist() == [True, True, False]
    assert ended.state.time.tolist() == [1, 3, 11]
    assert ended.value.tolist() == [1, 3, 11]  # the critic's, where each row stopped
    assert len(ended.path) == 12
    torch.testing.assert_close(ended.path[-1], to_matrices(ended.state.pose))
    assert torch.equal(ended.path[0, 0], ended.path[-1, 0])
    shift = ended.path[:, 1, 0, 3] - ended.path[0, 1, 0, 3]
    assert shift.tolist() == pytest.approx([0, 12, 24] + [24] * 9, abs=1e-4)


def test_a_walk_ends_soon_after_all_have_stopped(task, state):
    ended = walk(task, Script([[task.stop]] * 3, task.stop + 1), state)
    assert ended.state.stopped.all()
    assert len(ended.path) <= 5


def test_without_a_policy_the_similarity_is_climbed(task, state):
    ended = walk(task, None, state)
    before, after = (task.cases.look(s.case, s.pose).score for s in (state, ended.state))
    assert (after >= before).all()
    assert (after > before).any()
    assert (task.score(ended.state) > task.score(state) + 1).any()


class Critic(nn.Module):
    """Nudges along x by chance; the roll-outs of a row have the values of a list."""

    def __init__(self, actions: int, values: list[float]) -> None:
        super().__init__()
        self.actions, self.values = actions, torch.tensor(values)

    def forward(self, observation, memory=None):
        logits = torch.full((len(observation), self.actions), -30.0)
        logits[:, :2] = 0.0  # both ways along x
        return PolicyOutput(logits, self.values.repeat(len(observation) // len(self.values)))


def test_looking_ahead_weighs_the_ends_by_their_values(task, state):
    """With all weight on one roll-out the answer is its end; with equal values the mean of all."""
    rollouts, options = 4, {"rollouts": 4, "depth": 3}
    best = look_ahead(
        task, Critic(task.moves + 1, [0.0, 0, 50, 0]), state, generator=torch.Generator().manual_seed(0), **options
    )
    shift = (best.translation_mm - state.translation_mm)[:, 0]
    assert all(min(abs(float(x) - y) for y in (-36, -12, 12, 36)) < 1e-3 for x in shift)
    equal = look_ahead(
        task, Critic(task.moves + 1, [1.0] * rollouts), state, generator=torch.Generator().manual_seed(0), **options
    )
    mean = (equal.translation_mm - state.translation_mm)[:, 0] * rollouts / 12  # a sum of 4 odd numbers
    torch.testing.assert_close(mean, mean.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(equal.quaternion.abs(), state.quaternion.abs(), atol=1e-5, rtol=0)
    torch.testing.assert_close(equal.log_scale, state.log_scale)
