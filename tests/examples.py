"""One small example of every task and agent, for the contract tests; whoever adds a class adds its example here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from box_examples import small_localisation_task, small_volume_task
from cutting_examples import small_cutting_task
from probes import small_image_task, small_landmark_task, small_registration_task, small_seeding_task
from track_examples import small_refinement_task, small_tracking_task

from medrl.agents.actor_critic import A2C, PPO
from medrl.agents.base import Agent
from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.agents.policy_cloning import PolicyCloning
from medrl.agents.supervision import OffsetSupervision
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.concentric import ConcentricNet
from medrl.networks.convolutional_policy import ConvolutionalPolicyNet
from medrl.rollout import Rollout
from medrl.tasks.base import Task


class Training(NamedTuple):
    """An agent, and the environment it acts in (None: it learns from states drawn at will)."""

    agent: Agent
    environment: Environment | None


def small_network(seed: int = 0) -> ConcentricNet:
    """For crops of 5^3 at two levels, two landmarks, two scales."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConcentricNet(landmarks=2, levels=2, size=5, scales=2, width=4, hidden=16)


def dqn() -> Training:
    """Three-step, prioritised, with supervision."""
    environment = Environment(small_landmark_task(), num_envs=8, seed=1)
    replay = Replay(environment.task, capacity=160, num_envs=8, n=3, alpha=0.6, seed=2)
    agent = DQN(
        small_network(), replay=replay, batch_size=16, warm_up=24, explore_updates=20, imitation=0.1,
        supervision=OffsetSupervision(), seed=3,
    )  # fmt: skip
    return Training(agent, environment)


def cloning() -> Training:
    """On gains, with supervision."""
    agent = Cloning(small_network(), task=small_landmark_task(), batch_size=16, supervision=OffsetSupervision(), seed=3)
    return Training(agent, None)


def small_policy(seed: int = 0, **options: Any) -> ConvolutionalPolicyNet:
    """For crops of 5^3 at two levels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"width": 4, "hidden": 16, "pooled": 2} | options
        return ConvolutionalPolicyNet(channels=2, actions=7, size=(5, 5, 5), dims=3, **options)


def a2c() -> Training:
    """Without a memory, from kept observations."""
    environment = Environment(small_landmark_task(), num_envs=8, seed=1)
    rollout = Rollout(environment.task, length=4, num_envs=8, keep_observation=True)
    agent = A2C(small_policy(recurrent=False), rollout=rollout, learning_rate=1e-2, seed=3)
    return Training(agent, environment)


def ppo() -> Training:
    """With a memory, an anchor and value clipping, in groups of rows of which some wait for the others."""
    environment = Environment(small_landmark_task(), num_envs=8, group_size=2, seed=1)
    rollout = Rollout(environment.task, length=5, num_envs=8)
    agent = PPO(
        small_policy(), rollout=rollout, epochs=2, minibatches=2, value_clip=0.2, anchor=0.1, learning_rate=1e-2, seed=3
    )
    return Training(agent, environment)


def policy_cloning() -> Training:
    """With a memory of two parts, half of the way from the oracle's walks to its own."""
    environment = Environment(small_landmark_task(), num_envs=8, seed=1)
    rollout = Rollout(environment.task, length=3, num_envs=8)
    agent = PolicyCloning(
        small_policy(cell="lstm"), rollout=rollout, environment=environment, mix_updates=8, learning_rate=1e-2, seed=3
    )
    return Training(agent, environment)


# class name -> variants of a task of three cases at least
TASKS: dict[str, list[Callable[[], Task]]] = {
    "BoxRefinementTask": [small_refinement_task, lambda: small_refinement_task(frames=3, most=6, shaken=0.1)],
    "CuttingTask": [
        small_cutting_task,
        lambda: small_cutting_task(random_start=False, jitter=0.1, moves=2, expert_context=1, history=2),
    ],
    "ImageRegistrationTask": [
        small_image_task,
        lambda: small_image_task(size=(10, 9, 8), log_scales=(), overlap=False, untouched=0.5),
    ],
    "LandmarkTask": [
        small_landmark_task,
        lambda: small_landmark_task(settle=False, max_steps=40),
        lambda: small_landmark_task(observation="frames", frames=3),
    ],
    "LocalisationTask": [
        small_localisation_task,
        lambda: small_localisation_task(near=1.0, crossed=1.0, crosses=1),
        small_volume_task,
    ],
    "RegistrationTask": [
        small_registration_task,
        lambda: small_registration_task(scaled=False, starts=torch.eye(4).expand(3, 2, 4, 4), max_steps=6),
    ],
    "SeedingTask": [
        small_seeding_task,
        lambda: small_seeding_task(stop=False, sharpness=10.0, gains_stride=2),
        lambda: small_seeding_task(shape=(9, 8, 10), random_start=3),
    ],
    "TrackingTask": [
        small_tracking_task,
        lambda: small_tracking_task(group=5, clutter=0.5),
        lambda: small_tracking_task(from_first=1.0, clutter=0.0),
        lambda: small_tracking_task(company=True),
    ],
}
AGENTS: dict[str, Callable[[], Training]] = {
    "DQN": dqn,
    "Cloning": cloning,
    "A2C": a2c,
    "PPO": ppo,
    "PolicyCloning": policy_cloning,
}
