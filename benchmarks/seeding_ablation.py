"""Which reward teaches a seeding agent at equal training time, and what an agent is worth on a data set never seen.

    python benchmarks/seeding_ablation.py --mode rewards --dataset_dirs DIR [DIR ...] --minutes 4 --seeds 3
        --lattice 42 10 --updates 400 [--weights clone.pt] [--arms clone,gain,shuffled] [--output rewards.json]
    python benchmarks/seeding_ablation.py --mode leave_one_out --dataset_dirs DIR DIR [...] --work_dir DIR
        --updates 800 [--weights all.pt] [--output leave_one_out.json]

``rewards``: every arm has the trunk and the segmentation and quality heads of one network (``--weights``, or a clone of
``--updates`` updates), frozen, and a fresh value head, which alone learns, for the same processor time:

clone        regression of what each seed gains in one step (soft IoU), from random states
warm         half the time as ``clone``, then double DQN on the gain of IoU, with the last share explored
gain         double DQN on the gain of IoU
progress     DQN on the gain, losses counted twice
iou          DQN on the IoU itself, at every step
exponential  DQN on the exponential of the IoU
regions      DQN on the paper's reward: the exponential, less in weak regions, -1 for a wrong label
shuffled     ``gain`` with the rewards of a batch dealt out at random: the control that must fail
untrained    the value head before learning (it prefers no cell, so takes the first), and rules without one

Rewards for the level of a mask, not its change, are scaled by 0.1, so that all returns are of one size.

``leave_one_out``: a network is cloned, all of it, for ``--updates`` updates on all sets but one, and judged on that one
beside a network that was cloned on all sets.

Masks are those of the plain random walker on slices, from both pairs of clicks; the agent acts greedily and never
stops; ``kept`` is the mask that the quality head rates best.  Spreads are the lowest and highest of the seeds.
``--output`` is written after every network; a second run continues it.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from seeding import AFTER, load_network
from seeding_arms import ARMS, clone_network, renew_values, teach_values
from seeding_policies import Looker, Planned, Policy, agent, entropy, largest_error, play, random_believed
from torch import Tensor

from medrl.data.masks import read_mask_cases
from medrl.data.seed_cases import SeedCases
from medrl.data.seed_pool import SeedPool, fixed_cases
from medrl.data.write import whole_file, write_json
from medrl.networks.seednet import SeedNet
from medrl.tasks.seeding import SeedingTask
from medrl.types import InputError

WIDTH = 24
PLANNED = "agent, planned"
LARGEST = "largest error of the segmentation head"
POLICIES: dict[str, Callable[[Looker, torch.Generator], Policy]] = {
    "agent": lambda look, _: agent(look, stop=False),
    "random places, believed labels": random_believed,
    "entropy": lambda look, _: entropy(look),
    LARGEST: lambda look, _: largest_error(look),
    PLANNED: lambda look, _: Planned(look, agent(look, stop=False)),
}
EVERY_SET = "none"  # the name of the arm that leaves no set out
MATTERS = ("mode", "split", "minutes", "updates", "cases", "shares", "envs", "epsilon", "lattice", "weights",
           "dataset_dirs")  # fmt: skip
Scores = dict[str, dict[str, dict[str, float]]]  # by policy and data set


class Results:
    """One entry for every network judged, written whenever there is a new one."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.entries: list[dict[str, Any]] = []
        if path is not None and path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["settings"] != settings:
                raise InputError(f"{path.name}: expected results of the same settings; name another --output")
            self.entries = saved["entries"]

    def lack(self, arm: str, seed: int) -> bool:
        """Whether an arm has yet to be run."""
        return all((entry["arm"], entry["seed"]) != (arm, seed) for entry in self.entries)

    def add(self, arm: str, seed: int, updates: int | None, scores: Scores) -> None:
        """Keep an entry, and write all."""
        self.entries.append({"arm": arm, "seed": seed, "updates": updates, "scores": scores})
        shown = {policy: f"{_mean(s[str(max(AFTER))] for s in sets.values()):.3f}" for policy, sets in scores.items()}
        print(f"seed {seed}, {arm}, {updates} updates, IoU after {max(AFTER)}: {shown}", flush=True)
        if self.path is not None:
            write_json(self.path, {"settings": self.settings, "entries": self.entries})

    def values(self, arm: str, policy: str, sets: Sequence[str], what: str) -> Tensor:
        """A figure's mean over data sets, for every seed."""
        own = [e["scores"][policy] for e in self.entries if e["arm"] == arm and policy in e["scores"]]
        return torch.tensor([_mean(scores[name][what] for name in sets) for scores in own])


@torch.no_grad()
def evaluate(network: SeedNet, policies: Sequence[str], cases: dict[str, SeedCases], seed: int) -> Scores:
    """IoU after each number of seeds, ``kept`` by the quality head, and of the segmentation head ``alone``."""
    look, scores = Looker(network), {}
    for policy in policies:
        scores[policy] = {}
        for name, those in cases.items():
            task = SeedingTask(those, max_steps=max(AFTER), gains_stride=2)
            case = torch.arange(len(those)).repeat_interleave(those.pairs)
            start = task.start(case, torch.arange(those.pairs).repeat(len(those)))
            believed, truth = look(task, start).mask_logits > 0, those.masks(case)
            alone = (believed & truth).sum(1) / (believed | truth).sum(1)
            choose = POLICIES[policy](look, torch.Generator().manual_seed(seed))
            states = play(task, choose, start, max(AFTER))
            iou = torch.stack([task.score(state) for state in states], 1)
            quality = torch.stack([look(task, state).quality for state in states], 1)
            kept = iou.gather(1, quality.argmax(1, keepdim=True))
            found = {str(n): iou[:, n] for n in AFTER} | {"kept": kept, "alone": alone}
            scores[policy][name] = {what: float(value.mean()) for what, value in found.items()}
    return scores


def compare_rewards(options: argparse.Namespace, cases: dict[str, SeedCases], results: Results, seed: int) -> None:
    """All arms of one seed that are not in the results, on one pool and from one network."""
    arms = [arm for arm in options.arms.split(",") if results.lack(arm, seed)]
    if not arms:
        return
    shape, grid = lattice(options)
    pool = SeedPool(options.dataset_dirs, shape=shape, grid=grid, count=options.cases, shares=options.shares, seed=seed)
    if options.weights is None:
        torch.manual_seed(seed)
        trunk = SeedNet(dims=2, grid=grid, width=WIDTH)
        trunk = clone_network(trunk, pool, updates=options.updates, seed=seed)
    else:
        trunk = load_network(options.weights, 2, grid)
    first = renew_values(trunk, pool.cases, seed)
    for arm in arms:
        network, updates = teach_values(
            arm, copy.deepcopy(first), pool, minutes=options.minutes, envs=options.envs, epsilon=options.epsilon,
            seed=seed,
        )  # fmt: skip
        rules = tuple(POLICIES) if arm == "untrained" else ("agent",)
        results.add(arm, seed, updates, evaluate(network, rules, cases, seed))


def leave_one_out(options: argparse.Namespace, cases: dict[str, SeedCases], results: Results, seed: int) -> None:
    """The network of every set, then those that never saw one of them, as far as they are not in the results."""
    for left_out in (EVERY_SET, *cases):
        if not results.lack(left_out, seed):
            continue
        path = options.work_dir / f"without_{left_out}_{options.updates}_{seed}.pt"
        if left_out == EVERY_SET and options.weights is not None:
            path = options.weights
        if not path.exists():
            train_without(left_out, path, options, seed)
        judged = cases if left_out == EVERY_SET else {left_out: cases[left_out]}
        scores = evaluate(load_network(path, 2, lattice(options)[1]), (PLANNED, "agent", LARGEST), judged, seed)
        results.add(left_out, seed, options.updates, scores)


def lattice(options: argparse.Namespace) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sides of the slices and of the grid of cells."""
    return (options.lattice[0],) * 2, (options.lattice[1],) * 2


def train_without(left_out: str, path: Path, options: argparse.Namespace, seed: int) -> None:
    """Clone a network on all data sets but one, and save it."""
    used = [n for n, folder in enumerate(options.dataset_dirs) if folder.name != left_out]
    shares = None if options.shares is None else [options.shares[n] for n in used]
    folders = [options.dataset_dirs[n] for n in used]
    shape, grid = lattice(options)
    pool = SeedPool(folders, shape=shape, grid=grid, count=options.cases, shares=shares, seed=seed)
    torch.manual_seed(seed)
    network = SeedNet(dims=2, grid=grid, width=WIDTH)
    network = clone_network(network, pool, updates=options.updates, seed=seed)
    with whole_file(path) as part:
        torch.save(network.state_dict(), part)


def reward_tables(results: Results, sets: Sequence[str]) -> str:
    """A markdown table for every data set, and one for their mean."""
    columns, tables = [*(str(n) for n in AFTER[1:]), "kept"], []
    rows = [(entry["arm"], policy) for entry in results.entries for policy in entry["scores"]]
    for title, group in (*((name, [name]) for name in sets), ("mean of the sets", sets)):
        clicks, alone = (float(results.values(*rows[0], group, what)[0]) for what in ("0", "alone"))
        tables.append(f"\n{title}: two clicks {clicks:.3f}, segmentation head alone {alone:.3f}\n")
        tables += [f"| {' | '.join(('arm', *columns))} |", "|---" * (1 + len(columns)) + "|"]
        for arm, policy in dict.fromkeys(rows):
            cells = [_spread(results.values(arm, policy, group, what)) for what in columns]
            tables.append(f"| {' | '.join((arm if policy == 'agent' else policy, *cells))} |")
    return "\n".join(tables)


def left_out_table(results: Results, sets: Sequence[str]) -> str:
    """Markdown: every data set under the network that never saw it (new), beside the one that did (seen)."""
    head = ("data set", "policy", "two clicks", "alone, seen", "alone, new", "after 10, seen", "after 10, new",
            "gain, seen", "gain, new", "new / seen")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    last = str(max(AFTER))
    for name in sets:
        for policy in (PLANNED, "agent", LARGEST):
            clicks = results.values(EVERY_SET, policy, [name], "0")
            alone = [results.values(arm, policy, [name], "alone") for arm in (EVERY_SET, name)]
            after = [results.values(arm, policy, [name], last) for arm in (EVERY_SET, name)]
            gain = [value - clicks for value in after]
            ratio = float(gain[1].mean() / gain[0].mean())
            cells = [_spread(value) for value in (clicks, *alone, *after, *gain)]
            lines.append(f"| {' | '.join((name, policy, *cells, f'{ratio:.2f}'))} |")
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).mean())


def _spread(values: Tensor) -> str:
    more = f" ({values.min():.3f} to {values.max():.3f})" if len(values) > 1 else ""
    return f"{values.mean():.3f}{more}"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run a mode and print its tables; returns the entries that ``--output`` holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("rewards", "leave_one_out"), required=True)
    parser.add_argument("--dataset_dirs", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, help="of the trunk, or of a network on all sets, instead of --updates")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--shares", type=float, nargs="+", help="how often each set is drawn from (default: evenly)")
    parser.add_argument("--lattice", type=int, nargs=2, default=[84, 20], help="side of the slices, and of the grid")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--minutes", type=float, default=6.0, help="of processor time for every arm")
    parser.add_argument("--updates", type=int, default=800, help="of every network that is cloned whole")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200, help="in the pool; 12 MB each")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--epsilon", type=float, nargs=2, default=[0.4, 0.2], help="share explored, first and last")
    parser.add_argument("--work_dir", type=Path, default=Path("seeding_ablation"), help="for networks to be kept")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if unknown := set(options.arms.split(",")) - set(ARMS):
        parser.error(f"unknown arms {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    if options.mode == "leave_one_out" and len(options.dataset_dirs) < 2:
        parser.error("--mode leave_one_out needs two --dataset_dirs or more")
    if options.shares is not None and len(options.shares) != len(options.dataset_dirs):
        parser.error("--shares needs a number for each of --dataset_dirs")
    settings = {name: getattr(options, name) for name in MATTERS}
    settings["weights"] = None if options.weights is None else options.weights.name
    settings["dataset_dirs"] = [folder.name for folder in options.dataset_dirs]
    results = Results(options.output, settings)
    shape, grid = lattice(options)
    cases = {
        folder.name: fixed_cases(list(read_mask_cases(folder, options.split)), shape=shape, grid=grid)
        for folder in options.dataset_dirs
    }
    run = compare_rewards if options.mode == "rewards" else leave_one_out
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        run(options, cases, results, seed)
    table = reward_tables if options.mode == "rewards" else left_out_table
    print(table(results, tuple(cases)))
    return results.entries


if __name__ == "__main__":
    main()
