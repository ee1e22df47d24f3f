"""What ten seeds of an agent are worth on the plain random walker, beside every rule that could place them.

    python benchmarks/seeding.py --dataset_dirs DIR [DIR ...] [--dims 2] [--split test]
        [--weights agent.pt] [--clone clone.pt] [--output results.json]

``agent`` plans its seeds ahead (``medrl.inference.seed_planning``) from those of the largest action values, which are
``agent, one look a seed``; ``largest error, planned further`` is the same plan from the rule's seeds.  Rows, by case
and both pairs of clicks (innermost and random): IoU after 0, 1, 3, 5 and 10 seeds; ``best`` is the highest IoU on the
way (an oracle), ``kept`` the mask that is shown in the end: the one before gives way only to one whose expected IoU,
by the segmentation head at the start, is clearly higher, as in a session; ``drops`` the share of seeds that cost more
than 0.02 IoU, ``shown`` of those that cost the mask shown as much; ``agent better by`` the paired difference after 10
seeds, with its bootstrap 95 % interval over cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeding_policies import (
    Looker,
    Planned,
    Policy,
    agent,
    entropy,
    greedy_oracle,
    largest_error,
    play,
    random_believed,
    random_truth,
    simulated_user,
)
from torch import Tensor

from medrl.bundle import load
from medrl.data.masks import read_mask_cases
from medrl.data.seed_cases import SeedCases
from medrl.data.seed_pool import fixed_cases
from medrl.data.write import write_json
from medrl.geometry.overlap import expected_iou, iou
from medrl.inference.segmentation import Rules
from medrl.networks.seednet import SeedNet
from medrl.tasks.seeding import SeedingTask

LATTICES = {2: ((84, 84), (20, 20)), 3: ((24, 24, 24), (6, 6, 6))}
BUNDLE = Path(__file__).parents[1] / "bundles" / "seednet_interactive_segmentation"
AFTER = (0, 1, 3, 5, 10)


def load_network(path: Path, dims: int, grid: Sequence[int] | None = None) -> SeedNet:
    """A seeding network from a bundle's folder or from its weights; its width is read from them."""
    if path.is_dir():
        return load(path, "cpu").network.agent(dims)
    weights = torch.load(path, weights_only=True)
    grid = LATTICES[dims][1] if grid is None else grid
    network = SeedNet(dims=dims, grid=grid, width=weights["stem.0.weight"].shape[0])
    network.load_state_dict(weights)
    return network.eval()


def policies(look: Looker, clone: Looker | None, seed: int) -> dict[str, Policy]:
    """Every row by its name; oracles see the truth."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    rows = {
        "oracle: random places": random_truth(generator()),
        "oracle: largest error (simulated user)": simulated_user,
        "oracle: greedy": greedy_oracle,
        "random places, believed labels": random_believed(look, generator()),
        "entropy": entropy(look),
        "largest error of the segmentation head": largest_error(look),
        "largest error, planned further": Planned(look, largest_error(look)),
        "agent, one look a seed": agent(look, stop=False),
        "agent": Planned(look, agent(look, stop=False)),
    }
    if clone is not None:
        rows |= {"cloning alone": agent(clone, stop=False)}
    return rows


def score_rows(cases: SeedCases, look: Looker, clone: Looker | None, seed: int = 0) -> dict[str, Tensor]:
    """IoU (N, 11) of every row after each seed, the mean over the pairs of clicks, and of what its quality keeps."""
    task = SeedingTask(cases, max_steps=max(AFTER), gains_stride=4 - len(cases.shape))
    case = torch.arange(len(cases)).repeat_interleave(cases.pairs)
    pair = torch.arange(cases.pairs).repeat(len(cases))
    start, scores = task.start(case, pair), {}

    def by_case(values: Tensor) -> Tensor:
        return values.reshape(len(cases), cases.pairs, *values.shape[1:]).mean(1)

    belief, truth = look(task, start).mask_logits.sigmoid(), cases.masks(case)
    scores["network alone"] = by_case(iou(belief > 0.5, truth))
    for name, policy in policies(look, clone, seed).items():
        states = play(task, policy, start, max(AFTER))
        reached = torch.stack([task.score(state) for state in states], 1)
        expected = torch.stack([expected_iou(belief, task.potential(state) > 0.5) for state in states], 1)
        shown = reached.gather(1, best_so_far(expected, Rules.caution))
        scores[name] = by_case(reached)
        scores[f"{name} | kept"] = by_case(shown[:, -1])
        scores[f"{name} | best"] = by_case(reached.amax(1))
        scores[f"{name} | drops"] = by_case((reached.diff(dim=1) < -0.02).float().mean(1))
        scores[f"{name} | shown"] = by_case((shown.diff(dim=1) < -0.02).float().mean(1))
    return scores


def best_so_far(expected: Tensor, margin: float) -> Tensor:
    """Which mask (B, n) of those so far is shown after each step; another must promise ``margin`` more than it."""
    shown = torch.zeros_like(expected, dtype=torch.int64)
    for step in range(1, expected.shape[1]):
        former = shown[:, step - 1]
        better = expected[:, step] > expected.gather(1, former[:, None])[:, 0] + margin
        shown[:, step] = torch.where(better, step, former)
    return shown


def write_table(scores: dict[str, Tensor]) -> str:
    """The rows as markdown."""
    agent_last, alone, more = scores["agent"][:, -1], scores["network alone"], ("best", "kept", "drops", "shown")
    head = ["policy", *(str(n) for n in AFTER), *more, "agent better by"]
    rows = [[f"network alone | {alone.mean():.3f}", *[""] * (len(head) - 3), _difference(agent_last, alone)]]
    for name, values in scores.items():
        if values.ndim == 2:
            after = [values[:, n] for n in AFTER] + [scores[f"{name} | {what}"] for what in more]
            rows.append([name, *(f"{value.mean():.3f}" for value in after), _difference(agent_last, values[:, -1])])
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _difference(first: Tensor, second: Tensor) -> str:
    paired = (first - second).numpy()
    draws = np.random.default_rng(0).choice(paired, (2000, len(paired))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{paired.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print a table for every dataset; returns what ``--output`` holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dirs", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, default=BUNDLE, help="state dict of a SeedNet, or a bundle's folder")
    parser.add_argument("--clone", type=Path)
    parser.add_argument("--dims", type=int, default=2, choices=tuple(LATTICES))
    parser.add_argument("--split", default="test", choices=("training", "validation", "test"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    look = Looker(load_network(options.weights, options.dims))
    clone = None if options.clone is None else Looker(load_network(options.clone, options.dims))
    shape, grid = LATTICES[options.dims]
    results = {}
    for folder in options.dataset_dirs:
        volumes = list(read_mask_cases(folder, options.split))
        cases = fixed_cases(volumes, shape=shape, grid=grid, seed=options.seed)
        scores = score_rows(cases, look, clone, options.seed)
        print(f"\n{folder.name}, {len(cases)} cases, {options.dims}D\n\n{write_table(scores)}", flush=True)
        results[folder.name] = {name: value.tolist() for name, value in scores.items()}
    if options.output is not None:
        write_json(options.output, results)
    return results


if __name__ == "__main__":
    main()
