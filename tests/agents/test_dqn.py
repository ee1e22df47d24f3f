"""DQN: its loss by hand, probe environments with known values, and what the peers' learners get wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from examples import dqn, small_network
from probes import NoHostSync, Probe, small_landmark_task
from torch import nn

from medrl.agents.dqn import DQN, double_q_loss
from medrl.agents.supervision import OffsetSupervision
from medrl.data.cases import Cases
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.concentric import ConcentricNet
from medrl.networks.fovea import FoveaNet
from medrl.tasks.landmark import LandmarkTask

GAMMA = 0.8


def test_double_q_loss_by_hand():
    q = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.5, 0.0]]])  # (2, 1, 3)
    action = torch.tensor([2, 1])
    reward, discount = torch.tensor([[1.0], [0.25]]), torch.tensor([[0.5], [0.5]])
    terminated = torch.tensor([[False], [True]])
    online = torch.tensor([[[9.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]]])
    target = torch.tensor([[[4.0, 8.0, 6.0]], [[7.0, 7.0, 7.0]]])
    # first: online chooses action 0, target values it 4: 1 + 0.5 * 4 - 3 = 0, plain would take 8: 1 + 4 - 3 = 2
    # second: terminated, so 0.25 - 0.5
    loss, error = double_q_loss(q, action, reward, discount, terminated, online, target)
    assert error[:, 0].tolist() == [0.0, -0.25]
    assert loss[:, 0].tolist() == pytest.approx([0.0, 0.5 * 0.25**2])
    loss, error = double_q_loss(q, action, reward, discount, terminated, target, target)
    assert error[:, 0].tolist() == [2.0, -0.25]
    assert loss[:, 0].tolist() == pytest.approx([2 - 0.5, 0.5 * 0.25**2])  # Huber: linear beyond 1


def test_every_head_has_its_own_loss(torch_generator):
    q, online, target = torch.randn(3, 5, 4, 6, generator=torch_generator)
    reward = torch.randn(5, 4, generator=torch_generator)
    action = torch.randint(6, (5,), generator=torch_generator)
    discount, terminated = torch.full((5, 1), 0.9), torch.tensor([[False]] * 4 + [[True]])
    together, _ = double_q_loss(q, action, reward, discount, terminated, online, target)
    for head in range(4):
        pick = slice(head, head + 1)
        alone, _ = double_q_loss(
            q[:, pick], action, reward[:, pick], discount, terminated, online[:, pick], target[:, pick]
        )
        torch.testing.assert_close(together[:, pick], alone)


@pytest.mark.filterwarnings("ignore")
def test_loss_equals_torchrls(torch_generator):
    objectives = pytest.importorskip("torchrl.objectives")
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    online, target = nn.Linear(3, 4), nn.Linear(3, 4)
    actor = modules.QValueActor(copy.deepcopy(online), in_keys=["observation"], action_space="categorical")
    options = {"loss_function": "smooth_l1", "delay_value": True, "double_dqn": True, "action_space": "categorical"}
    theirs = objectives.DQNLoss(actor, **options)
    theirs.make_value_estimator(gamma=0.9)
    parameters = dict(theirs.target_value_network_params.flatten_keys(".").items())
    for name, value in target.named_parameters():
        next(p for key, p in parameters.items() if key.endswith(name)).data.copy_(value)
    seen, after = torch.randn(2, 8, 3, generator=torch_generator)
    action, reward = torch.randint(4, (8,), generator=torch_generator), torch.randn(8, 1, generator=torch_generator)
    ended = torch.arange(8)[:, None] < 2
    then = {"observation": after, "reward": reward, "done": ended, "terminated": ended}
    batch = tensordict.TensorDict({"observation": seen, "action": action, "next": then}, [8])
    discount = torch.full((8, 1), 0.9)
    loss, _ = double_q_loss(
        online(seen)[:, None], action, reward, discount, ended, online(after)[:, None], target(after)[:, None]
    )
    torch.testing.assert_close(loss.mean(), theirs(batch)["loss"])


def play(agent: DQN, environment: Environment, steps: int, *, learn: bool = False, seed: int | None = None) -> Any:
    """Explore, record and, if so asked, learn for some steps from a reset; returns the last observation."""
    seen = environment.reset(seed=seed)
    for _ in range(steps):
        state, action = environment.state, agent.act(seen, explore=True).action
        step = environment.step(action)
        agent.record(state, action, step)
        seen = step.observation
        if learn and agent.ready:
            agent.learn()
    return seen


def learnt(task: Probe, *, n: int = 1, updates: int = 250, **options) -> DQN:
    """An agent trained on a probe, its values a small dense network over (sign, age)."""
    environment = Environment(task, num_envs=16)
    replay = Replay(task, capacity=1600, num_envs=16, n=n, gamma=GAMMA, alpha=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, int(task.action_space.n)))
    options = {"target_half_life": 5.0, "average": 5.0, "epsilon": (1.0, 1.0)} | options
    agent = DQN(
        network, replay=replay, batch_size=64, warm_up=64, updates=updates, learning_rate=2e-2, weight_decay=0.0,
        bf16=False, **options,
    )  # fmt: skip
    play(agent, environment, 40)
    for _ in range(updates):
        agent.learn()
    return agent


def values(agent: DQN, sign: float, age: float) -> list[float]:
    with torch.no_grad():
        return agent.average(torch.tensor([[float(sign), float(age)]]))[0].tolist()


def test_probe_constant_reward():
    agent = learnt(Probe(lambda task, s, a, n: torch.ones(len(a)), actions=1))
    assert values(agent, 1, 0) + values(agent, -1, 0) == pytest.approx([1.0, 1.0], abs=0.1)


def test_probe_reward_seen_in_the_observation():
    agent = learnt(Probe(lambda task, s, a, n: s.sign, actions=1))
    assert values(agent, 1, 0) + values(agent, -1, 0) == pytest.approx([1.0, -1.0], abs=0.1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_probe_delayed_reward_is_discounted(n):
    agent = learnt(Probe(lambda task, s, a, n: (n.age == 3).float(), length=3, actions=1), n=n)
    assert [values(agent, 1, age)[0] for age in range(3)] == pytest.approx([GAMMA**2, GAMMA, 1.0], abs=0.1)


def test_probe_reward_of_the_action():
    agent = learnt(Probe(lambda task, s, a, n: 2.0 * a - 1))
    assert values(agent, 1, 0) == pytest.approx([-1.0, 1.0], abs=0.1)


def test_probe_reward_of_the_action_that_fits_the_observation():
    agent = learnt(Probe(lambda task, s, a, n: (2.0 * a - 1) * s.sign))
    assert values(agent, 1, 0) == pytest.approx([-1.0, 1.0], abs=0.15)
    assert values(agent, -1, 0) == pytest.approx([1.0, -1.0], abs=0.15)
    assert agent.act(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).action.tolist() == [1, 0]


@pytest.mark.parametrize("double", [True, False])
def test_truncation_is_not_termination(double):
    """A reward of 1 - gamma for ever is worth 1, however short the clock; cut at the limit it would be worth less."""
    task = Probe(lambda task, s, a, n: torch.full((len(a),), 1 - GAMMA), length=2, actions=1, endless=True)
    task.observe = lambda state: torch.stack([state.sign, torch.zeros(len(state.sign))], 1)  # the clock is not seen
    agent = learnt(task, updates=400, double=double)
    assert values(agent, 1, 0)[0] == pytest.approx(1.0, abs=0.1)


def test_target_follows_updates_not_episodes():
    """gml16/rl-medical copies the target by a count of episodes, in fact after every one."""
    agent, environment = dqn()
    play(agent, environment, 40)  # several episodes end
    first = {name: value.clone() for name, value in agent.target.state_dict().items()}
    assert all(torch.equal(first[k], v) for k, v in agent.network.state_dict().items())  # nothing learnt, nothing moved
    expected = {name: value.clone() for name, value in agent.target.named_parameters()}
    for update in range(1, 8):
        agent.learn()
        keep = min(0.5 ** (1 / 200), update / (update + 10))
        for name, value in agent.network.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * value.detach()
    for name, value in agent.target.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_exploration_falls_with_the_updates(torch_generator):
    agent = dqn().agent
    agent.epsilon_range, agent.explore_updates = (0.8, 0.2), 10
    image = torch.randint(256, (4000, 2, 5, 5, 5), generator=torch_generator, dtype=torch.uint8)
    seen = {"image": image, "scale": torch.zeros(4000, dtype=torch.int64), "head": torch.zeros(4000, dtype=torch.int64)}
    greedy = agent.act(seen).action
    for update, epsilon in ((0, 0.8), (5, 0.5), (10, 0.2), (1000, 0.2)):
        agent.update = update
        assert agent.epsilon == pytest.approx(epsilon)
        changed = float((agent.act(seen, explore=True).action != greedy).float().mean())
        assert changed == pytest.approx(epsilon * 6 / 7, abs=0.03)


def test_train_only_leaves_the_rest_and_its_statistics_alone():
    example, environment = dqn()
    agent = DQN(small_network(), replay=example.replay, batch_size=16, warm_up=24, train_only="value_head")
    before = {name: value.clone() for name, value in agent.network.state_dict().items()}
    play(agent, environment, 12, learn=True)
    changed = {name for name, value in agent.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"value_head.weight", "value_head.bias"}


def test_warm_up_that_never_ends_is_refused():
    agent = dqn().agent
    with pytest.raises(ValueError, match="never reached"):
        DQN(small_network(), replay=agent.replay, warm_up=1000)


@pytest.mark.parametrize("name", ["concentric", "fovea"])
def test_learning_never_makes_the_host_wait(name):
    task = small_landmark_task(size=9)
    options = {"landmarks": 2, "size": 9, "scales": 2, "width": 4, "hidden": 16}
    fovea = name == "fovea"
    network = FoveaNet(strides=(1, 2), spacing_mm=2.0, **options) if fovea else ConcentricNet(levels=2, **options)
    environment = Environment(task, num_envs=8)
    replay = Replay(task, capacity=160, num_envs=8, n=3, alpha=0.6)
    agent = DQN(network, replay=replay, batch_size=8, warm_up=24, imitation=0.1, supervision=OffsetSupervision())
    seen = play(agent, environment, 10)
    agent.learn()
    agent.optimizer.step = lambda: None  # on the CPU its clock is read; on an accelerator that clock stays on the host
    with NoHostSync():
        action = agent.act(seen, explore=True).action
        step = environment.step(action)
        agent.record(environment.state, action, step)
        agent.learn()


def small_walk(seed: int = 0) -> LandmarkTask:
    """One blob in each of four volumes; crops of 9^3 at two levels."""
    generator = torch.Generator().manual_seed(seed)
    volumes, points = [], torch.rand(4, 1, 3, generator=generator) * 16 - 8
    axes = torch.stack(torch.meshgrid(*[(torch.arange(24.0) - 11.5) * 2] * 3, indexing="ij"), -1)
    for point in points[:, 0]:
        distance = (axes - point).norm(dim=-1)
        volumes.append((1 + 254 * torch.exp(-distance / 15)).to(torch.uint8))
    cases = Cases(volumes, points, labels=["blob"], spacing_mm=2.0, strides=(1, 2))
    return LandmarkTask(cases, size=9, step_mm=(4.0, 2.0), max_steps=20, start="anywhere")


def test_dqn_walks_far_better_than_chance():
    task = small_walk()
    environment = Environment(task, num_envs=32)
    replay = Replay(task, capacity=6400, num_envs=32, n=1, gamma=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConcentricNet(landmarks=1, levels=2, size=9, scales=2, width=8, hidden=64)
    agent = DQN(
        network, replay=replay, batch_size=32, warm_up=320, updates=200, explore_updates=100, learning_rate=2e-3,
        average=20.0, target_half_life=20.0,
    )  # fmt: skip
    play(agent, environment, 209, learn=True, seed=1)
    assert agent.update == 200  # the first after 10 steps
    distance = {}
    for name in ("trained", "random"):
        trial = Environment(task, num_envs=64, seed=2)
        seen, ends = trial.reset(), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            action = agent.act(seen).action if name == "trained" else torch.randint(7, (64,), generator=generator)
            step = trial.step(action)
            ends.append(-step.metrics["score"][step.metrics["ended"]])
            seen = step.observation
        distance[name] = float(torch.cat(ends).median())
    assert distance["trained"] < 5.0  # mm; steps are of 2 mm
    assert distance["random"] > 12.0
