"""Speed of the registration environment and of a whole registration, and bytes of a transition.

    python benchmarks/registration_speed.py [--bundle bundles/ct_mri_registration] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from report import markdown

from medrl.bundle import load
from medrl.data.misalignment import draw_misalignment, image_centre, regrid
from medrl.data.pair_fields import draw_pair_cases
from medrl.data.pair_phantoms import PairPhantom, pair_phantom
from medrl.environment import Environment
from medrl.rollout import Rollout
from medrl.tasks.registration import RegistrationTask

COUNTS = ((300, 500), (400, 1500))  # places of features and of grey values that a pose is judged by


def steps_per_second(rows: int, *, counts: tuple[int, int], seconds: float) -> float:
    """Environment steps, observations and resets included; ``counts`` are a pose's places of features and of grey."""
    cases = draw_pair_cases(8, torch.Generator().manual_seed(0), counts=counts, side=20)
    environment = Environment(RegistrationTask(cases=cases), num_envs=rows, seed=0)
    environment.reset()
    actions = torch.randint(environment.task.moves, (64, rows), generator=torch.Generator().manual_seed(1))
    environment.step(actions[0])
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        environment.step(actions[count % 64])
        count += 1
    return rows * count / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/ct_mri_registration"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        [f"{rows} rows"] + [
            f"{steps_per_second(rows, counts=counts, seconds=options.seconds):.0f}" for counts in COUNTS
        ]
        for rows in (1, 16, 64)
    ]  # fmt: skip
    print(markdown(("environment", *(f"steps/s at {a} and {b} places" for a, b in COUNTS)), lines))
    task = RegistrationTask(cases=draw_pair_cases(2, torch.Generator().manual_seed(0)))
    environment = Environment(task, num_envs=4)
    environment.reset()
    rollout = Rollout(task, length=2, num_envs=4)
    state, action = environment.state, torch.zeros(4, dtype=torch.int64)
    rollout.add(state, environment.step(action), action=action, value=torch.zeros(4))
    print(f"bytes a transition: {rollout.bytes_per_transition()}")
    bundle = load(options.bundle, "cpu")
    draw = np.random.default_rng(0)
    pair = pair_phantom(draw, shape=(90, 90, 70), spacing_mm=2.2)
    fixed, moving = _images(pair)
    moving = regrid(moving, draw_misalignment("large", image_centre(fixed), draw).matrix, draw)
    times = []
    for _ in range(3):
        start = time.process_time()
        bundle.register(fixed, moving)
        times.append(time.process_time() - start)
    print(f"a registration of {tuple(fixed.shape[1:])} and {tuple(moving.shape[1:])} voxels: {min(times):.2f} s")


def _images(pair: PairPhantom) -> tuple[MetaTensor, ...]:
    return tuple(
        MetaTensor(torch.as_tensor(voxels).float()[None], affine=torch.as_tensor(affine))
        for voxels, affine in ((pair.ct, pair.ct_affine), (pair.mr, pair.mr_affine))
    )


if __name__ == "__main__":
    main()
