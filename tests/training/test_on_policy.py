"""Learners from whole rollouts under the trainer: its steps, its pool, its stages, and a resume to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.handlers import CheckpointSaver

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.cases import Cases
from medrl.environment import Environment
from medrl.networks.convolutional_policy import ConvolutionalPolicyNet
from medrl.rollout import Rollout
from medrl.tasks.landmark import LandmarkTask
from medrl.training.resume import TrainingState, load_latest
from medrl.training.stages import start_from

LENGTH = 5


def build(kind: str, cases: Cases, *, seed: int = 0) -> SimpleNamespace:
    """Walks of crops of 7^3, of a policy with a memory."""
    task = LandmarkTask(cases, size=7, step_mm=(4.5, 1.5), max_steps=12, near_mm=(2.5, 6.0, 12.0))
    torch.manual_seed(seed)
    network = ConvolutionalPolicyNet(channels=2, actions=7, size=(7, 7, 7), dims=3, width=4, hidden=16)
    environment = Environment(task, num_envs=6, seed=seed)
    rollout = Rollout(task, length=LENGTH, num_envs=6)
    options: dict[str, Any] = {"rollout": rollout, "minibatches": 2, "learning_rate": 1e-2, "seed": seed}
    if kind == "ppo":
        agent = PPO(network, epochs=2, anchor=0.1, **options)
    else:
        agent = PolicyCloning(network, environment=environment, mix_updates=4, **options)
    return SimpleNamespace(agent=agent, environment=environment, state=None)


@pytest.mark.parametrize("steps", [1, LENGTH])
def test_an_iteration_is_a_rollout(steps: int, cases: Cases, tiny: SimpleNamespace) -> None:
    built = build("ppo", cases)
    trainer = tiny.trainer(built, epoch_length=3, steps_per_update=steps)
    trainer.run()
    assert trainer.environment_steps == 3 * LENGTH * 6
    assert (built.agent.update, built.agent.rollout.time) == (3, 0)
    assert {"loss", "entropy", "kl", "anchor", "explained", "environment_steps"} <= trainer.state.log.keys()


@pytest.mark.parametrize("kind", ["ppo", "cloning"])
def test_resume_is_exact(kind: str, cases: Cases, tiny: SimpleNamespace, tmp_path: Path) -> None:
    def prepared(seed: int) -> SimpleNamespace:
        built = build(kind, cases, seed=seed)
        built.state = TrainingState(agent=built.agent, environment=built.environment)
        return built

    straight, first, second = prepared(3), prepared(3), prepared(8)
    tiny.trainer(straight, max_epochs=2, epoch_length=2, train_handlers=[straight.state]).run()
    saver = CheckpointSaver(str(tmp_path), {"training": first.state}, save_interval=1)
    tiny.trainer(first, max_epochs=1, epoch_length=2, train_handlers=[first.state, saver]).run()
    assert first.agent.memory.abs().sum() > 0
    trainer = tiny.trainer(second, max_epochs=2, epoch_length=2, train_handlers=[second.state])
    assert load_latest(tmp_path, {"training": second.state}, trainer)
    torch.manual_seed(99)
    trainer.run()
    one, two = straight.agent, second.agent
    assert one.update == two.update == 4
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert torch.equal(one.memory, two.memory)
    assert torch.equal(one.generator.get_state(), two.generator.get_state())
    assert all(torch.equal(a, b) for a, b in zip(straight.environment.state, second.environment.state, strict=True))
    assert not torch.equal(first.agent.network.policy_head[-1].bias, two.network.policy_head[-1].bias)


def test_rows_of_replaced_cases_forget(tiny: SimpleNamespace) -> None:
    pool = tiny.BlobPool()
    built = build("ppo", pool.cases)
    gone: list[torch.Tensor] = []
    restart = built.agent.restart

    def spy(mask: torch.Tensor) -> None:
        if built.agent.rollout.time == 0:
            gone.append(mask)
        restart(mask)

    built.agent.restart = spy
    tiny.trainer(built, epoch_length=1, pool=pool, refresh_every=1, refresh_count=2).run()
    (mask,) = gone
    assert mask.any()
    assert not mask.all()
    for memory in (built.agent.memory, built.agent.anchor_memory):
        kept = memory.flatten(1).abs().sum(1)
        assert (kept[mask] == 0).all()
    assert (built.agent.memory.flatten(1).abs().sum(1)[~mask] > 0).any()
    assert (built.environment.clock[mask] == 0).all()


def test_a_stage_anchors_where_the_one_before_ended(cases: Cases, tiny: SimpleNamespace) -> None:
    clone, agent = build("cloning", cases, seed=1), build("ppo", cases, seed=2)
    tiny.trainer(clone, epoch_length=2).run()
    weights = copy.deepcopy(clone.agent.average.state_dict())
    start_from(agent.agent, weights)
    tiny.trainer(agent, epoch_length=2).run()
    assert all(torch.equal(value, weights[name]) for name, value in agent.agent.anchor.state_dict().items())
    assert not torch.equal(agent.agent.network.policy_head[-1].bias, weights["policy_head.2.bias"])


def test_wrong_use_is_refused(cases: Cases, tiny: SimpleNamespace) -> None:
    built = build("cloning", cases)
    with pytest.raises(ValueError, match="takes 5 steps of 6 rows, not 6 of 6"):
        tiny.trainer(built, steps_per_update=6)
    few = Environment(built.environment.task, num_envs=3)
    with pytest.raises(ValueError, match="not 1 of 3"):
        tiny.trainer(SimpleNamespace(agent=built.agent, environment=few))
    with pytest.raises(ValueError, match="own environment"):
        tiny.trainer(SimpleNamespace(agent=built.agent, environment=Environment(built.environment.task, num_envs=6)))
    with pytest.raises(ValueError, match="give an environment"):
        tiny.trainer(SimpleNamespace(agent=built.agent, environment=None))
