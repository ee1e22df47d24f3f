"""How the arms of ``seeding_ablation.py`` learn: values on a frozen trunk by the clock, whole clones by updates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from landmark_ablation import cosine
from torch import Tensor, nn

from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.agents.supervision import MaskSupervision
from medrl.data.seed_cases import SeedCases
from medrl.data.seed_pool import SeedPool
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.seednet import SeedNet
from medrl.rewards.scores import Exponential, Gain, Progress, Score, Shape
from medrl.rewards.seeding import SeedRegions
from medrl.tasks.seeding import SeedingTask
from medrl.types import Reward

LEARNING_RATE = 1e-3
CLONING = {"gains_stride": 4, "random_start": 9, "sharpness": 10.0}  # of the task whose gains are imitated
REWARDS: dict[str, Reward] = {
    "gain": Gain(per_step_length=False), "progress": Progress(), "iou": 0.1 * Score(),
    "exponential": 0.1 * Exponential(5.0), "regions": 0.1 * SeedRegions(5.0),
}  # fmt: skip
ARMS = ("untrained", "clone", "warm", *REWARDS, "shuffled")


class Shuffled(Shape):
    """Another reward, dealt out at random among the rows of a batch: the mean stays, the credit goes."""

    def __init__(self, part: Reward, generator: torch.Generator) -> None:
        self.part, self.generator = part, generator

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        reward = self.part(task, state, action, next_state)
        return reward[torch.randperm(len(reward), generator=self.generator)]


class Budget:
    """Processor time of this process, so that other work on the machine favours no arm."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.start = 60 * minutes, time.process_time()

    @property
    def spent(self) -> float:
        """The share that is used up."""
        return (time.process_time() - self.start) / self.seconds


def renew_values(network: SeedNet, cases: SeedCases, seed: int) -> SeedNet:
    """Put a fresh value head on a network, and set its batch statistics, which then stay, on states of the cases."""
    torch.manual_seed(seed)
    network.value_head = SeedNet(dims=2, grid=network.grid, width=network.object.in_channels).value_head
    task, generator = SeedingTask(cases, random_start=9), torch.Generator().manual_seed(seed)
    network.eval().value_head.train()
    for module in network.value_head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(10):
            network(task.observe(task.sample(32, generator)))
    return network.eval()


def teach_values(
    arm: str, network: SeedNet, pool: SeedPool, *, minutes: float, envs: int, epsilon: Sequence[float], seed: int
) -> tuple[SeedNet, int]:
    """Let an arm teach the value head of a network for its time; returns the weight average and the updates."""
    budget = Budget(minutes)
    if arm == "untrained":
        return network, 0
    if arm == "clone":
        return clone_values(network, pool, budget, seed=seed)
    if arm == "warm":
        network, first = clone_values(network, pool, Budget(minutes / 2), seed=seed)
        network.value_head.requires_grad_(True)
        network, more = learn_values(
            network, REWARDS["gain"], pool, Budget(minutes / 2), envs=envs, epsilon=epsilon[-1:] * 2, seed=seed
        )
        return network, first + more
    if arm == "shuffled":
        reward: Reward = Shuffled(REWARDS["gain"], torch.Generator().manual_seed(seed))
    else:
        reward = REWARDS[arm]
    return learn_values(network, reward, pool, budget, envs=envs, epsilon=epsilon, seed=seed)


def clone_values(network: SeedNet, pool: SeedPool, budget: Budget, *, seed: int) -> tuple[SeedNet, int]:
    """Teach the value head alone what every seed gains in one step; returns the weight average and the updates."""
    network.requires_grad_(False).value_head.requires_grad_(True)
    task = SeedingTask(pool.cases, **CLONING)
    learner = Cloning(network, task=task, batch_size=32, updates=1_000_000, average=60.0, seed=seed)
    while (spent := budget.spent) < 1:
        learner.learning_rate = LEARNING_RATE * cosine(spent)
        learner.learn()
        pool.refresh(1)
    return learner.average, learner.update


def learn_values(
    network: SeedNet, reward: Reward, pool: SeedPool, budget: Budget, *, envs: int, epsilon: Sequence[float], seed: int
) -> tuple[SeedNet, int]:
    """Teach the value head alone by double DQN; returns the weight average and the updates."""
    task = SeedingTask(pool.cases, reward=reward, gains_stride=0)
    replay = Replay(task, capacity=16_000, num_envs=envs, n=5, gamma=0.95, alpha=0.6, seed=seed)
    learner = DQN(
        network, replay=replay, batch_size=32, updates=1_000_000, target_half_life=60.0, average=60.0,
        temperature=0.03, warm_up=20 * envs, train_only="value_head", seed=seed,
    )  # fmt: skip
    environment = Environment(task, num_envs=envs, seed=seed)
    observation = environment.reset()
    while (spent := budget.spent) < 1:
        learner.learning_rate = LEARNING_RATE * cosine(spent)
        explored = epsilon[0] + (epsilon[1] - epsilon[0]) * spent  # by time: the updates are not known
        learner.epsilon_range = (explored, explored)
        action, state = learner.act(observation, explore=True).action, environment.state
        step = environment.step(action)
        learner.record(state, action, step)
        observation = step.observation
        if learner.ready:
            learner.learn()
            index = pool.refresh(1)
            replay.discard(index)
            observation = environment.reset_rows(torch.isin(environment.state.case.long(), index))
    return learner.average, learner.update


def clone_network(network: SeedNet, pool: SeedPool, *, updates: int, seed: int) -> SeedNet:
    """Clone all of a network; returns the weight average."""
    learner = Cloning(
        network, task=SeedingTask(pool.cases, **CLONING), batch_size=24, learning_rate=2e-3, updates=updates,
        supervision=MaskSupervision(), average=100.0, seed=seed,
    )  # fmt: skip
    for _ in range(updates):
        learner.learn()
        pool.refresh(1)
    return learner.average
