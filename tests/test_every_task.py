"""The contract of `medrl.tasks.base.Task`, held against every task that exists."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from examples import TASKS
from gymnasium.utils.env_checker import check_env
from probes import NoHostSync

import medrl.tasks
from medrl.environment import Environment
from medrl.gym import SingleEnv
from medrl.tasks.base import Task
from medrl.types import rows


def found() -> list[str]:
    """Names of all tasks in the package."""
    names = []
    for module in pkgutil.iter_modules(medrl.tasks.__path__, "medrl.tasks."):
        for name, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, Task) and not inspect.isabstract(value) and value.__module__ == module.name:
                names.append(name)
    return names


@pytest.fixture(
    params=[(n, k) for n in TASKS for k in range(len(TASKS[n]))], ids=lambda p: f"{p[0]}-{p[1]}", scope="module"
)
def task(request) -> Task:
    name, variant = request.param
    return TASKS[name][variant]()


def start(task: Task, count: int = 4, seed: int = 0) -> Any:
    return task.initial(torch.arange(count) % len(task.cases), torch.Generator().manual_seed(seed))


def actions(task: Task, count: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    space = task.action_space
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return torch.from_numpy(generator.integers(space.nvec, size=(count, *space.shape)))
    return torch.from_numpy(generator.integers(space.n, size=count))


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return all(equal(a, b) for a, b in zip(first, second, strict=True))


def cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {k: cloned(v) for k, v in value.items()} if isinstance(value, dict) else type(value)(*map(cloned, value))


def joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], dict):
        return {k: joined([p[k] for p in parts]) for k in parts[0]}
    return type(parts[0])(*(joined(list(column)) for column in zip(*parts, strict=True)))


def fingerprint(value: Any, depth: int = 6) -> Any:
    """All that an object holds, in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {k: fingerprint(v, depth) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(v, depth) for v in value]
    if hasattr(value, "__dict__") and not isinstance(value, gymnasium.Space) and depth:
        return {k: fingerprint(v, depth - 1) for k, v in vars(value).items()}
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value)


def test_every_task_has_an_example():
    assert found() == sorted(TASKS), "tests/examples.py must list every task"


def test_states_have_their_rows_first_and_their_case_before_all(task):
    state = start(task, 5)
    assert all(isinstance(value, torch.Tensor) and len(value) == 5 for value in state)
    assert state._fields[0] == "case"
    assert state.case.tolist() == [n % len(task.cases) for n in range(5)]
    assert not task.terminated(state).any()


def test_answers_have_one_number_a_row(task):
    state, action = start(task), actions(task, 4)
    after = task.advance(state, action)
    assert type(after) is type(state)
    assert [(v.dtype, v.shape) for v in after] == [(v.dtype, v.shape) for v in state]
    for value, dtype in [
        (task.score(state), torch.float32), (task.reward(state, action, after), torch.float32),
        (task.terminated(after), torch.bool), (task.expert(state), torch.int64),
    ]:  # fmt: skip
        assert value.shape == ((4,) if value.dtype != torch.int64 else (4, *task.action_space.shape))
        assert value.dtype == dtype
        assert value.isfinite().all()
    assert all(task.action_space.contains(a) for a in task.expert(state).numpy())


def test_observations_lie_in_their_space(task):
    seen = task.observe(start(task))
    for row in range(4):
        one = {k: v.numpy()[row] for k, v in seen.items()} if isinstance(seen, dict) else seen.numpy()[row]
        assert task.observation_space.contains(one)


def test_nothing_changes_its_input_or_the_task(task):
    before = fingerprint(task)
    state = start(task)
    kept = cloned(state)
    for number in range(6):
        action = actions(task, 4, number)
        action_kept = action.clone()
        after = task.advance(state, action)
        seen = task.observe(state)
        (
            task.reward(state, action, after),
            task.terminated(state),
            task.score(state),
            task.expert(state),
            task.outputs(state),
        )
        for value in seen.values() if isinstance(seen, dict) else [seen]:
            value.zero_()  # an observation shares no memory with the state or the volumes
        assert equal(state, kept)
        assert torch.equal(action, action_kept)
        state, kept = after, cloned(after)
    assert fingerprint(task) == before


def test_rows_do_not_leak(task):
    """A batch of 4 equals 4 batches of 1."""
    state = start(task)
    for number in range(8):
        action = actions(task, 4, number)
        alone = [rows(state, torch.tensor([n])) for n in range(4)]
        pieces = [(s, action[n : n + 1], task.advance(s, action[n : n + 1])) for n, s in enumerate(alone)]
        after = task.advance(state, action)
        assert equal(after, joined([p[2] for p in pieces]))
        assert equal(task.observe(state), joined([task.observe(s) for s in alone]))
        for whole, parts in [
            (task.reward(state, action, after), [task.reward(*p) for p in pieces]),
            (task.score(state), [task.score(s) for s in alone]),
            (task.terminated(after), [task.terminated(p[2]) for p in pieces]),
            (task.expert(state), [task.expert(s) for s in alone]),
        ]:
            torch.testing.assert_close(whole, torch.cat(parts))
        state = after


def test_same_seed_same_start(task):
    assert equal(start(task, seed=1), start(task, seed=1))
    assert not equal(start(task, seed=1), start(task, seed=2))


def test_final_state_precedes_the_reset(task):
    environment = Environment(task, num_envs=6)
    environment.reset()
    ended = 0
    for number in range(3 * task.max_steps):
        old, action = environment.state, actions(task, 6, number)
        step = environment.step(action)
        assert equal(step.final_state, task.advance(old, action))
        assert equal(step.reward, task.reward(old, action, step.final_state))
        assert torch.equal(step.terminated, task.terminated(step.final_state))
        over = step.terminated | step.truncated
        assert not task.terminated(environment.state).any()
        assert equal(rows(environment.state, ~over), rows(step.final_state, ~over))
        ended += int(over.sum())
    assert ended >= 6


def test_same_seed_same_episodes(task):
    runs = []
    for _ in range(2):
        environment = Environment(task, num_envs=3, seed=5)
        environment.reset()
        runs.append([environment.step(actions(task, 3, n)).reward for n in range(30)])
    assert equal(*runs)


def test_expert_is_better_than_chance(task):
    scores = {}
    for name in ("expert", "random"):
        environment = Environment(task, num_envs=24, seed=1)
        environment.reset()
        ends = []
        for number in range(2 * task.max_steps):
            action = task.expert(environment.state) if name == "expert" else actions(task, 24, number)
            step = environment.step(action)
            ends.append(step.metrics["score"][step.metrics["ended"]])
        scores[name] = float(torch.cat(ends).mean())
    assert scores["expert"] > scores["random"]


def test_gymnasium_accepts_it(task):
    check_env(SingleEnv(task), skip_render_check=True)


def test_stepping_never_makes_the_host_wait(task):
    environment = Environment(task, num_envs=4)
    environment.reset()
    plan = [actions(task, 4, n) for n in range(10)]
    with NoHostSync():
        for action in plan:
            task.expert(environment.state)
            environment.step(action)
