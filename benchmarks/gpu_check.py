"""Check and time medrl on a CUDA card, in one command of under 8 minutes; prints a markdown table.

    python benchmarks/gpu_check.py [--seconds 2] [--json gpu.json]

Runs ``pytest -m gpu``, then: environment steps/s; double-DQN updates/s in fp32 and bf16, with channels_last_3d, a CUDA
graph and torch.compile, each with its gradients checked against the eager update and the share that it reaches of the
card's measured matrix rate; 100 training steps in which the host must never wait for the card; seconds a volume.
Exits with 1 if a check failed.  ``--dry-run`` goes the same ways in small on whatever there is, also on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from report import Report, figure, table, write_json
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from update_modes import first_gradient, prepare
from workloads import SPACING_MM, build_agent, measure, random_anatomy, random_cases, random_steps, random_volume

from medrl.environment import Environment
from medrl.networks.fovea import FoveaNet
from medrl.tasks.landmark import LandmarkTask

MINUTES = 7.5  # after which nothing more is begun
COMPILE_SECONDS = 120.0  # that torch.compile may need
LIMITS = {"bf16": 0.2, "bf16, channels_last_3d": 0.05, "bf16, CUDA graph": 0.05, "bf16, torch.compile": 0.05}
TESTS = Path(__file__).resolve().parents[1] / "tests"


class Scale(NamedTuple):
    """How large everything is."""

    side: int  # of volumes
    environments: tuple[int, ...]
    updates: tuple[tuple[str, int, int | None], ...]  # network, batch size, crop size (None: the network's own)
    compiled: tuple[str, int, int | None]
    matrix: int
    volumes: tuple[tuple[tuple[int, int, int], tuple[float, float, float]], ...]
    policies: tuple[str, ...]
    steps: int  # of training, without a wait


FULL = Scale(
    side=128,
    environments=(256, 4096, 16384),
    updates=(("FoveaNet", 64, None), ("FoveaNet", 256, None), ("ConcentricNet", 256, None), ("AlansaryNet", 64, None)),
    compiled=("FoveaNet", 256, None),
    matrix=8192,
    volumes=(((128, 128, 128), (1.5, 1.5, 1.5)), ((512, 512, 400), (0.75, 0.75, 1.0))),
    policies=("jumps", "moves"),
    steps=100,
)
SMALL = Scale(
    side=32,
    environments=(8,),
    updates=(("FoveaNet", 4, 9), ("AlansaryNet", 1, 35)),
    compiled=("FoveaNet", 4, 9),
    matrix=128,
    volumes=(((24, 24, 24), (6.0, 6.0, 6.0)),),
    policies=("jumps",),
    steps=5,
)


@dataclass
class Reference:
    """What the modes of one network have in common: gradients to be compared, and the work of an update."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0


def check_tests(report: Report) -> None:
    """Run the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=TESTS.parent, check=False)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode != 0:
        report.fail("tests", "pytest -m gpu", last)
    else:
        report.add("tests", "pytest -m gpu", 0.0, "failures", last.strip("= "))


def time_matrix(report: Report, scale: Scale, device: torch.device) -> float:
    """FLOP/s of a large bf16 matrix product: the rate that updates are held against."""
    n = scale.matrix
    first, second = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * n**3 / measure(lambda: first @ second, seconds=report.seconds, device=device).wall
    report.add("card", f"bf16 matrix product of {n}^3", rate / 1e12, "TFLOP/s")
    return rate


def time_environment(report: Report, scale: Scale, device: torch.device) -> None:
    """Steps/s with random actions, resets and crops included."""
    for name, size, strides in (("one 25^3 crop", 25, (1,)), ("default, 17^3 at 3 levels", 17, (1, 2, 4))):
        cases = random_cases(side=scale.side, strides=strides, device=device)
        for count in scale.environments:
            with report.attempt("env", f"{name}, {count:,} rows"):
                step = random_steps(Environment(LandmarkTask(cases, size=size), num_envs=count))
                seconds = measure(step, seconds=report.seconds, device=device).wall
                report.add("env", f"{name}, {count:,} rows", count / seconds, "steps/s")


def time_updates(report: Report, scale: Scale, device: torch.device, rate: float) -> None:
    """Updates/s of every network in every mode but torch.compile."""
    for name, batch_size, size in scale.updates:
        reference = Reference()
        for mode in ("fp32", "bf16", "bf16, channels_last_3d", "bf16, CUDA graph"):
            time_update(report, name, batch_size, size, mode, scale, device, rate, reference)


def time_compiled(report: Report, scale: Scale, device: torch.device, rate: float) -> None:
    """Updates/s with torch.compile, last of all because it takes long to begin."""
    name, batch_size, size = scale.compiled
    if report.left() < COMPILE_SECONDS:
        report.add(
            "update", f"{name}, batch {batch_size}, bf16, torch.compile", float("nan"), "", "left out: no time left"
        )
        return
    reference = Reference()
    for mode in ("bf16", "bf16, torch.compile"):
        time_update(report, name, batch_size, size, mode, scale, device, rate, reference)


def time_update(
    report: Report, name: str, batch_size: int, size: int | None, mode: str, scale: Scale, device: torch.device,
    rate: float, reference: Reference,
) -> None:  # fmt: skip
    """One row: updates/s of a mode, its gradients against the eager update's (bf16: fp32's, the rest: bf16's)."""
    what = f"{name}, batch {batch_size}, {mode}"
    if report.left() < 0:
        report.add("update", what, float("nan"), "", "no time left")
        return
    with report.attempt("update", what):
        agent = build_agent(
            name, side=scale.side, size=size, batch_size=batch_size, bf16=mode.startswith("bf16"), device=device
        )
        # batch normalisation and the averages move with every update: the check needs the first one
        learn = prepare(agent, mode, device)
        gradient = first_gradient(agent, learn)
        reference.gradients[mode] = gradient
        against = reference.gradients.get("fp32" if mode == "bf16" else "bf16")
        notes = []
        if against is not None and mode in LIMITS:
            difference = float((gradient - against).norm() / against.norm())
            notes.append(f"gradient differs by {figure(100 * difference)} %")
            if not difference <= LIMITS[mode]:
                report.failures.append(f"update, {what}: {notes[0]}, at most {100 * LIMITS[mode]:.0f} % was expected")
        if not reference.flops:
            with FlopCounterMode(display=False) as counter:
                agent.learn()
            reference.flops = counter.get_total_flops()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = measure(learn, seconds=report.seconds, device=device).wall
        speed = reference.flops / seconds
        notes.append(f"{figure(speed / 1e12)} TFLOP/s, {figure(100 * speed / rate)} % of the matrix rate")
        if device.type == "cuda":
            notes.append(f"peak {torch.cuda.max_memory_allocated(device) / 1e9:.2g} GB")
        report.add("update", what, 1 / seconds, "updates/s", "; ".join(notes))


def check_synchronisation(report: Report, scale: Scale, device: torch.device) -> None:
    """Act, step, record and learn without one wait of the host for the card."""
    steps = scale.steps
    what = f"{steps} training steps without a wait of the host"
    with report.attempt("sync", what):
        name, batch_size, size = scale.updates[0]
        agent = build_agent(name, side=scale.side, size=size, batch_size=batch_size, bf16=True, device=device)
        environment = Environment(agent.replay.task, num_envs=agent.replay.num_envs)
        environment.reset()

        def train() -> None:
            state = environment.state
            action = agent.act(environment.observe(), explore=True).action
            agent.record(state, action, environment.advance(action))
            agent.learn()

        train()  # libraries may wait when they are loaded
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        start = time.perf_counter()
        try:
            for _ in range(steps):
                train()
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        report.add(
            "sync", what, steps / seconds, "training steps/s", f"{environment.num_envs} rows, batch {batch_size}"
        )


def time_volumes(report: Report, scale: Scale, device: torch.device) -> None:
    """Seconds to locate ten landmarks in a volume that lies in the host's memory, with an untrained network."""
    from medrl.inference.landmarks import LandmarkInferer  # MONAI takes seconds to load, which no other part needs

    anatomy = random_anatomy()
    torch.manual_seed(0)
    network = FoveaNet(landmarks=len(anatomy.labels), strides=tuple(anatomy.strides), spacing_mm=SPACING_MM).to(device)
    for shape, spacing_mm in scale.volumes:
        volume, matrix = random_volume(shape, spacing_mm)
        for policy in scale.policies:
            what = f"{' x '.join(map(str, shape))}, {policy}"
            with report.attempt("volume", what):
                inferer = LandmarkInferer(anatomy, policy=policy)

                def locate(
                    inferer: LandmarkInferer = inferer, volume: Tensor = volume, matrix: Tensor = matrix
                ) -> None:
                    inferer.locate(volume, matrix, network)

                seconds = measure(locate, seconds=report.seconds, device=device).wall
                report.add("volume", what, seconds, "s/volume", f"{len(anatomy.labels)} landmarks, resampling included")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each repeated measurement")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, also on a CPU: figures mean nothing")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if not cuda:
        print(
            f"no CUDA device here: {'a dry run on the CPU' if options.dry_run else 'try --dry-run, or another machine'}"
        )
        if not options.dry_run:
            return 2
    device = torch.device("cuda" if cuda else "cpu")
    scale, report = (SMALL if options.dry_run else FULL), Report(seconds=options.seconds, limit=60 * MINUTES)
    if not options.dry_run:
        with report.attempt("tests", "pytest -m gpu"):
            check_tests(report)
    rate = float("nan")
    with report.attempt("card", "matrix product"):
        rate = time_matrix(report, scale, device)
    time_environment(report, scale, device)
    check_synchronisation(report, scale, device)
    time_volumes(report, scale, device)
    time_updates(report, scale, device, rate)
    time_compiled(report, scale, device, rate)
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    machine = f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    print(f"{machine}; {figure(report.spent())} s in all.\n")
    print(table(report.rows))
    for failure in report.failures:
        print(f"FAILED: {failure}")
    if options.json is not None:
        write_json(options.json, machine, report.rows, report.failures)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
