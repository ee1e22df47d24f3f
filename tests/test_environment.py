"""The environment: clock, auto-reset row by row, groups, exact resume."""

from __future__ import annotations

import io

import pytest
import torch
from probes import NoHostSync, Probe, small_landmark_task

from medrl.environment import Environment
from medrl.types import rows


def ages(environment: Environment) -> list[int]:
    return environment.state.age.tolist()


def play(environment: Environment, steps: int, seed: int = 0) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(steps):
        action = torch.randint(7, (environment.num_envs,), generator=generator)
        step = environment.step(action)
        out.append((step.observation["image"], step.reward, step.terminated, step.truncated, *step.final_state))
    return out


def same(first: list[tuple], second: list[tuple]) -> bool:
    return all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_rows_reset_in_the_step_that_ends_them():
    task = Probe(lambda task, s, a, n: n.age.float(), length=3)
    environment = Environment(task, num_envs=4, seed=1)
    environment.reset()
    environment.state = environment.state._replace(age=torch.tensor([0, 1, 2, 2], dtype=torch.int16))
    signs = environment.state.sign
    step = environment.step(torch.zeros(4, dtype=torch.int64))
    assert step.terminated.tolist() == [False, False, True, True]
    assert not step.truncated.any()
    assert step.reward.tolist() == [1.0, 2.0, 3.0, 3.0]
    assert step.final_state.age.tolist() == [1, 2, 3, 3]  # the true successors
    assert torch.equal(step.final_state.sign, signs)
    assert ages(environment) == [1, 2, 0, 0]
    assert step.observation[:, 1].tolist() == [1.0, 2.0, 0.0, 0.0]
    assert environment.state.sign[:2].tolist() == signs[:2].tolist()  # a reset of others leaves a row alone


def test_time_limit_is_truncation_and_never_both():
    endless = Environment(Probe(lambda task, s, a, n: n.age.float(), length=4, endless=True), num_envs=2)
    both = Environment(Probe(lambda task, s, a, n: n.age.float(), length=4), num_envs=2)
    both.task.max_steps = 4
    for environment, expected in ((endless, (False, True)), (both, (True, False))):
        environment.reset()
        for number in range(1, 9):
            step = environment.step(torch.zeros(2, dtype=torch.int64))
            at_end = number % 4 == 0
            assert (bool(step.terminated[0]), bool(step.truncated[0])) == (expected if at_end else (False, False))
            assert step.metrics["length"].tolist() == [(number - 1) % 4 + 1] * 2


def test_metrics_tell_of_the_episode_that_ended():
    environment = Environment(Probe(lambda task, s, a, n: n.age.float(), length=3), num_envs=2)
    environment.reset()
    returns = []
    for _ in range(6):
        sign = environment.state.sign
        step = environment.step(torch.zeros(2, dtype=torch.int64))
        returns.append(step.metrics["episode_return"][0].item())
        assert torch.equal(step.metrics["score"], sign)
        assert step.metrics["ended"].tolist() == step.terminated.tolist()
        assert step.metrics["active"].all()
    assert returns == [1, 3, 6, 1, 3, 6]


def test_a_group_shares_its_case_and_waits_for_its_last_row():
    task = Probe(lambda task, s, a, n: torch.ones(len(a)), length=3)
    environment = Environment(task, num_envs=6, group_size=3, seed=2)
    cases = []
    environment.reset()
    for _ in range(20):
        case = environment.state.case.reshape(2, 3)
        assert bool((case == case[:, :1]).all())
        cases.append(case[:, 0].tolist())
        environment.step(torch.zeros(6, dtype=torch.int64))
    assert len({case for pair in cases for case in pair}) == 2
    environment.reset()
    environment.state = environment.state._replace(age=torch.tensor([0, 1, 2, 2, 2, 2], dtype=torch.int16))
    step = environment.step(torch.zeros(6, dtype=torch.int64))
    assert step.terminated.tolist() == [False, False, True, True, True, True]
    assert ages(environment) == [1, 2, 3, 0, 0, 0]  # the second group is over and starts anew
    step = environment.step(torch.zeros(6, dtype=torch.int64))
    assert step.metrics["active"].tolist() == [True, True, False, True, True, True]
    assert step.reward.tolist() == [1, 1, 0, 1, 1, 1]
    assert step.terminated.tolist() == [False, True, False, False, False, False]
    assert step.final_state.age.tolist() == [2, 3, 3, 1, 1, 1]
    assert step.metrics["length"].tolist() == [2, 2, 1, 1, 1, 1]
    assert step.metrics["episode_return"].tolist() == [2, 2, 1, 1, 1, 1]
    step = environment.step(torch.zeros(6, dtype=torch.int64))
    assert ages(environment) == [0, 0, 0, 2, 2, 2]


def test_same_seed_same_episodes_other_seed_others():
    one, two, other = (Environment(small_landmark_task(), num_envs=5, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.reset()["image"], two.reset()["image"])
    other.reset()
    first = play(one, 40)
    assert same(first, play(two, 40))
    assert not same(first, play(other, 40))
    one.reset(seed=3)
    assert same(first, play(one, 40))


def test_resume_is_exact():
    one = Environment(small_landmark_task(), num_envs=5, seed=3, group_size=5)
    one.reset()
    play(one, 17)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = Environment(small_landmark_task(), num_envs=5, seed=8, group_size=5)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert same(play(one, 40, seed=1), play(two, 40, seed=1))


def test_some_rows_start_anew():
    environment = Environment(Probe(lambda task, s, a, n: n.age.float(), length=9), num_envs=3)
    environment.reset()
    for _ in range(4):
        environment.step(torch.zeros(3, dtype=torch.int64))
    seen = environment.reset_rows(torch.tensor([False, True, False]))
    assert seen[:, 1].tolist() == [4, 0, 4]
    step = environment.step(torch.zeros(3, dtype=torch.int64))
    assert step.metrics["length"].tolist() == [5, 1, 5]
    assert step.metrics["episode_return"].tolist() == [15, 1, 15]


def test_rows_must_fill_their_groups():
    for count, size in ((0, 1), (4, 3)):
        with pytest.raises(ValueError, match="multiple of group_size"):
            Environment(small_landmark_task(), num_envs=count, group_size=size)


@pytest.mark.parametrize("options", [{}, {"settle": False}, {"observation": "frames", "frames": 3}])
def test_step_never_makes_the_host_wait(options):
    environment = Environment(small_landmark_task(**options), num_envs=6)
    environment.reset()
    actions = torch.randint(6, (20, 6))
    with NoHostSync():
        for action in actions:
            environment.step(action)
            environment.task.expert(environment.state)
            environment.task.targets(environment.state)


def test_gathered_episodes_equal_sliced_ones():
    environments = [Environment(small_landmark_task(), num_envs=6, seed=1) for _ in range(2)]
    for environment in environments:
        environment.reset()
    pyramid = environments[1].task.cases.pyramid
    pyramid._crop_slices = pyramid._crop_gather
    assert same(play(environments[0], 30), play(environments[1], 30))


def test_a_state_can_be_cut_into_rows():
    environment = Environment(small_landmark_task(), num_envs=6)
    environment.reset()
    part = rows(environment.state, torch.tensor([4, 1]))
    assert torch.equal(part.position, environment.state.position[[4, 1]])
