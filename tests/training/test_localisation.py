"""Guidance, oracle returns, and what the training of localisation agents keeps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from box_examples import small_localisation_task, small_volume_task

from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.agents.oracle import oracle_returns
from medrl.agents.supervision import OverlapSupervision
from medrl.bundle import read_settings
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.localisation import BoxRegressor, LocalisationNet
from medrl.training.guidance import PositiveReward
from medrl.training.localisation import BestLocaliser, LocalisationEvaluator, finish
from medrl.types import InputError, rows


def small_network(task, seed=0):
    torch.manual_seed(seed)
    return LocalisationNet(
        channels=task.cases.channels, dims=task.cases.dims, actions=task.trigger + 1, view=task.view, width=4, hidden=16
    )


def test_guided_actions_earn_a_positive_reward():
    environment = Environment(small_localisation_task(), num_envs=16, seed=0)
    environment.reset()
    allowed = PositiveReward(environment)()
    task, state = environment.task, environment.state
    assert allowed.shape == (16, 9)
    for action in range(9):
        chosen = torch.full((16,), action)
        earned = task.reward(state, chosen, task.advance(state, chosen))
        assert torch.equal(allowed[:, action], earned > 0)
    empty = ~task.cases.present[state.case.long()].any(1)
    assert empty.any()
    assert not allowed[empty].any()


def test_exploration_stays_among_the_guided_actions():
    environment = Environment(small_localisation_task(), num_envs=64, seed=0)
    guide = PositiveReward(environment)
    replay = Replay(environment.task, capacity=640, num_envs=64)
    agent = DQN(
        small_network(environment.task), replay=replay, guide=guide, epsilon=(1.0, 1.0), warm_up=64, batch_size=16,
        bf16=False, supervision=OverlapSupervision(),
    )  # fmt: skip
    seen, drawn = environment.reset(), []
    for _ in range(12):
        state, allowed = environment.state, guide()
        action = agent.act(seen, explore=True).action
        right = allowed.gather(1, action[:, None])[:, 0]
        assert (right | ~allowed.any(1)).all()
        drawn.append(action[~allowed.any(1)])
        step = environment.step(action)
        agent.record(state, action, step)
        seen = step.observation
    assert len(torch.cat(drawn).unique()) == 9  # where none is right, any
    parts = agent.learn()
    assert {"loss", "overlap", "td_error"} <= parts.keys()


def test_oracle_returns_by_hand():
    task = small_localisation_task()
    state = task.start(torch.tensor([0]), box=task.cases.boxes[0, :1])
    earned = oracle_returns(task, state, gamma=0.5, horizon=0)
    assert earned[0, 8] == 3.0  # the box fits: trigger
    assert (earned[0, :8] == -1.0).all()
    later = oracle_returns(task, state, gamma=0.5, horizon=3)
    assert later[0, 8] == 3.0  # nothing after the end
    one = task.advance(state, torch.tensor([0]))
    reward, total, weight = [], float(task.reward(state, torch.tensor([0]), one)), 0.5
    for _ in range(3):
        action = task.expert(one)
        after = task.advance(one, action)
        reward.append(float(task.reward(one, action, after)))
        total += weight * reward[-1]
        if bool(task.terminated(after)):
            break
        one, weight = after, weight * 0.5
    assert float(later[0, 0]) == pytest.approx(total)


@pytest.mark.parametrize("imitate", ["returns", "gains", "actions"])
def test_cloning_learns(imitate):
    task = small_localisation_task()
    agent = Cloning(
        small_network(task), task=task, imitate=imitate, batch_size=64, bf16=False, supervision=OverlapSupervision(),
        learning_rate=3e-3, updates=200, average=10,
    )  # fmt: skip
    losses = [float(agent.learn()["loss"]) for _ in range(80)]
    assert sum(losses[-16:]) < 0.97 * sum(losses[:16])


@pytest.mark.parametrize("task", [small_localisation_task(), small_volume_task()], ids=["2d", "3d"])
def test_networks_have_the_shapes_they_say(task):
    network = small_network(task).eval()
    state = task.sample(5, torch.Generator().manual_seed(0))
    seen = task.observe(state)
    output = network(seen)
    assert output.shape == (5, task.trigger + 2)
    heads = network.split(output)
    assert heads.q.shape == (5, 1, 1, task.trigger + 1)
    assert torch.equal(network.action_values(output)[:, 0], heads.q[:, 0, 0])
    alone = network(task.observe(rows(state, torch.tensor([3]))))
    torch.testing.assert_close(alone[0], output[3], atol=1e-5, rtol=1e-5)
    page = seen.clone()
    page[:, -1] = 0
    other = network(page)
    assert not torch.equal(other[:, :-1], output[:, :-1])  # the history tells what to do
    assert torch.equal(other[:, -1], output[:, -1])  # but not what is in the box
    regressor = BoxRegressor(channels=task.cases.channels, dims=task.cases.dims, view=task.view, width=4, hidden=16)
    box, logit = regressor(seen[:, :-1])
    assert box.shape == (5, 2 * task.cases.dims)
    assert logit.shape == (5,)
    assert (box[:, : task.cases.dims] < box[:, task.cases.dims :]).all()


def test_the_best_network_is_kept_with_its_calibration(tmp_path):
    task = small_localisation_task()
    (tmp_path / "agent.json").write_text(json.dumps({"other": {"category": "x"}}))
    best = BestLocaliser(tmp_path, settings={"inference": {"longest": 32}}, name="model")
    network = small_network(task)
    evaluator = LocalisationEvaluator(device="cpu", task=task, network=network, limit=2, val_handlers=[best])
    evaluator.run()
    assert {"val_ap50", "val_iou", "val_steps", "val_triggered"} <= evaluator.state.metrics.keys()
    finish(best, SimpleNamespace(average=network), task.cases, {"view": 12, "crosses": 1})
    assert read_settings(tmp_path, "other") == {"category": "x"}
    settings = read_settings(tmp_path, "model")["inference"]
    assert settings["longest"] == 32
    assert 0 <= settings["threshold"] <= 1
    assert len(settings["calibration"]) == 2
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == network.state_dict().keys()
    restored = BestLocaliser(tmp_path, settings={})
    restored.load_state_dict(best.state_dict())
    assert restored.best == best.best
    with pytest.raises(InputError, match="weights 'none' are unknown; expected one of model, other"):
        read_settings(tmp_path, "none")
