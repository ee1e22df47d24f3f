"""Active object localisation: agent, cloning, regressor, controls and ceiling; or, with --speed, steps a second.

    python benchmarks/localisation.py --output OUT [--seeds 0 1 2] [--arms ...]
    python benchmarks/localisation.py --output OUT --data BOXES --clone-updates 300 --updates 200
    python benchmarks/localisation.py --speed

Without ``--data`` on procedural pictures (2,000 to learn from, 0 to 3 targets each; 100 to calibrate; 500 with one
target and 252 with 0 to 3 to measure on, of other seeds); with it on a folder of
``data_scripts/prepare_boxes.py``.  OUT gets ``<arm>_<seed>.pt``, and results.json with every figure; arms that are
there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from localisation_arms import ARMS, Setting, train, train_regressor
from localisation_figures import expert_ceiling, measure_agent, measure_regressor, random_walks, summarise
from report import figure, markdown

from medrl.data.box_cases import BoxCases
from medrl.data.box_files import load_box_cases, read_box_dataset
from medrl.data.box_phantoms import draw_box_cases
from medrl.environment import Environment
from medrl.tasks.localisation import LocalisationTask

logger = logging.getLogger(__name__)

MANY = (0, 1, 2, 3)


def procedural() -> dict[str, BoxCases]:
    """The sections of the procedural set; seeds differ."""
    return {
        "training": draw_box_cases(2000, np.random.default_rng(1)).mirrored(),
        "validation": draw_box_cases(100, np.random.default_rng(2)),
        "test": draw_box_cases(500, np.random.default_rng(3), targets=(1,)),
        "many": draw_box_cases(252, np.random.default_rng(4), targets=MANY),
    }


def from_folder(folder: Path, *, longest: int, channels: int) -> dict[str, BoxCases]:
    """The sections of a data set's folder."""
    sections = {
        section: load_box_cases(read_box_dataset(folder, section), longest=longest, channels=channels)
        for section in ("training", "validation", "test")
    }
    return sections | {"training": sections["training"].mirrored()}


def steps_per_second(rows: int, seconds: float = 5.0) -> float:
    """Environment steps of a second, observation and reset included, on procedural pictures."""
    environment = Environment(LocalisationTask(draw_box_cases(64, np.random.default_rng(0))), num_envs=rows, seed=0)
    environment.reset()
    plan = torch.randint(9, (64, rows), generator=torch.Generator().manual_seed(1))
    environment.step(plan[0])
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        environment.step(plan[count % 64])
        count += 1
    return count * rows / (time.perf_counter() - start)


def speed() -> None:
    """Print environment steps and updates a second."""
    lines = [(f"environment steps/s, rows: {rows}", figure(steps_per_second(rows))) for rows in (1, 16, 256)]
    setting = Setting(clone_updates=20, updates=40, log_every=10_000)
    cases = draw_box_cases(64, np.random.default_rng(0))
    for arm, updates in (("cloning", 20), ("DQN from scratch", 60)):
        start = time.perf_counter()
        train(cases, arm, seed=0, setting=setting)
        lines.append((f"updates/s of 128, {arm}", figure(updates / (time.perf_counter() - start))))
    print(markdown(("what", "figure"), lines))


def main() -> None:
    """Train and measure the arms, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("localisation"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="a folder with dataset.json (default: procedural pictures)")
    parser.add_argument("--longest", type=int, default=96, help="pixels of the longer side, with --data")
    parser.add_argument("--channels", type=int, default=3, help="1 grey, 3 colours; with --data")
    parser.add_argument("--arms", nargs="*", default=["regressor", *ARMS])
    parser.add_argument("--clone-updates", type=int, default=Setting.clone_updates)
    parser.add_argument("--updates", type=int, default=Setting.updates)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.speed:
        speed()
        return
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    sections = (
        procedural() if options.data is None
        else from_folder(options.data, longest=options.longest, channels=options.channels)
    )  # fmt: skip
    setting = Setting(clone_updates=options.clone_updates, updates=options.updates)

    def keep(name: str, figures: dict[str, Any]) -> None:
        results[name] = figures
        path.write_text(json.dumps(results, indent=1))
        logger.info("%s: %s", name, {k: round(v, 3) for k, v in figures.items() if isinstance(v, float)})

    if "ceiling" not in results:
        keep("ceiling", expert_ceiling(sections))
        keep("random", random_walks(sections))
    for seed in options.seeds:
        regressor = None
        for arm in options.arms:
            name, weights = f"{arm} {seed}", options.output / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}.pt"
            start = time.process_time()
            if arm == "regressor":
                regressor = train_regressor(sections["training"], seed=seed, setting=setting, weights=weights)
                if name not in results:
                    keep(name, measure_regressor(regressor, sections))
                continue
            warm = options.output / f"cloning_{seed}.pt"
            network = train(sections["training"], arm, seed=seed, setting=setting, weights=weights, warm=warm)
            if name not in results:
                spent = time.process_time() - start
                figures = measure_agent(network, sections, regressor, brief=not ARMS[arm].clone)
                keep(name, figures | {"seconds": spent})
    print(summarise(results))


if __name__ == "__main__":
    main()
