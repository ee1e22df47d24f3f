"""CUDA: the same numbers as on the CPU, and no step or update that makes the host wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from probes import small_landmark_task, smooth_volume

from medrl.agents.dqn import DQN
from medrl.agents.supervision import OffsetSupervision
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.geometry.patches import Pyramid
from medrl.gym import VectorEnv
from medrl.networks.concentric import ConcentricNet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def no_wait() -> Iterator[None]:
    """Any synchronisation of the host raises."""
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_crops_equal_the_cpus(torch_generator):
    pyramid = Pyramid([smooth_volume(s, torch_generator) for s in [(16, 20, 24), (28, 12, 16)]], spacing_mm=1.5)
    case = torch.randint(2, (400,), generator=torch_generator)
    place = torch.randn(400, 3, generator=torch_generator) * 20
    expected = pyramid.crop(case, place, 9)
    assert torch.equal(pyramid.to("cuda").crop(case.cuda(), place.cuda(), 9).cpu(), expected)


def test_steps_equal_the_cpus(torch_generator):
    slow, fast = (small_landmark_task(device=device) for device in ("cpu", "cuda"))
    state = slow.initial(torch.arange(60) % 3, torch_generator)
    other = type(state)(*(value.cuda() for value in state))
    for _ in range(12):
        action = torch.randint(7, (60,), generator=torch_generator)
        after, other_after = slow.advance(state, action), fast.advance(other, action.cuda())
        reward = fast.reward(other, action.cuda(), other_after)
        torch.testing.assert_close(reward.cpu(), slow.reward(state, action, after))
        assert torch.equal(fast.observe(other_after)["image"].cpu(), slow.observe(after)["image"])
        assert torch.equal(fast.terminated(other_after).cpu(), slow.terminated(after))
        assert torch.equal(fast.expert(other_after).cpu(), slow.expert(after))
        state, other = after, other_after


@pytest.mark.usefixtures("no_wait")
def test_training_never_makes_the_host_wait():
    task = small_landmark_task(device="cuda")
    environment = Environment(task, num_envs=32)
    replay = Replay(task, capacity=3200, num_envs=32, n=3, alpha=0.6)
    network = ConcentricNet(landmarks=2, levels=2, size=5, scales=2, width=4, hidden=16).cuda()
    agent = DQN(network, replay=replay, batch_size=32, warm_up=64, imitation=0.1, supervision=OffsetSupervision())
    seen = environment.reset()
    for number in range(110):
        if number == 10:
            torch.cuda.set_sync_debug_mode("error")
        state, action = environment.state, agent.act(seen, explore=True).action
        step = environment.step(action)
        agent.record(state, action, step)
        seen = step.observation
        if agent.ready:
            losses = agent.learn()
    torch.cuda.set_sync_debug_mode("default")
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_torch_vector_environment_never_makes_the_host_wait(mode):
    env = VectorEnv(small_landmark_task(device="cuda"), num_envs=16, autoreset_mode=mode, tensors="torch")
    env.reset(seed=0)
    actions = torch.randint(7, (60, 16), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    for action in actions:
        seen, reward, *_ = env.step(action)
    torch.cuda.set_sync_debug_mode("default")
    assert seen["image"].is_cuda
    assert reward.is_cuda
