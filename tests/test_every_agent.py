"""The contract of `medrl.agents.base.Agent`, held against every agent that exists."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
from typing import Any

import pytest
import torch
from examples import AGENTS, Training

import medrl.agents
from medrl.agents.base import Agent
from medrl.tasks.base import Task


def found() -> list[str]:
    """Names of all agents in the package."""
    names = []
    for module in pkgutil.iter_modules(medrl.agents.__path__, "medrl.agents."):
        for name, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = value.__module__ == module.name and not inspect.isabstract(value)
            if issubclass(value, Agent) and value is not Agent and own:
                names.append(name)
    return sorted(names)


@pytest.fixture(params=list(AGENTS))
def build(request):
    return AGENTS[request.param]


def task_of(training: Training) -> Task:
    return training.environment.task if training.environment is not None else training.agent.task


def train(training: Training, updates: int) -> list[dict[str, torch.Tensor]]:
    """What a trainer does, without one."""
    agent, environment = training
    losses = []
    while len(losses) < updates:
        if environment is not None:
            seen = environment.reset() if environment.state is None else environment.observe()
            state = environment.state
            action = agent.act(seen, explore=True).action
            agent.record(state, action, environment.step(action))
        if agent.ready:
            losses.append(agent.learn())
    return losses


def look(training: Training, count: int = 6) -> Any:
    task = task_of(training)
    return task.observe(task.initial(torch.arange(count) % len(task.cases), torch.Generator().manual_seed(0)))


def save(value: Any) -> Any:
    """Through a file that loads with ``weights_only``."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def everything(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_every_agent_has_an_example():
    assert found() == sorted(AGENTS), "tests/examples.py must list every agent"


def test_act_answers_and_changes_nothing(build):
    training = build()
    train(training, 3)
    agent, seen = training.agent, look(training)
    before, kept = everything(agent), {name: value.clone() for name, value in seen.items()}
    modes = {name: module.training for name, module in agent.named_modules()}
    for explore in (False, True):
        decision = agent.act(seen, explore=explore)
        assert decision.action.shape == (6,)
        assert all(task_of(training).action_space.contains(a) for a in decision.action.numpy())
        if decision.value is not None:
            assert decision.value.shape == (6,)
            assert not decision.value.requires_grad
    assert torch.equal(agent.act(seen).action, agent.act(seen).action)
    assert same(before, everything(agent))
    assert same(kept, seen)
    assert modes == {name: module.training for name, module in agent.named_modules()}


def test_rows_do_not_leak_into_each_other(build):
    training = build()
    train(training, 3)
    seen = look(training)
    together = training.agent.act(seen)
    for row in range(6):
        alone = training.agent.act({name: value[row : row + 1] for name, value in seen.items()})
        assert alone.action[0] == together.action[row]
        torch.testing.assert_close(alone.value[0], together.value[row], rtol=1e-2, atol=1e-3)


def test_learning_answers_numbers_and_changes_the_network(build):
    training = build()
    before = everything(training.agent)
    for parts in train(training, 4):
        assert "loss" in parts
        for value in parts.values():
            assert value.ndim == 0
            assert value.isfinite()
            assert not value.requires_grad
    after = everything(training.agent)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("network.") for name in changed)


def test_same_seed_same_training(build):
    one, two = build(), build()
    assert all(same(a, b) for a, b in zip(train(one, 5), train(two, 5), strict=True))
    assert same(everything(one.agent), everything(two.agent))


def test_checkpoint_holds_what_acts(build):
    one, two = build(), build()
    train(one, 5)
    two.agent.load_state_dict(save(one.agent.state_dict()))
    seen = look(one)
    torch.testing.assert_close(one.agent.act(seen).value, two.agent.act(seen).value)


def test_resume_is_exact(build):
    one, two = build(), build()
    train(one, 6)
    two.agent.load_state_dict(save(one.agent.state_dict()))
    two.agent.load_extra_state(save(one.agent.extra_state()))
    if one.environment is not None:
        two.environment.load_state_dict(save(one.environment.state_dict()))
    assert all(same(a, b) for a, b in zip(train(one, 6), train(two, 6), strict=True))
    assert same(everything(one.agent), everything(two.agent))
