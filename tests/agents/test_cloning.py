"""Cloning: follows the oracle after some updates, in both forms, on phantoms."""

from __future__ import annotations

import pytest
import torch
from examples import small_network
from probes import NoHostSync, small_landmark_task

from medrl.agents.cloning import Cloning, follow
from medrl.agents.supervision import OffsetSupervision
from medrl.environment import Environment
from medrl.gym import phantom_task
from medrl.networks.concentric import ConcentricNet


@pytest.mark.parametrize("imitate", ["actions", "gains"])
def test_clone_walks_like_the_oracle_on_phantoms(imitate):
    task = phantom_task(patients=2, size=9, max_steps=30, start="near", near_mm=(20.0,), near_share=(1.0,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConcentricNet(landmarks=6, size=9, scales=3, width=8, hidden=64, unit_mm=24.0)
    agent = Cloning(network, task=task, updates=250, batch_size=48, imitate=imitate, average=20.0, learning_rate=3e-3)
    first = last = 0.0
    for update in range(250):
        loss = float(agent.learn()["loss"])
        first, last = (loss if update == 0 else first), 0.9 * last + 0.1 * loss
    assert last < 0.7 * first
    distance = {}
    for name in ("clone", "oracle", "still"):
        environment = Environment(task, num_envs=60, seed=3)
        seen, ends = environment.reset(), []
        for _ in range(30):
            state = environment.state
            if name == "still":
                ends.append(-task.score(state))
                break
            action = agent.act(seen).action if name == "clone" else task.expert(state)
            step = environment.step(action)
            ends.append(-step.metrics["score"][step.metrics["ended"]])
            seen = step.observation
        distance[name] = float(torch.cat(ends).median())
    assert distance["oracle"] < 3.0  # mm; the finest step is 4 mm
    assert distance["clone"] < 0.5 * distance["still"]


def test_greedy_actions_agree_with_the_gains_that_were_learnt():
    agent = Cloning(small_network(), task=small_landmark_task(), batch_size=8)
    state = agent.task.sample(20, torch.Generator().manual_seed(0))
    seen = agent.task.observe(state)
    q = agent.average.split(agent.average(seen["image"])).q
    expected = q[torch.arange(20), state.head.long(), state.scale.long()]
    decision = agent.act(seen)
    assert torch.equal(decision.action, expected.argmax(-1))
    torch.testing.assert_close(decision.value, expected.amax(-1))


def test_average_follows_the_network():
    slow, fast = small_network(0), small_network(1)
    before = {name: value.clone() for name, value in slow.named_parameters()}
    fast.trunk[0][1].running_mean.fill_(3.0)
    follow(slow, fast, 0.75)
    for (name, value), new in zip(slow.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * new)
    assert torch.equal(slow.trunk[0][1].running_mean, fast.trunk[0][1].running_mean)


def test_learning_never_makes_the_host_wait():
    agent = Cloning(small_network(), task=small_landmark_task(), batch_size=8, supervision=OffsetSupervision())
    agent.learn()
    agent.optimizer.step = lambda: None
    with NoHostSync():
        agent.learn()


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="imitate"):
        Cloning(small_network(), task=small_landmark_task(), imitate="words")
