"""The arms of the comparison of trackers: what each trains."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from loops import Shuffled
from torch import nn

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.track_cases import TrackCases
from medrl.environment import Environment
from medrl.geometry.box_motion import MotionNoise
from medrl.geometry.track_views import LENGTH
from medrl.inference.track_decisions import Policy
from medrl.inference.tracking import Tracker
from medrl.networks.policy import PolicyNet
from medrl.rewards.tracking import Identity, Mistake
from medrl.rollout import Rollout
from medrl.tasks.tracking import ACTIONS, TrackingTask
from medrl.training.track_company import RenewCompany
from medrl.training.trainer import RLTrainer

logger = logging.getLogger(__name__)

ROWS, STEPS, HIDDEN = 256, 16, 128
REWARD = 0.1 * (Identity(wrong=0.8) - 0.5 * Mistake())
AGENT = "cloning, then PPO"
START = {"crowded": 0.35, "confirm": 4, "fill": 15}  # of the tracker while a policy learns

CLONE, MORE = ("clone", 420), ("clone on", 200)
LEARN, CONTROL = ("PPO", 200), ("PPO with shuffled rewards", 200)
EPOCH = {"clone": 30, "clone on": 20, LEARN[0]: 20, CONTROL[0]: 20}  # updates in one company
# name -> stages, each from the network of the one before
ARMS: dict[str, tuple[tuple[str, int], ...]] = {
    AGENT: (CLONE, LEARN),
    "cloning alone": (CLONE,),
    "cloning alone, as long": (CLONE, MORE),
    "cloning, then PPO, shuffled reward": (CLONE, CONTROL),
    "chance": (),
}


def train(
    cases: TrackCases, network: nn.Module, *, stage: str, updates: int, seed: int, rows: int = ROWS, steps: int = STEPS
) -> nn.Module:  # fmt: skip
    """Train a network for one stage; returns the averaged policy."""
    torch.manual_seed(seed)
    reward = Shuffled(REWARD, seed) if "shuffled" in stage else REWARD
    task = TrackingTask(cases=cases, reward=reward, horizon=5 if stage.startswith("clone") else 0)
    environment = Environment(task, num_envs=rows, seed=seed)
    rollout = Rollout(task, length=steps, num_envs=rows, keep_observation=True)
    options: dict[str, Any] = {"rollout": rollout, "gamma": 0.97, "updates": updates, "seed": seed, "epochs": 3}
    if stage.startswith("clone"):
        options |= {"environment": environment, "mix_updates": 0, "minibatches": 8}
        agent: Any = PolicyCloning(network, learning_rate=2e-3 if stage == "clone" else 5e-4, **options)
    else:
        agent = PPO(network, entropy=0.002, learning_rate=5e-4, anchor=0.05, **options)
    trainer = RLTrainer(
        device="cpu", max_epochs=updates // EPOCH[stage], epoch_length=EPOCH[stage], agent=agent, seed=seed,
        environment=environment,
        train_handlers=[
            RenewCompany(environment=environment, tracker=tracker_of(cases.noise), untrained=stage == "clone")
        ],
    )  # fmt: skip
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: logger.info(
        "seed %d, %s %d: %s", seed, stage, e.state.iteration, {k: round(v, 3) for k, v in e.state.log.items()}
    ))  # fmt: skip
    logging.getLogger("ignite").setLevel(logging.WARNING)
    trainer.run()
    return copy.deepcopy(agent.average).requires_grad_(True)


def tracker_of(noise: MotionNoise) -> Tracker:
    """A tracker by policy, before anything is tuned."""
    return Tracker(Policy(noise), noise, **START)


def trained(output: Path, cases: TrackCases, stages: tuple[tuple[str, int], ...], seed: int) -> nn.Module:
    """The policy after some stages, each trained once."""
    torch.manual_seed(seed)
    network: nn.Module = PolicyNet(features=LENGTH, actions=len(ACTIONS), hidden=HIDDEN)
    if stages:
        name = ", ".join(f"{stage} {updates}" for stage, updates in stages)
        path = output / f"{name.replace(', ', '-').replace(' ', '_')}_{seed}.pt"
        if not path.is_file():
            before = trained(output, cases, stages[:-1], seed).train()
            start = time.process_time()
            learned = train(cases, before, stage=stages[-1][0], updates=stages[-1][1], seed=seed)
            torch.save(learned.state_dict(), path)
            logger.info("%s, seed %d: %.0f s of processor time", name, seed, time.process_time() - start)
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()
