"""Boxes carried through clips without any detection: the nudging policy beside rules, a correlation tracker, controls.

    python benchmarks/box_refinement.py --output OUT --seeds 3

An object of a procedural clip is given by its true box of the fifth frame and carried through the 15 after it, in which
at least half of it is in sight.  The policies learn from 200 clips of 320 x 200 pixels with walls, coats and light of
their own; the test is 50 clips of 640 x 360 of other seeds, and the same with the striped boxes of `render`'s default,
which nobody learnt from.  Weights are kept in OUT.  Intervals are 95 %, bootstrapped over clips.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from box_carriers import correlated, filtered
from loops import Shuffled, rollouts
from torch import Tensor, nn

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.frame_cases import FrameCases
from medrl.environment import Environment
from medrl.inference.box_refinement import carry, greedy, ideal
from medrl.networks.image_vector_policy import ImageVectorPolicy
from medrl.rewards.scores import AtStop
from medrl.rollout import Rollout
from medrl.tasks.box_refinement import ACTIONS, HISTORY, BoxRefinementTask
from medrl.training.box_refinement import draw_refinement_cases, every_object, overlaps, summarise

logger = logging.getLogger(__name__)

VIDEOS = {"training": (200, 0), "validation": (30, 1), "test": (50, 2)}  # how many, seed
SMALL = {"frames": (14, 16), "objects": (3, 6), "size": (320, 200)}  # of the training
LARGE = {"frames": (22, 30)}
FIRST, CARRIED = 4, 15  # the frame that is given, frames without a detection
VIEW = {"size": 24, "margin": 0.35, "template": True}
ROWS = 256


class Stage(NamedTuple):
    """A training of one kind; without a reward it clones."""

    updates: int
    frames: int = 3
    reward: Any = None
    gamma: float = 0.95


LABEL = AtStop(threshold=0.7)
STAGES = {
    "cloning": Stage(150),
    "cloning on": Stage(20),
    "PPO, reward of a frame": Stage(20, frames=1, reward=LABEL, gamma=0.98),
    "PPO, label of a clip": Stage(20, frames=10, reward=LABEL, gamma=0.995),
    "PPO, reward of a frame, shuffled": Stage(20, frames=1, reward=Shuffled(LABEL), gamma=0.98),
}

SOONER = (1.5, 3.0)  # added to a clone's log-odds of stopping, alone and with a filter; of validation clips, seed 0
FILTERED = ("cloning", "PPO, reward of a frame", "PPO, reward of a frame, shuffled")  # shown with a filter, too


def train(cases: FrameCases, network: nn.Module, name: str, *, seed: int, rows: int = ROWS) -> nn.Module:
    """Train a network for one stage; returns the averaged policy."""
    torch.manual_seed(seed)
    stage, first = STAGES[name], name == "cloning"
    task = BoxRefinementTask(
        cases=cases, frames=stage.frames, reward=stage.reward, shaken=0.06, apart=0.05, **VIEW
    )  # fmt: skip
    environment = Environment(task, num_envs=rows, seed=seed)
    rollout = Rollout(task, length=8 if first else 12, num_envs=rows, keep_observation=True)
    options: dict[str, Any] = {"rollout": rollout, "gamma": stage.gamma, "updates": stage.updates, "seed": seed}
    options |= {"epochs": 2 if first else 3, "minibatches": 4, "learning_rate": 2e-3 if first else 5e-4}
    agent: Any
    if stage.reward is None:
        options |= {"environment": environment, "temperature": 0.006, "mix_updates": 40 if first else 0}
        agent = PolicyCloning(network, **options)
    else:
        agent = PPO(network, anchor=0.05, entropy=0.002, **options)
    for number, _ in zip(range(1, stage.updates + 1), rollouts(agent, environment), strict=False):
        parts = agent.learn()
        if number % 30 == 0 or number == stage.updates:
            logger.info("seed %d, %s, %d: %s", seed, name, number, {k: round(float(v), 3) for k, v in parts.items()})
    return copy.deepcopy(agent.average).requires_grad_(True)


def trained(output: Path, cases: Callable[[], FrameCases], name: str, seed: int) -> nn.Module:
    """The policy after a stage, each trained once; every one but cloning starts from the clone."""
    torch.manual_seed(seed)
    network = ImageVectorPolicy(
        channels=6, size=VIEW["size"], features=HISTORY * len(ACTIONS), actions=len(ACTIONS)
    )  # fmt: skip
    path = output / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.pt"
    if not path.is_file():
        if name != "cloning":
            network = trained(output, cases, "cloning", seed).train()
        data, begin = cases(), time.process_time()
        torch.save(train(data, network, name, seed=seed).state_dict(), path)
        logger.info("seed %d, %s: %.0f s of processor time", seed, name, time.process_time() - begin)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def ranges(overlap: list[Tensor], case: Tensor) -> dict[str, list[float]]:
    """95 % intervals of what `summarise` says, when clips are drawn again."""
    generator, clips = np.random.default_rng(0), [torch.nonzero(case == n)[:, 0] for n in case.unique()]
    drawn = []
    for _ in range(300):
        some = torch.cat([clips[n] for n in generator.integers(0, len(clips), len(clips))])
        drawn.append(summarise(torch.cat([value[some] for value in overlap])))
    return {key: np.quantile([d[key] for d in drawn], (0.025, 0.975)).tolist() for key in drawn[0]}


def compare(cases: FrameCases, networks: dict[str, list[nn.Module]]) -> dict[str, dict[str, Any]]:
    """Figures of every way to carry a box."""
    task = BoxRefinementTask(cases=cases, frames=CARRIED, **VIEW)
    state = every_object(task, FIRST)
    ways: dict[str, list[Tensor]] = {
        "box that stands still": [state.box[:, None].expand(-1, CARRIED, -1)],
        "constant velocity, of 5 true boxes": [filtered(task, state)],
        "correlation, first picture": [correlated(task, state, latest=False)],
        "correlation, latest picture": [correlated(task, state, latest=True)],
    }
    for name, seeds in networks.items():
        ways[name] = [carry(task, greedy(network), state) for network in seeds]
        if name in FILTERED:
            ways[f"{name}, from constant velocity"] = [filtered(task, state, greedy(network)) for network in seeds]
        if name == "cloning":
            alone, ahead = (partial(greedy, sooner=value) for value in SOONER)
            ways["cloning, stopping sooner"] = [carry(task, alone(network), state) for network in seeds]
            ways["cloning, stopping sooner, from constant velocity"] = [
                filtered(task, state, ahead(network)) for network in seeds
            ]
    ways["oracle"] = [carry(task, ideal, state)]
    table = {}
    for name, boxes in ways.items():
        each = [overlaps(task, state, box) for box in boxes]
        whole, spread = summarise(torch.cat(each)), ranges(each, state.case)
        table[name] = {key: {"mean": value, "low": spread[key][0], "high": spread[key][1]}
                       for key, value in whole.items()}  # fmt: skip
        table[name]["last"] = float(torch.cat(each)[:, -1].mean())
        table[name]["seeds"] = [summarise(overlap)["iou"] for overlap in each]
    return table


def show(title: str, table: dict[str, dict[str, Any]]) -> None:
    """Print a table for people."""
    print(f"\n| {title} | mean IoU | at 0.5 | at 0.7 | IoU in the last frame | IoU of seeds |\n|{'---|' * 6}")
    for name, row in table.items():
        cells = [f"{row[k]['mean']:.3f} ({row[k]['low']:.3f} to {row[k]['high']:.3f})" for k in list(row)[:3]]
        seeds = " ".join(f"{value:.3f}" for value in row["seeds"]) if len(row["seeds"]) > 1 else ""
        print(f"| {name} | {' | '.join(cells)} | {row['last']:.3f} | {seeds} |", flush=True)


def main() -> None:
    """Train the arms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(STAGES))
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="validation is for choosing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    kept: list[FrameCases] = []

    def cases() -> FrameCases:
        if not kept:
            kept.append(draw_refinement_cases(*VIDEOS["training"], length=11, **SMALL))
        return kept[0]

    networks = {arm: [trained(output, cases, arm, n) for n in range(arguments.seeds)] for arm in arguments.arms}
    kept.clear()
    results = {}
    for title, varied in (("pictures of all kinds", True), ("striped boxes", False)):
        clips = draw_refinement_cases(*VIDEOS[arguments.split], length=FIRST + 1 + CARRIED, varied=varied, **LARGE)
        results[title] = compare(clips, networks)
        show(title, results[title])
    (output / f"results_{arguments.split}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
