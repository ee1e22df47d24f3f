"""What is compared in localisation.py: how each arm learns."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loops import Shuffled
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medrl.agents.base import schedule
from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.agents.supervision import OverlapSupervision
from medrl.data.box_cases import BoxCases
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.geometry.boxes import from_middle_and_size, iou, keep_valid, middle_and_size
from medrl.networks.localisation import BoxRegressor, LocalisationNet
from medrl.rewards.scores import AtStop, Gain, Sign
from medrl.tasks.localisation import LocalisationTask
from medrl.training.guidance import PositiveReward

logger = logging.getLogger(__name__)


REWARD = Sign(Gain(per_step_length=False)) + AtStop(threshold=0.6, eta=3.0)


@dataclass
class Arm:
    """Warm start, reward and exploration of an arm."""

    clone: bool = True
    learn: bool = True
    shuffled: bool = False
    guided: bool = True
    longer: bool = False  # the updates of the cloning, too


ARMS = {
    "cloning": Arm(learn=False),
    "cloning, then DQN": Arm(),
    "DQN from scratch": Arm(clone=False, longer=True),
    "DQN, shuffled reward": Arm(clone=False, shuffled=True, guided=False),
}


@dataclass
class Setting:
    """Sizes of a training."""

    clone_updates: int = 600
    updates: int = 1200
    batch_size: int = 128
    num_envs: int = 32
    learning_rate: float = 1e-3
    rl_rate: float = 4e-4
    imitate: str = "returns"
    gamma: float = 0.9
    log_every: int = 100


def train(
    cases: BoxCases, arm: str, *, seed: int, setting: Setting, weights: Path | None = None, warm: Path | None = None
) -> LocalisationNet:
    """Train an arm, or read its weights where they are; ``warm`` are those of the cloning."""
    plan = ARMS[arm]
    torch.manual_seed(seed)
    reward = Shuffled(REWARD, seed) if plan.shuffled else REWARD
    task = LocalisationTask(cases, reward=reward)
    network = LocalisationNet(channels=cases.channels, dims=cases.dims, actions=task.trigger + 1)
    if weights is not None and weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    if plan.clone:
        network = _clone(task, network, seed, setting, warm)
    if plan.learn:
        updates = setting.updates + setting.clone_updates * plan.longer
        network = _learn(task, network, seed, setting, updates, guided=plan.guided, scratch=not plan.clone)
    if weights is not None:
        torch.save(network.state_dict(), weights)
    return network.eval()


def _clone(
    task: LocalisationTask, network: LocalisationNet, seed: int, setting: Setting, weights: Path | None
) -> LocalisationNet:
    if weights is not None and weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    agent = Cloning(
        network, task=task, batch_size=setting.batch_size, learning_rate=setting.learning_rate,
        updates=setting.clone_updates, imitate=setting.imitate, supervision=OverlapSupervision(), average=100.0,
        bf16=False, weight_decay=0.01, gamma=setting.gamma, seed=seed,
    )  # fmt: skip
    _run(agent, None, setting.clone_updates, setting.log_every)
    return copy.deepcopy(agent.average).requires_grad_(True)


def _learn(
    task: LocalisationTask, network: LocalisationNet, seed: int, setting: Setting, updates: int, *, guided: bool,
    scratch: bool,
) -> LocalisationNet:  # fmt: skip
    environment = Environment(task, num_envs=setting.num_envs, seed=seed)
    replay = Replay(task, capacity=60_000, num_envs=setting.num_envs, n=2, gamma=setting.gamma, seed=seed)
    agent = DQN(
        network, replay=replay, batch_size=setting.batch_size, learning_rate=setting.rl_rate, updates=updates,
        double=False, target_half_life=60.0, epsilon=(1.0 if scratch else 0.3, 0.1), explore_updates=updates // 3,
        guide=PositiveReward(environment, reward=REWARD) if guided else None, warm_up=1_000, average=100.0,
        supervision=OverlapSupervision(), bf16=False, weight_decay=0.01, seed=seed,
    )  # fmt: skip
    _run(agent, environment, updates, setting.log_every)
    return copy.deepcopy(agent.average).requires_grad_(True)


def _run(agent: Any, environment: Environment | None, updates: int, log_every: int) -> None:
    observation = None if environment is None else environment.reset()
    for number in range(updates):
        while environment is not None:
            state = environment.state
            action = agent.act(observation, explore=True).action
            step = environment.step(action)
            agent.record(state, action, step)
            observation = step.observation
            if agent.ready:
                break
        parts = agent.learn()
        if number % log_every == log_every - 1:
            logger.info("update %d: %s", number + 1, {k: round(float(v), 3) for k, v in parts.items()})


def train_regressor(cases: BoxCases, *, seed: int, setting: Setting, weights: Path | None = None) -> BoxRegressor:
    """One box of an image, by the same encoder from views of the same kind and as many updates as the agent has.

    Learnt are whole images and crops as the five starts and rough boxes give them; the box of the nearest object
    (smooth L1 and IoU loss) and, by cross-entropy, its IoU, which is 0 where there is none.
    """
    torch.manual_seed(seed)
    network = BoxRegressor(channels=cases.channels, dims=cases.dims)
    if weights is not None and weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    task = LocalisationTask(cases, near=0.2, crossed=0.0)
    updates = setting.clone_updates + setting.updates
    optimizer = torch.optim.AdamW(network.parameters(), lr=setting.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for number in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = setting.learning_rate * schedule(number, updates)
        case = torch.randint(len(cases), (setting.batch_size,), generator=generator)
        state = task.initial(case, generator)
        whole = torch.rand(len(case), generator=generator) < 0.4
        state = state._replace(box=torch.where(whole[:, None], task.start(case).box, state.box))
        box, logit = regress(task, network, state)
        present, truth = cases.present[case], cases.boxes[case]
        overlap = iou(box[:, None], truth) * present
        seen = iou(state.box[:, None], truth) * present  # the object that fills most of the view
        best = (overlap.detach() + seen).argmax(1)
        row = torch.arange(len(case))
        target, unit = truth[row, best], middle_and_size(state.box)[1].repeat(1, 2)
        distance = nn.functional.smooth_l1_loss(box / unit, target / unit, reduction="none", beta=0.1).sum(1)
        known = present.any(1).float()
        fit = overlap[row, best]
        loss = ((distance + 1 - fit) * known).sum() / known.sum().clamp(min=1)
        loss = loss + binary_cross_entropy_with_logits(logit, fit.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if number % setting.log_every == setting.log_every - 1:
            logger.info("regressor, update %d: %.3f", number + 1, float(loss.detach()))
    if weights is not None:
        torch.save(network.state_dict(), weights)
    return network.eval()


def regress(task: LocalisationTask, network: BoxRegressor, state: Any) -> tuple[Tensor, Tensor]:
    """Boxes (B, 2 D) in pixels that the regressor sees in the views of states, and logits (B,) of their IoU."""
    channels = task.cases.channels
    share, logit = network(task.observe(state)[:, :channels])
    middle, size = middle_and_size(state.box)
    window = size * (1 + 2 * 16 / 192)
    low = (middle - window / 2).repeat(1, 2)
    return low + share * window.repeat(1, 2), logit


def regressed(task: LocalisationTask, network: BoxRegressor, box: Tensor, case: Tensor) -> Tensor:
    """Boxes kept inside of their images."""
    middle, size = middle_and_size(box)
    return keep_valid(from_middle_and_size(middle, size), task.cases.size[case], task.least)
