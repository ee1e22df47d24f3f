"""Reinforcement learning against cloning at equal training time, on the validation section of a landmark dataset.

    python benchmarks/landmark_ablation.py --dataset_dir DIR --minutes 6 --seeds 3
        [--arms clone,gains,dqn,head,scratch,shuffled]
        [--spacing_mm 2 --strides 1 2 4 ...] [--output ablation.json]

Arms, all with the same network, crops, offset supervision and processor seconds of training:

clone     cross-entropy on the oracle's best move (behaviour cloning)
gains     regression of what each move gains in one step
dqn       half the time as ``gains``, then double DQN on replayed walks
head      three quarters of the time as ``gains``, then double DQN of the value head alone, on the frozen trunk
scratch   double DQN alone
shuffled  ``scratch`` with the rewards of a batch shuffled: the control that must fail

Settings: ``plain`` starts as the shipped inference does; ``far`` starts anywhere in the field of view; ``cropped``
cuts off a third of the landmarks (sensitivity and specificity of `missing`).  Walks are the discrete moves of the
Q-values; ``jumps`` is the continuous action of the offset head on the same network.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.agents.supervision import OffsetSupervision
from medrl.data.anatomy import Anatomy
from medrl.data.cases import Cases, Source
from medrl.data.fields_of_view import crop_third
from medrl.data.pool import Pool, read_sources
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.inference.walk import jump, look, move
from medrl.networks.concentric import ConcentricNet, LandmarkNet
from medrl.networks.fovea import FoveaNet
from medrl.tasks.landmark import LandmarkTask


class ShuffledTask(LandmarkTask):
    """The landmark task with the rewards of a batch dealt out at random."""

    def reward(self, state, action, next_state):
        reward = super().reward(state, action, next_state)
        return reward[torch.randperm(len(reward))]


def train(arm: str, pool: Pool, options: argparse.Namespace, seed: int) -> tuple[LandmarkNet, dict]:
    """Train one arm for ``--minutes``; returns the averaged network and counts."""
    torch.manual_seed(seed)
    anatomy = pool.anatomy
    shape = {"landmarks": len(anatomy.labels), "size": anatomy.size, "scales": len(options.step_mm)}
    if options.network == "fovea":
        network = FoveaNet(strides=tuple(anatomy.strides), spacing_mm=anatomy.spacing_mm, **shape)
    else:
        network = ConcentricNet(levels=len(anatomy.strides), unit_mm=6 * anatomy.spacing_mm, **shape)
    task_class = ShuffledTask if arm == "shuffled" else LandmarkTask
    task = task_class(pool.cases, size=anatomy.size, step_mm=options.step_mm, near_mm=options.near, start="mixed")
    supervision = OffsetSupervision(near_mm=options.near_mm)
    budget, start = options.minutes * 60, time.process_time()
    counts = {"cloning": 0, "dqn": 0}

    def elapsed() -> float:
        return time.process_time() - start  # of this process, so that other work on the machine favours no arm

    share = {"clone": 1.0, "gains": 1.0, "dqn": 0.5, "head": 0.75, "scratch": 0.0, "shuffled": 0.0}[arm]
    average = network
    if share > 0:
        agent = Cloning(
            network, task=task, imitate="actions" if arm == "clone" else "gains", near_mm=options.near_mm,
            supervision=supervision, updates=1_000_000, seed=seed,
        )  # fmt: skip
        while elapsed() < share * budget:
            agent.learning_rate = 1e-3 * cosine(elapsed() / budget)
            agent.learn()
            counts["cloning"] += 1
            if counts["cloning"] % 12 == 0:
                pool.refresh(1)
        average = agent.average
    if share < 1:
        network.load_state_dict(average.state_dict())
        replay = Replay(
            task, capacity=20_000, num_envs=64, n=options.n, gamma=options.gamma,
            alpha=0.6 if options.prioritised else 0.0,
            seed=seed,
        )  # fmt: skip
        agent = DQN(
            network, replay=replay, supervision=None if arm == "head" else supervision,
            train_only="value_head" if arm == "head" else "", near_mm=options.near_mm, updates=1_000_000, seed=seed,
            explore_updates=500, epsilon=(0.3 if share else 0.8, 0.05), imitation=options.imitation,
        )  # fmt: skip
        environment = Environment(task, num_envs=64, seed=seed)
        observation = environment.reset()
        while elapsed() < budget:
            agent.learning_rate = 1e-3 * cosine(elapsed() / budget)
            with torch.no_grad():
                action = agent.act(observation, explore=True).action
                state = environment.state
                step = environment.step(action)
            agent.record(state, action, step)
            observation = step.observation
            if agent.ready:
                agent.learn()
                counts["dqn"] += 1
                if counts["dqn"] % 12 == 0:
                    index = pool.refresh(1)
                    replay.discard(index)
                    observation = environment.reset_rows(torch.isin(environment.state.case.long(), index))
        average = agent.average
    return average.eval(), counts


def cosine(part: float) -> float:
    """Learning-rate factor at a share of the training time."""
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, part))))


@torch.no_grad()
def evaluate(network: LandmarkNet, anatomy: Anatomy, sources: list[Source], options: argparse.Namespace) -> dict:
    """Errors in mm of moves and jumps, started plainly and far, and absence decisions on cropped views."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list] = {}
    absence = {"moves": [], "jumps": []}
    heads = len(anatomy.labels)
    for source in sources:
        cropped = crop_third(source, generator, margin_mm=options.margin_mm)
        for setting, item in (("plain", source), ("far", source), ("cropped", cropped)):
            if item is None:
                continue
            cases = Cases.from_sources(
                [item], labels=anatomy.labels, spacing_mm=anatomy.spacing_mm, strides=tuple(anatomy.strides)
            )
            task = LandmarkTask(cases, size=anatomy.size, step_mm=options.step_mm)
            head = torch.arange(heads)
            case = torch.zeros(heads, dtype=torch.long)
            start = anatomy.shape_mm.clone()
            if setting == "far":
                start = (2 * torch.rand(heads, 3, generator=generator) - 1) * cases.pyramid.half_size_mm()[0] * 0.95
            for policy in ("moves", "jumps"):
                state = task.state(case, head, start)
                if policy == "moves":
                    walked = move(task, network, state, budget=60)
                else:
                    walked = jump(task, network, state, jumps=6, settle_mm=anatomy.spacing_mm)
                seen = look(task, network, task.state(case, head, walked.position_mm))
                end = seen.centre_mm + seen.heads.offset_mm[head, head]
                error = (end - cases.points_mm[0]).norm(dim=1)
                if setting != "cropped":
                    found.setdefault(f"{setting} {policy}", []).append(error)
                    found.setdefault(f"{setting} {policy}, place", []).append(
                        (walked.position_mm - cases.points_mm[0]).norm(dim=1)
                    )
                    found.setdefault(f"{setting} {policy} steps", []).append(walked.steps.float())
                else:
                    inside = cases.pyramid.crop(case, end, 1)[:, 0, 0, 0, 0] != 0
                    absence[policy].append(torch.stack([cases.present[0], inside], 1))
    result = {}
    for name, values in found.items():
        value = torch.cat(values)
        if name.endswith("steps"):
            result[name] = round(float(value.mean()), 1)
        else:
            result[name] = {
                "mean": round(float(value.mean()), 3), "median": round(float(value.median()), 3),
                "p95": round(float(value.quantile(0.95)), 2),
                "over 10 mm": round(float((value > 10).float().mean()), 4),
            }  # fmt: skip
    for policy, pairs in absence.items():
        if pairs:
            present, inside = torch.cat(pairs).unbind(1)
            result[f"cropped {policy}"] = {
                "sensitivity": round(float((~inside)[~present].float().mean()), 3),
                "specificity": round(float(inside[present].float().mean()), 3),
            }
    return result


def main(argv: list[str] | None = None) -> dict:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="clone,gains,dqn,head,scratch,shuffled")
    parser.add_argument("--spacing_mm", type=float, default=1.5)
    parser.add_argument("--margin", type=float, default=50.0, help="of the working box round the mean shape, mm")
    parser.add_argument("--margin_mm", type=float, default=6.0, help="of the crops' cut from every landmark")
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=17)
    parser.add_argument("--step_mm", type=float, nargs="+", default=[8.0, 3.0, 1.0])
    parser.add_argument("--near", type=float, nargs=3, default=[2.5, 8.0, 25.0])
    parser.add_argument("--near_mm", type=float, default=3.0)
    parser.add_argument("--gamma", type=float, default=0.9)
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--prioritised", action="store_true")
    parser.add_argument("--imitation", type=float, default=0.0)
    parser.add_argument("--network", choices=("fovea", "concentric"), default="concentric")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: dict[str, list] = {}
    sources = read_sources(options.dataset_dir, "validation")
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for arm in options.arms.split(","):
            pool = Pool(
                options.dataset_dir, spacing_mm=options.spacing_mm, margin_mm=options.margin, strides=options.strides,
                size=options.size, seed=seed,
            )  # fmt: skip
            network, counts = train(arm, pool, options, seed)
            result = evaluate(network, pool.anatomy, sources, options) | {"updates": counts, "seed": seed}
            results.setdefault(arm, []).append(result)
            print(arm, json.dumps(result), flush=True)
            if options.output:
                options.output.write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
