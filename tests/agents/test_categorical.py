"""Several choices at once: sums over independent categoricals, one choice as ever; and agents that learn them."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from probes import Probe
from recall import mean_return, train
from torch.distributions import Categorical, kl_divergence

from medrl.agents.actor_critic import A2C, PPO
from medrl.agents.categorical import best, cross_entropy, divergence, draw, entropy, log_prob, one_hot, same, softmax
from medrl.agents.policy_cloning import PolicyCloning
from medrl.environment import Environment
from medrl.networks.policy import PolicyNet
from medrl.rollout import Rollout

NVEC = (3, 2)


def categoricals(logits):
    return [Categorical(logits=part) for part in logits.split(list(NVEC), -1)]


def test_sums_over_choices_equal_torchs(torch_generator):
    logits, other = torch.randn(2, 4, 7, 5, generator=torch_generator)
    action = torch.stack([torch.randint(n, (4, 7), generator=torch_generator) for n in NVEC], -1)
    parts, others = categoricals(logits), categoricals(other)
    expected = sum(part.log_prob(action[..., n]) for n, part in enumerate(parts))
    torch.testing.assert_close(log_prob(logits, action, NVEC), expected)
    torch.testing.assert_close(entropy(logits, NVEC), sum(part.entropy() for part in parts))
    expected = sum(kl_divergence(a, b) for a, b in zip(parts, others, strict=True))
    torch.testing.assert_close(divergence(logits, other, NVEC), expected)
    torch.testing.assert_close(softmax(logits, NVEC), torch.cat([part.probs for part in parts], -1))
    hot = one_hot(action[0], 5, NVEC)
    assert hot.sum(1).tolist() == [2.0] * 7
    torch.testing.assert_close(cross_entropy(logits[0], hot, NVEC), -log_prob(logits[0], action[0], NVEC))
    assert torch.equal(best(hot, NVEC), action[0])


def test_one_choice_of_a_vector_equals_a_plain_one(torch_generator):
    logits = torch.randn(50, 4, generator=torch_generator)
    plain = draw(logits, torch.Generator().manual_seed(1))
    several = draw(logits, torch.Generator().manual_seed(1), (4,))
    assert torch.equal(plain[:, None], several)
    assert torch.equal(log_prob(logits, plain), log_prob(logits, several, (4,)))
    assert torch.equal(entropy(logits), entropy(logits, (4,)))
    assert torch.equal(one_hot(plain, 4), one_hot(several, 4, (4,)))
    assert torch.equal(same(plain, plain.flip(0)), same(several, several.flip(0), (4,)))


def test_draws_have_the_right_shares():
    chance = torch.tensor([0.2, 0.5, 0.3, 0.9, 0.1])
    action = draw(chance.log().expand(20_000, 5), torch.Generator().manual_seed(0), NVEC)
    assert action.shape == (20_000, 2)
    shares = [(action[:, k] == n).float().mean() for k, count in enumerate(NVEC) for n in range(count)]
    assert [float(s) for s in shares] == pytest.approx(chance.tolist(), abs=0.015)
    assert float(((action[:, 0] == 1) & (action[:, 1] == 0)).float().mean()) == pytest.approx(0.45, abs=0.015)


class TwoChoices(Probe):
    """The first choice is worth 1 where it tells the sign, the second where it is 1."""

    def __init__(self) -> None:
        def reward(task, state, action, after):
            return 2.0 * (action[:, 0] == (state.sign > 0)) - 1 + 0.5 * (action[:, 1] == 1)

        super().__init__(reward)
        self.action_space = spaces.MultiDiscrete(NVEC)

    def expert(self, state):
        return torch.stack([(state.sign > 0).long(), torch.ones_like(state.sign).long()], 1)


@pytest.mark.parametrize("kind", [PPO, A2C, PolicyCloning])
@pytest.mark.parametrize("recurrent", [False, True])
def test_agents_learn_two_choices(kind, recurrent):
    task = TwoChoices()
    environment = Environment(task, num_envs=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PolicyNet(features=2, actions=NVEC, hidden=32, recurrent=recurrent)
    rollout = Rollout(task, length=4, num_envs=32)
    options = {"learning_rate": 2e-2, "updates": 10_000, "average": 3.0, "gamma": 0.5}
    if kind is PolicyCloning:
        options |= {"environment": environment, "mix_updates": 10}
    agent = kind(network, rollout=rollout, **options)
    action = agent.act(environment.reset(), explore=True).action
    assert action.shape == (32, 2)
    parts = train(agent, environment, 60 if kind is A2C else 25)
    assert mean_return(agent, Environment(task, num_envs=64, seed=9), 5) > 1.4  # 1.5 is all there is
    if kind is PolicyCloning:
        assert parts[-1]["agreement"] > 0.98
