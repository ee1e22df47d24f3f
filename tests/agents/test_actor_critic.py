"""A2C and PPO: losses by hand and against TorchRL's, probes with known answers, memory, anchor, exact resume."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from examples import ppo
from probes import NoHostSync, Probe
from recall import Recall, mean_return, train
from torch import nn

from medrl.agents.actor_critic import A2C, PPO, a2c_loss, ppo_loss
from medrl.agents.categorical import divergence, draw, entropy, log_prob
from medrl.agents.on_policy import mean, value_loss
from medrl.environment import Environment
from medrl.networks.policy import PolicyNet, unroll
from medrl.rollout import Rollout

GAMMA = 0.8


def build(kind, task, *, recurrent=False, rows=16, length=8, seed=0, **options):
    """An agent with a small dense policy, and its environment."""
    environment = Environment(task, num_envs=rows, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PolicyNet(features=2, actions=int(task.action_space.n), hidden=32, recurrent=recurrent)
    rollout = Rollout(task, length=length, num_envs=rows, keep_observation=recurrent)
    options = {"gamma": GAMMA, "learning_rate": 1e-2, "updates": 10_000, "average": 3.0, "seed": seed} | options
    return kind(network, rollout=rollout, **options), environment


def answers(agent, *rows):
    with torch.no_grad():
        return agent.average(torch.tensor(rows))


def test_losses_by_hand():
    old, new = torch.tensor([0.5, 0.5, 0.5, 0.5]).log(), torch.tensor([0.7, 0.7, 0.3, 0.55]).log()
    advantage = torch.tensor([2.0, -2.0, -1.0, 3.0])
    # ratios 1.4, 1.4, 0.6, 1.1 within 0.8 .. 1.2: clipped where that is less good, 1.2 * 2, 1.4 * -2, 0.8 * -1
    assert ppo_loss(new, old, advantage, clip=0.2).tolist() == pytest.approx([-2.4, 2.8, 0.8, -3.3])
    assert a2c_loss(torch.tensor([-0.5, -2.0]), torch.tensor([4.0, -1.0])).tolist() == [2.0, -2.0]
    value, target, before = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), torch.tensor([0.0, 2.5])
    assert value_loss(value, target).tolist() == [1.0, 1.0]
    # within 0.25 of the old values: 0.25 and 2.75; the larger of both errors counts
    assert value_loss(value, target, before, 0.25).tolist() == [1.75**2, 1.0]
    assert entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).tolist() == pytest.approx([0.6931472, 0.0])
    assert divergence(torch.tensor([0.75, 0.25]).log(), torch.zeros(2)).item() == pytest.approx(0.1308122)
    assert mean(torch.tensor([1.0, 5.0, torch.nan]), torch.tensor([True, True, False])).item() == 3.0


def test_clipping_stops_the_gradient():
    new = torch.tensor([0.7, 0.3, 0.7, 0.3]).log().requires_grad_()
    old, advantage = torch.full((4,), 0.5).log(), torch.tensor([1.0, -1.0, -1.0, 1.0])
    ppo_loss(new, old, advantage, clip=0.2).sum().backward()
    assert (new.grad != 0).tolist() == [False, False, True, True]  # no gain from going on, but the way back is open


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [None, 0.1])
def test_losses_equal_torchrls(clip, torch_generator):
    objectives = pytest.importorskip("torchrl.objectives")
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    torch.manual_seed(0)
    policy, critic = nn.Linear(3, 4), nn.Linear(3, 1)
    seen = torch.randn(32, 3, generator=torch_generator)
    action = torch.randint(4, (32,), generator=torch_generator)
    old_policy, old_value = copy.deepcopy(policy), torch.randn(32, generator=torch_generator)
    old_policy.bias.data += 0.5 * torch.randn(4, generator=torch_generator)
    old = log_prob(old_policy(seen).detach(), action)
    advantage, target = torch.randn(2, 32, generator=torch_generator)
    actor = modules.ProbabilisticActor(
        tensordict.nn.TensorDictModule(copy.deepcopy(policy), ["observation"], ["logits"]), ["logits"],
        distribution_class=torch.distributions.Categorical,
    )  # fmt: skip
    batch = tensordict.TensorDict(
        {
            "observation": seen, "action": action, "action_log_prob": old, "advantage": advantage[:, None],
            "value_target": target[:, None], "state_value": old_value[:, None],
        },
        [32],
    )  # fmt: skip
    value, chosen = critic(seen)[:, 0], log_prob(policy(seen), action)
    spread = entropy(policy(seen)).mean()
    options = {"entropy_coeff": 0.03, "critic_coeff": 0.5, "loss_critic_type": "l2", "clip_value": clip}

    operator = modules.ValueOperator(copy.deepcopy(critic), in_keys=["observation"])
    theirs = objectives.ClipPPOLoss(actor, operator, clip_epsilon=0.15, normalize_advantage=False, **options)(batch)
    ours = ppo_loss(chosen, old, advantage, clip=0.15)
    assert 0.1 < ((chosen - old).exp() - 1).abs().gt(0.15).float().mean() < 0.9
    torch.testing.assert_close(ours.mean(), theirs["loss_objective"])
    torch.testing.assert_close(-0.03 * spread, theirs["loss_entropy"])
    torch.testing.assert_close(0.5 * value_loss(value, target, old_value, clip).mean(), theirs["loss_critic"])

    operator = modules.ValueOperator(copy.deepcopy(critic), in_keys=["observation"])
    theirs = objectives.A2CLoss(actor, operator, **options)(batch)
    torch.testing.assert_close(a2c_loss(chosen, advantage).mean(), theirs["loss_objective"])
    torch.testing.assert_close(-0.03 * spread, theirs["loss_entropy"])
    torch.testing.assert_close(0.5 * value_loss(value, target, old_value, clip).mean(), theirs["loss_critic"])


def test_the_total_is_the_sum_of_its_parts():
    agent, environment = build(PPO, Recall(), recurrent=True, epochs=1, minibatches=1, entropy=0.3, anchor=0.7)
    train(agent, environment, 1)
    agent.network.policy_head[-1].bias.data += torch.tensor([0.4, -0.4])
    (parts,) = train(agent, environment, 1)
    expected = parts["policy_loss"] + 0.5 * parts["value_loss"] - 0.3 * parts["entropy"] + 0.7 * parts["anchor"]
    torch.testing.assert_close(parts["loss"], expected)
    assert parts["kl"].abs() < 1e-6  # the first pass is over the policy that acted
    assert parts["anchor"] > 0.01


def test_actions_are_drawn_with_their_probabilities(torch_generator):
    chance = torch.tensor([0.6, 0.3, 0.1, 0.0])
    drawn = draw(chance.log().expand(20_000, 4), torch_generator)
    assert (drawn.bincount(minlength=4) / 20_000 - chance).abs().max() < 0.015
    assert not (drawn == 3).any()


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_probe_constant_reward(kind):
    agent, environment = build(kind, Probe(lambda task, s, a, n: torch.ones(len(a)), actions=1))
    train(agent, environment, 120 if kind is A2C else 20)
    assert answers(agent, [1.0, 0.0], [-1.0, 0.0]).value.tolist() == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("recurrent", [False, True])
def test_probe_delayed_reward_is_discounted(recurrent):
    task = Probe(lambda task, s, a, n: (n.age == 2).float(), length=2, actions=1)
    agent, environment = build(PPO, task, recurrent=recurrent, length=7, minibatches=1)
    train(agent, environment, 40)
    first = answers(agent, [1.0, 0.0])
    with torch.no_grad():
        second = agent.average(torch.tensor([[1.0, 1.0]]), first.memory)
    assert [first.value.item(), second.value.item()] == pytest.approx([GAMMA, 1.0], abs=0.1)


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_probe_reward_of_the_action_that_fits_the_observation(kind):
    agent, environment = build(kind, Probe(lambda task, s, a, n: (2.0 * a - 1) * s.sign))
    train(agent, environment, 120 if kind is A2C else 20)
    assert agent.act(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).action.tolist() == [1, 0]
    chance = answers(agent, [1.0, 0.0], [-1.0, 0.0]).logits.softmax(-1)
    assert chance[[0, 1], [1, 0]].min() > 0.8


@pytest.mark.parametrize("recurrent", [False, True])
def test_truncation_is_not_termination(recurrent):
    """A reward of 1 - gamma for ever is worth 1, however short the clock; cut at the limit it would be worth less."""
    task = Probe(lambda task, s, a, n: torch.full((len(a),), 1 - GAMMA), length=2, actions=1, endless=True)
    task.observe = lambda state: torch.zeros(len(state.sign), 2)  # the clock is not seen
    agent, environment = build(PPO, task, recurrent=recurrent, learning_rate=2e-2, length=5, minibatches=1)
    train(agent, environment, 50)
    assert answers(agent, [0.0, 0.0]).value.item() == pytest.approx(1.0, abs=0.1)


def test_only_a_memory_recalls_the_first_observation():
    reached = {}
    for recurrent in (False, True):
        agent, environment = build(PPO, Recall(), recurrent=recurrent, rows=32, length=7, minibatches=2)
        train(agent, environment, 40)
        reached[recurrent] = mean_return(agent, Environment(environment.task, num_envs=64, seed=9), 30)
    assert reached[True] > 0.95
    assert abs(reached[False]) < 0.3


def test_learning_starts_from_what_was_acted():
    """The answers while acting, and those over whole sequences before the first step, are the same."""
    agent, environment = build(PPO, Recall(), recurrent=True, length=5)
    train(agent, environment, 2)  # a rollout starts in the middle of episodes
    agent.learn = lambda: {}
    environment.observe()
    for _ in range(5):
        state, action = environment.state, agent.act(environment.observe(), explore=True).action
        agent.record(state, action, environment.step(action))
    sample = agent.rollout.sequences(torch.arange(16))
    assert sample.reset.any()
    assert not sample.reset[0].all()
    assert (sample.memory.abs().sum(1) > 0).any()
    output = unroll(agent.network, sample.observation, sample.memory, sample.reset)
    torch.testing.assert_close(output.value, sample.values["value"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        log_prob(output.logits, sample.values["action"]), sample.values["log_prob"], atol=1e-5, rtol=1e-4
    )


def test_values_of_successors_are_those_of_the_memory_before_the_reset():
    task = Recall(length=3)
    task.terminated = lambda state: torch.zeros_like(state.age, dtype=torch.bool)
    task.max_steps = 2
    agent, environment = build(PPO, task, recurrent=True, rows=4, length=2)
    state = environment.reset() is not None and environment.state
    sign = state.sign
    first = agent.network(task.observe(state))
    for _ in range(2):
        state, action = environment.state, agent.act(environment.observe(), explore=True).action
        agent.record(state, action, environment.step(action))
    assert (agent.memory == 0).all()  # cut, so what follows starts anew
    seen = [torch.stack([torch.zeros(4), torch.full((4,), age)], 1) for age in (1.0, 2.0)]
    second = agent.network(seen[0], first.memory)
    expected = agent.network(seen[1], second.memory).value
    ends, memory = agent.rollout.successors()
    values = agent.network(task.observe(ends), memory).value.reshape(-1, 4)[-1]
    assert torch.equal(ends.sign.reshape(-1, 4)[-1], sign)
    torch.testing.assert_close(values, expected)


def test_act_with_a_memory_leaves_the_training_alone():
    agent, environment = build(PPO, Recall(), recurrent=True)
    train(agent, environment, 1)
    kept = agent.memory.clone()
    seen = environment.observe()
    decision = agent.act(seen, agent.memory, explore=True)
    assert decision.memory.shape == kept.shape
    assert not torch.equal(decision.memory, kept)
    assert agent.act(seen[:3], explore=True).memory.shape == (3, 32)
    assert agent.act(seen).memory.shape == kept.shape
    assert torch.equal(agent.memory, kept)
    with pytest.raises(RuntimeError, match="record follows act"):
        agent.record(environment.state, decision.action, environment.step(decision.action))
    agent.restart(torch.arange(16) < 4)
    assert (agent.memory[:4] == 0).all()
    assert torch.equal(agent.memory[4:], kept[4:])


def test_the_anchor_is_the_policy_before_the_first_update():
    """It keeps learning near, and remembers with a memory of its own across rollouts."""
    moved = {}
    for weight in (0.01, 30.0):
        agent, environment = build(PPO, Recall(), recurrent=True, length=4, anchor=weight)
        agent.network.policy_head[-1].weight.data.normal_(generator=torch.Generator().manual_seed(1))  # a warm start
        start = copy.deepcopy(agent.network)
        parts = train(agent, environment, 15)
        moved[weight] = float(torch.stack([p["anchor"] for p in parts[5:]]).mean())
        assert all(torch.equal(a, b) for a, b in zip(start.parameters(), agent.anchor.parameters(), strict=True))
        assert not any(p.requires_grad for p in agent.anchor.parameters())
    assert moved[30.0] < 0.05 * moved[0.01]


def test_the_anchor_carries_its_memory_over():
    agent, environment = build(PPO, Recall(length=9), recurrent=True, rows=4, length=4, anchor=1.0)
    memory, logits = agent.anchor.initial_memory(4, "cpu"), []
    put = agent.rollout.put
    agent.rollout.put = lambda name, value: (logits.append(value) if name == "anchor" else None, put(name, value))
    seen, expected = environment.reset(), []
    while len(logits) < 3:
        state, action = environment.state, agent.act(seen, explore=True).action
        with torch.no_grad():
            output = agent.anchor(seen, memory)
        expected.append(output.logits)
        step = environment.step(action)
        ended = (step.terminated | step.truncated)[:, None]
        memory, seen = torch.where(ended, 0.0, output.memory), step.observation
        agent.record(state, action, step)
        if agent.ready:
            agent.learn()
    torch.testing.assert_close(torch.cat(logits), torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent.anchor_memory, memory, atol=1e-5, rtol=1e-4)


def test_minibatches_cover_the_rollout_once():
    for recurrent, unit in ((False, 6 * 8), (True, 6)):
        agent, environment = build(PPO, Recall(), recurrent=recurrent, rows=6, minibatches=4)
        agent.learn = lambda: {}
        train(agent, environment, 1)
        agent.rollout.put("number", torch.arange(48).reshape(8, 6))
        parts = [sample.values["number"] for sample in agent.samples()]
        assert len(parts) == 4
        assert torch.cat([p.flatten() for p in parts]).sort().values.tolist() == list(range(48))
        assert max(p.shape[1] for p in parts) - min(p.shape[1] for p in parts) <= 1
        assert {p.shape[0] for p in parts} == {8 if recurrent else 1}
        with pytest.raises(ValueError, match=f"must be 1 to {unit}"):
            build(PPO, Recall(), recurrent=recurrent, rows=6, minibatches=unit + 1)


@pytest.mark.parametrize("recurrent", [False, True])
def test_resume_is_exact_in_the_middle_of_a_rollout(recurrent):
    def make(seed=0):
        return build(PPO, Recall(), recurrent=recurrent, length=6, anchor=0.1, seed=seed)

    def steps(agent, environment, count):
        parts = []
        for _ in range(count):
            state, action = environment.state, agent.act(environment.observe(), explore=True).action
            agent.record(state, action, environment.step(action))
            if agent.ready:
                parts.append(agent.learn())
        return parts

    (one, world), (two, other) = make(), make(seed=5)
    world.reset()
    steps(one, world, 6 + 6 + 4)
    file = io.BytesIO()
    torch.save([one.state_dict(), one.extra_state(), world.state_dict()], file)
    file.seek(0)
    networks, extra, where = torch.load(file, weights_only=True)
    two.load_state_dict(networks)
    two.load_extra_state(extra)
    other.load_state_dict(where)
    for first, second in zip(steps(one, world, 14), steps(two, other, 14), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_gradient_hook_is_called_at_every_step():
    agent, environment = build(PPO, Recall(), epochs=3, minibatches=2)
    before, calls = copy.deepcopy(agent.network), []

    def hook(parameters):
        calls.append(sum(float(p.grad.abs().sum()) for p in parameters if p.grad is not None))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    agent.gradient_hook = hook
    train(agent, environment, 1)
    assert len(calls) == 6
    assert min(calls) > 0
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), agent.network.parameters(), strict=True))


def test_learning_before_the_rollout_is_full_says_so():
    agent, _ = build(A2C, Recall())
    with pytest.raises(RuntimeError, match="0 of 8 steps"):
        agent.learn()


def test_learning_never_makes_the_host_wait():
    agent, environment = ppo()
    train(agent, environment, 1)
    agent.optimizer.step = lambda: None  # on the CPU its clock is read; on an accelerator that clock stays on the host
    with NoHostSync():
        train(agent, environment, 2)
