"""Registration of images that the policy sees: the 2D setting of Sun et al. 2018, and volumes."""

from __future__ import annotations

import math

import pytest
import torch
from probes import small_image_task
from recall import train

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.image_pairs import ImagePairs
from medrl.environment import Environment
from medrl.networks.convolutional_policy import ConvolutionalPolicyNet
from medrl.rewards.scores import AtStop, Score
from medrl.rollout import Rollout
from medrl.tasks.image_registration import ImageRegistrationTask


def test_the_papers_actions():
    """One pixel along x and y, one degree, 0.05 of the size, both signs, and stop."""
    task = small_image_task()
    assert task.action_space.n == 9
    start = task.at(torch.zeros(8, dtype=torch.int64))
    after = task.advance(start, torch.arange(8))
    assert after.translation_mm.tolist() == [[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0]] + [[0, 0, 0]] * 4
    turn = 2 * torch.atan2(after.quaternion[:, 3], after.quaternion[:, 0]) * 180 / math.pi
    assert turn.tolist() == pytest.approx([0] * 4 + [1, -1, 0, 0], abs=1e-4)
    assert after.log_scale.tolist() == pytest.approx([0] * 6 + [0.05, -0.05])
    assert not after.quaternion[:, 1:3].any()


def test_the_papers_reward_by_hand():
    """A pair that is 3 pixels apart along y, with a bonus below 1.5 mm."""
    image = torch.rand(1, 1, 16, 16)
    truth = torch.eye(3)[None].clone()
    truth[0, 1, 2] = 3.0
    cases = ImagePairs(image, image, spacing_mm=(1.0, 1.0), truth=truth)
    task = ImageRegistrationTask(cases=cases, reward=Score() + AtStop(threshold=-1.5, eta=8.0))
    state, rewards = task.at(torch.zeros(1, dtype=torch.int64)), []
    for number in (2, 2, task.stop):
        action = torch.tensor([number])
        after = task.advance(state, action)
        rewards.append(float(task.reward(state, action, after)))
        state = after
    assert rewards == pytest.approx([-2, -1, -1 + 8], abs=1e-5)


@pytest.mark.parametrize("overlap", [True, False])
def test_what_is_seen(overlap):
    task = small_image_task(overlap=overlap, size=(12, 10))
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(0))
    seen = task.observe(state)
    assert seen.shape == (3, 2 + overlap, 12, 10)
    assert seen.dtype == torch.uint8
    moving, inside = task.cases.warp(state.case, state.pose)
    assert torch.equal(seen[:, 0], task.cases.fixed[:, 0])
    torch.testing.assert_close(seen[:, 1].float(), moving[:, 0], atol=0.5, rtol=0)
    if overlap:
        assert torch.equal(seen[:, 2], 255 * inside[:, 0].to(torch.uint8))
        assert 0 < int((seen[:, 2] == 0).sum()) < seen[:, 2].numel() / 2


def test_images_in_floating_point():
    image = torch.rand(2, 1, 8, 8)
    cases = ImagePairs(image, image, spacing_mm=(1.0, 1.0), truth=torch.eye(3).expand(2, 3, 3))
    task = ImageRegistrationTask(cases=cases)
    seen = task.observe(task.at(torch.arange(2)))
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen[:, :2], image.expand(2, 2, 8, 8), atol=1e-5, rtol=0)
    assert (seen[:, 2] == 1).all()
    assert task.observation_space.contains(seen[0].numpy())


@pytest.mark.parametrize("size", [(20, 18), (10, 9, 8)])
def test_the_expert_walks_to_the_truth(size):
    task = small_image_task(size=size, start_scale=1.1)
    state = task.initial(torch.arange(3).repeat(4), torch.Generator().manual_seed(0))
    error = -task.score(state)
    for _ in range(60):
        state = task.advance(state, task.expert(state))
        assert (-task.score(state) <= error + 1e-5).all()
        error = -task.score(state)
    assert state.stopped.all()
    assert error.max() < 2.0  # a pixel


def test_planar_starts_stay_in_the_plane():
    task = small_image_task(start_mm=7.0, start_degrees=30.0)
    state = task.initial(torch.zeros(300, dtype=torch.int64), torch.Generator().manual_seed(0))
    truth = [value[:1] for value in task.cases.truth]
    assert not state.quaternion[:, 1:3].any()
    assert not state.translation_mm[:, 2].any()
    shift = (state.translation_mm - truth[2]).norm(dim=1)
    turn = 2 * torch.atan2(state.quaternion[:, 3], state.quaternion[:, 0])
    turn = (turn - 2 * torch.atan2(truth[0][:, 3], truth[0][:, 0])) * 180 / math.pi
    assert 6.5 < float(shift.max()) <= 7.001
    assert -30.01 <= float(turn.min()) < -25
    assert 25 < float(turn.max()) <= 30.01


def test_an_application_starts_untouched():
    task = small_image_task(untouched=1.0)
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(0))
    assert state.quaternion.tolist() == [[1, 0, 0, 0]] * 3
    assert not state.translation_mm.any()


def test_a_transition_is_small():
    task = small_image_task(size=(10, 9, 8))
    state = task.initial(torch.arange(3), torch.Generator().manual_seed(0))
    assert sum(value[0].nbytes for value in state) == 35


@pytest.mark.parametrize("size", [(12, 12), (8, 8, 8)])
def test_agents_train_on_what_they_see(size):
    """Cloning comes to agree with the expert more often; PPO goes on from there."""
    task = small_image_task(size=size, log_scales=(), turns_degrees=(4.0,), max_steps=8)
    environment = Environment(task, num_envs=32, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConvolutionalPolicyNet(
            channels=3, actions=task.action_space.n, size=size, dims=len(size), width=8, hidden=32
        )
    rollout = Rollout(task, length=4, num_envs=32)
    options = {"learning_rate": 3e-3, "seed": 0}
    cloning = PolicyCloning(network, rollout=rollout, environment=environment, mix_updates=8, **options)
    parts = train(cloning, environment, 24)
    agreement = [float(part["agreement"]) for part in parts]
    assert sum(agreement[-4:]) / 4 > sum(agreement[:4]) / 4 + 0.1
    assert rollout.bytes_per_transition() == 35
    before = [value.clone() for value in network.parameters()]
    agent = PPO(network, rollout=Rollout(task, length=4, num_envs=32), epochs=1, minibatches=2, **options)
    assert all(math.isfinite(float(value)) for part in train(agent, environment, 2) for value in part.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
