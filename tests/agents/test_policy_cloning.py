"""Cloning a policy: follows the oracle where the learner goes, values what was done, and hands over to PPO."""

from __future__ import annotations

import pytest
import torch
from examples import policy_cloning
from probes import NoHostSync, Probe
from recall import Gains, Recall, mean_return, train

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.environment import Environment
from medrl.networks.policy import PolicyNet
from medrl.rollout import Rollout


def build(task, *, recurrent=False, rows=32, length=7, seed=0, **options):
    environment = Environment(task, num_envs=rows, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PolicyNet(features=2, actions=2, hidden=32, recurrent=recurrent)
    rollout = Rollout(task, length=length, num_envs=rows)
    options = {"learning_rate": 1e-2, "updates": 10_000, "average": 3.0, "mix_updates": 20, "seed": seed} | options
    return PolicyCloning(network, rollout=rollout, environment=environment, **options), environment


def test_only_a_memory_clones_an_oracle_that_knows_the_first_observation():
    reached = {}
    for recurrent in (False, True):
        agent, environment = build(Recall(), recurrent=recurrent)
        parts = train(agent, environment, 40)
        reached[recurrent] = mean_return(agent, Environment(environment.task, num_envs=64, seed=9), 30)
    assert parts[-1]["agreement"] > 0.98
    assert reached[True] > 0.95
    assert abs(reached[False]) < 0.3


def test_the_value_is_the_discounted_return():
    task = Probe(lambda task, s, a, n: (n.age == 3) * s.sign, length=3)
    agent, environment = build(task, gamma=0.5, length=8)
    train(agent, environment, 80)
    with torch.no_grad():
        value = agent.average(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [-1.0, 2.0]])).value
    assert value.tolist() == pytest.approx([0.25, 0.5, 1.0, -1.0], abs=0.1)


def test_the_policy_learns_the_softmax_of_the_gains():
    agent, environment = build(Gains(lambda task, s, a, n: s.sign), temperature=2.0)
    train(agent, environment, 80)
    with torch.no_grad():
        chance = agent.average(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).logits.softmax(-1)
    right = float(torch.sigmoid(torch.tensor(1.0)))  # e^0.5 / (e^0.5 + e^-0.5)
    assert chance[:, 1].tolist() == pytest.approx([right, 1 - right], abs=0.03)


def test_the_policy_takes_over_from_the_oracle():
    agent, environment = build(Recall(), rows=2000, length=1, mix_updates=10)
    agent.network.policy_head[-1].bias.data.copy_(torch.tensor([50.0, -50.0]))  # always the first action
    seen = environment.reset()
    positive = environment.state.sign > 0  # where the oracle takes the second
    for update, share in ((0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0)):
        agent.update = update
        assert agent.share == share
        action = agent.act(seen, explore=True).action
        assert (action[~positive] == 0).all()
        assert float((action[positive] == 0).float().mean()) == pytest.approx(share, abs=0.05)
    agent.update = 0
    assert (agent.act(seen[:7], explore=True).action == 0).all()  # other rows than the environment's: no oracle
    assert build(Recall(), mix_updates=0)[0].share == 1.0


def test_a_clone_is_improved():
    """What the oracle believes is wrong in one of two cases; reward finds that out, from the clone's own weights on."""

    class Doubtful(Gains):
        def action_gains(self, state):
            return torch.stack([-torch.ones_like(state.sign), torch.ones_like(state.sign)], 1)

    task = Doubtful(lambda task, s, a, n: (2.0 * a - 1) * s.sign)
    clone, environment = build(task, temperature=2.0, mix_updates=0)
    train(clone, environment, 25)
    judge = Environment(task, num_envs=64, seed=9)
    assert abs(mean_return(clone, judge, 20)) < 0.2
    network = PolicyNet(features=2, actions=2, hidden=32)
    network.load_state_dict(clone.average.state_dict())
    rollout = Rollout(task, length=7, num_envs=32)
    agent = PPO(network, rollout=rollout, gamma=0.9, learning_rate=1e-2, average=3.0, anchor=0.01)
    train(agent, Environment(task, num_envs=32, seed=1), 20)
    assert mean_return(agent, judge, 20) > 0.95


def test_wrong_use_is_refused():
    agent, environment = build(Recall())
    options = {"rollout": agent.rollout, "environment": environment}
    with pytest.raises(ValueError, match="temperature"):
        PolicyCloning(agent.network, temperature=0.0, **options)
    with pytest.raises(ValueError, match="environment's task"):
        PolicyCloning(agent.network, **options | {"environment": Environment(environment.task, num_envs=3)})
    with pytest.raises(ValueError, match="environment's task"):
        PolicyCloning(agent.network, **options | {"environment": Environment(Recall(), num_envs=32)})


@pytest.mark.parametrize("gains", [False, True])
def test_learning_never_makes_the_host_wait(gains):
    agent, environment = policy_cloning() if not gains else build(Gains(lambda task, s, a, n: s.sign), rows=8)
    train(agent, environment, 1)
    agent.optimizer.step = lambda: None
    with NoHostSync():
        train(agent, environment, 2)
