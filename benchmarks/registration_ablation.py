"""What makes a registration agent learn: memory, rewards, cloning, look-ahead, and a control that must fail.

    python benchmarks/registration_ablation.py --features MODELS/features --output OUT.json --seeds 3

``--features`` is the folder that the bundle's training fills: feature networks, and the cases found with those that
never saw the patient.  Every arm learns on the training cases and is measured on the validation cases, whose patients
are others: mean error (at most 30 mm a case) and share below 10 mm of all candidates of the search, and of the one
candidate a registration that its rank chooses.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops import Shuffled, rollouts
from torch import Tensor, nn

from medrl.agents.actor_critic import A2C, PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.pair_cases import PairCases, Points
from medrl.environment import Environment
from medrl.geometry.poses import Pose, from_matrices
from medrl.inference.policy_walk import look_ahead, walk
from medrl.networks.policy import PolicyNet, PolicyOutput
from medrl.rewards.scores import AtStop, Gain, Score, StepCost
from medrl.rewards.similarity import InformationGain, SimilarityGain
from medrl.rollout import Rollout
from medrl.tasks.registration import RegistrationTask
from medrl.training.registration import HOPELESS_MM
from medrl.training.registration_pool import Pool, read_pool, spread_starts

logger = logging.getLogger(__name__)

POINTS = (100, 150)  # of the pool's, coarse and fine: enough for a comparison
AT_STOP, STEP = AtStop(threshold=-6.0), 0.01 * StepCost()


GAIN = 0.1 * Gain(per_step_length=False) - 2.0 * STEP
REWARDS: dict[str, Callable[[], Any]] = {
    "gain": lambda: GAIN,
    "gain and stop": lambda: GAIN + AT_STOP,
    "paper: minus error": lambda: 0.02 * Score() + AT_STOP,
    "learned similarity": lambda: SimilarityGain() - STEP,
    "mutual information": lambda: 10.0 * InformationGain() - STEP,
    "shuffled": lambda: Shuffled(GAIN),
}
# name -> (recurrent, updates of cloning in shares, algorithm, reward)
ARMS: dict[str, tuple[bool, float, type | None, str]] = {
    "PPO from the climb, recurrent": (True, 0.0, PPO, "gain"),
    "PPO, shuffled reward": (True, 0.0, PPO, "shuffled"),
    "PPO from the climb, feed-forward": (False, 0.0, PPO, "gain"),
    "cloning alone": (True, 1.0, None, "gain"),
    "cloning, then PPO": (True, 0.35, PPO, "gain"),
    "PPO, paper's reward": (True, 0.0, PPO, "paper: minus error"),
    "PPO, learned similarity": (True, 0.0, PPO, "learned similarity"),
    "PPO, mutual information": (True, 0.0, PPO, "mutual information"),
    "PPO, gain and stop": (True, 0.0, PPO, "gain and stop"),
    "A2C from the climb": (True, 0.0, A2C, "gain"),
}
AHEAD = "PPO from the climb, recurrent"  # the arm that looks ahead, too


class Climb(nn.Module):
    """The sum of the gains of learned similarity and mutual information, without learning: where PPO starts."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.actions = actions

    def forward(self, observation: Tensor, memory: Any = None) -> PolicyOutput:
        """The larger gain wins; the value is 0."""
        parts = observation[:, : 2 * self.actions].reshape(len(observation), 2, self.actions)
        return PolicyOutput(parts.sum(1), torch.zeros(len(observation)))


def thin(pool: Pool, points: tuple[int, int]) -> Pool:
    """The same cases with the first points of each grid only."""
    pairs = []
    for pair in pool.pairs:
        less = copy.copy(pair)
        less.coarse = Points(*(value[: points[0]] for value in pair.coarse))
        less.fine_mm, less.grey = pair.fine_mm[: points[1]], pair.grey[: points[1]]
        pairs.append(less)
    return Pool(pairs, PairCases(pairs, scale=pool.cases.scale), pool.starts)


@torch.no_grad()
def measure(task: RegistrationTask, names: list[str], network: nn.Module | None, *, ahead: int = 0) -> dict[str, float]:
    """Errors of all candidates and of the chosen ones."""
    pose = Pose(*from_matrices(task.starts[:, 0]))
    row = torch.arange(len(names))
    if network == "start":
        state, value, steps = task.at(row, pose), torch.zeros(len(names)), torch.zeros(len(names))
    else:
        ended = walk(task, network, task.at(row, pose))
        state, value, steps = ended.state, ended.value, ended.state.time.float()
        if ahead:
            generator = torch.Generator().manual_seed(0)
            there = look_ahead(task, network, task.at(row, state.pose), rollouts=ahead, depth=6, generator=generator)
            again = walk(task, network, task.at(row, there))
            better = again.value > value
            state = type(state)(*(
                torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
                for a, b in zip(again.state, state, strict=True)
            ))  # fmt: skip
    error = -task.score(state)
    seen = task.cases.look(row, state.pose)
    rank = seen.score + 60 * seen.information * seen.inside + (value if isinstance(network, PolicyNet) else 0)
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    chosen = torch.stack([error[g][rank[g].argmax()] for g in groups.values()])
    return {
        "error_mm": float(error.clamp(max=HOPELESS_MM).mean()), "below_10mm": float((error < 10).float().mean()),
        "chosen_error_mm": float(chosen.clamp(max=HOPELESS_MM).mean()),
        "chosen_below_10mm": float((chosen < 10).float().mean()), "steps": float(steps.mean()),
    }  # fmt: skip


def train(
    pool: Pool, *, arm: str, updates: int, seed: int, num_envs: int = 24, length: int = 12,
    validate: Callable[[nn.Module], None] | None = None,
) -> nn.Module:  # fmt: skip
    """Train one arm; returns the averaged policy."""
    recurrent, share, algorithm, reward = ARMS[arm]
    torch.manual_seed(seed)
    task = RegistrationTask(
        cases=pool.cases, starts=spread_starts(pool.starts[:, 0], 4, shift_mm=12.0, degrees=12.0, seed=seed),
        perturbed=0.0, reward=REWARDS[reward](),
    )  # fmt: skip
    actions = task.moves + 1
    network: nn.Module = PolicyNet(
        features=task.observation_space.shape[0], actions=actions, recurrent=recurrent, scale=1.0,
        shortcut=[(0, actions), (actions, 2 * actions)],
    )  # fmt: skip
    cloning = round(share * updates)
    for count, kind in ((cloning, PolicyCloning), (updates - cloning, algorithm)):
        if not count or kind is None:
            continue
        environment = Environment(task, num_envs=num_envs, seed=seed)
        rollout = Rollout(task, length=length, num_envs=num_envs, keep_observation=True)
        if kind is PolicyCloning:
            agent: Any = PolicyCloning(
                network, rollout=rollout, environment=environment, gamma=0.97, mix_updates=max(1, count // 2),
                epochs=2, learning_rate=1e-3, updates=count, seed=seed,
            )  # fmt: skip
        else:
            agent = kind(
                network, rollout=rollout, gamma=0.97, entropy=0.005, learning_rate=7e-4, updates=count, seed=seed
            )
        for number, _ in zip(range(count), rollouts(agent, environment), strict=False):
            agent.learn()
            if validate is not None and number % 10 == 9:
                validate(agent.average)
        network = copy.deepcopy(agent.average).requires_grad_(True).train()
    return network.eval()


def main() -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40, help="rollouts of 24 x 12 steps an arm")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    training, held = (
        thin(read_pool(arguments.features / f"cases_{name}.pt"), POINTS) for name in ("training", "validation")
    )
    names = [pair.name for pair in held.pairs]
    test = RegistrationTask(cases=held.cases, starts=held.starts, perturbed=0.0)
    rows: dict[str, list[dict[str, float]]] = {
        "start": [measure(test, names, "start")], "plain climb": [measure(test, names, None)],
        "climb of score and information": [measure(test, names, Climb(test.moves + 1))],
    }  # fmt: skip

    def show(name: str) -> None:
        mean = {key: float(np.mean([r[key] for r in rows[name]])) for key in rows[name][0]}
        spread = float(np.std([r["error_mm"] for r in rows[name]]))
        logger.info("%-34s %s (spread %.2f)", name, {k: round(v, 3) for k, v in mean.items()}, spread)

    for name in list(rows):
        show(name)
    for arm in arguments.arms:
        start = time.perf_counter()
        for seed in range(arguments.seeds):
            network = train(training, arm=arm, updates=arguments.updates, seed=seed)
            rows.setdefault(arm, []).append(measure(test, names, network))
            if arm == AHEAD:
                rows.setdefault(f"{arm}, looking ahead", []).append(measure(test, names, network, ahead=8))
        show(arm)
        if f"{arm}, looking ahead" in rows:
            show(f"{arm}, looking ahead")
        logger.info("%.0f s a seed", (time.perf_counter() - start) / arguments.seeds)
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
