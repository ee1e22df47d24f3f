"""Check and time medrl on a CUDA card, in one command of under 8 minutes; prints a markdown table.

    python benchmarks/gpu_check.py [--seconds 2] [--json gpu.json]

Runs ``pytest -m gpu``, then: environment steps/s; double-DQN updates/s in fp32 and bf16, with channels_last_3d, a CUDA
graph and torch.compile, each with its gradients checked against the eager update and the share that it reaches of the
card's measured matrix rate; 100 training steps in which the host must never wait for the card; seconds a volume.
Exits with 1 if a check failed.  ``--dry-run`` goes the same ways in small on whatever there is, also on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from workloads import (
    SPACING_MM, Row, build_agent, figure, measure, random_anatomy, random_cases, random_steps, random_volume, table,
)  # fmt: skip

from medrl.agents.dqn import DQN
from medrl.environment import Environment
from medrl.inference.landmarks import LandmarkInferer
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
    128, (256, 4096, 16384), (("FoveaNet", 64, None), ("FoveaNet", 256, None), ("ConcentricNet", 256, None), ("AlansaryNet", 64, None)),
    ("FoveaNet", 256, None), 8192, (((128, 128, 128), (1.5, 1.5, 1.5)), ((512, 512, 400), (0.75, 0.75, 1.0))),
    ("jumps", "moves"), 100,
)  # fmt: skip
SMALL = Scale(
    32, (8,), (("FoveaNet", 4, 9), ("AlansaryNet", 1, 35)), ("FoveaNet", 4, 9), 128, (((24, 24, 24), (6.0, 6.0, 6.0)),),
    ("jumps",), 5,
)  # fmt: skip


@dataclass
class Reference:
    """What the modes of one network have in common: gradients to be compared, and the work of an update."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0


class Report:
    """Collects rows; what raises becomes a failed row, so that the others are still measured."""

    def __init__(self, seconds: float) -> None:
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.seconds, self.start = seconds, time.monotonic()

    def left(self) -> float:
        """Seconds until nothing more is begun."""
        return 60 * MINUTES - (time.monotonic() - self.start)

    @contextmanager
    def attempt(self, part: str, what: str) -> Iterator[None]:
        """Turn an exception into a failed row."""
        try:
            yield
        except Exception as error:  # whatever a card or driver may raise
            message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            self.fail(part, what, f"{type(error).__name__}: {message[:160]}")

    def add(self, part: str, what: str, value: float, unit: str, note: str = "") -> None:
        """Keep a measurement."""
        self.rows.append(Row(part, what, value, unit, note))

    def fail(self, part: str, what: str, note: str) -> None:
        """Keep a failure."""
        self.rows.append(Row(part, what, float("nan"), "", f"FAILED, {note}"))
        self.failures.append(f"{part}, {what}: {note}")


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
        report.add("update", f"{name}, batch {batch_size}, bf16, torch.compile", float("nan"), "", "left out: no time left")
        return
    reference = Reference()
    for mode in ("bf16", "bf16, torch.compile"):
        time_update(report, name, batch_size, size, mode, scale, device, rate, reference)


def time_update(
    report: Report, name: str, batch_size: int, size: int | None, mode: str, scale: Scale, device: torch.device,
    rate: float, reference: Reference,
) -> None:  # fmt: skip
    """One row: updates/s of a mode, its gradients against the eager update's (bf16 against fp32, the rest against bf16)."""
    what = f"{name}, batch {batch_size}, {mode}"
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


def prepare(agent: DQN, mode: str, device: torch.device) -> Callable[[], Any]:
    """The update in a mode, as a function; the agent's networks and draws stay as they were."""
    networks = (agent.network, agent.target, agent.average)
    if "channels_last_3d" in mode:
        for network in networks:
            network.to(memory_format=torch.channels_last_3d)
    if "torch.compile" in mode:
        options: dict[str, Any] = {"dynamic": False} | ({} if device.type == "cuda" else {"backend": "eager"})
        for network in networks:
            network.compile(**options)
            if hasattr(network, "locate"):  # what an update calls instead of forward where places are voted for
                network.locate = torch.compile(network.locate, **options)
    if "CUDA graph" not in mode or device.type != "cuda":
        return agent.learn
    for group in agent.optimizer.param_groups:
        group["capturable"] = True
    before = keep(agent)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            agent.learn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(agent.replay.generator)
    agent.optimizer.zero_grad(set_to_none=True)
    # the learning rate and the pace of the averages are numbers: the graph keeps those of this update
    with torch.cuda.graph(graph):
        agent.learn()
    restore(agent, before)
    return graph.replay


def keep(agent: DQN) -> dict[str, Any]:
    """A copy of what the first update depends on."""
    copies = [{k: v.clone() for k, v in n.state_dict().items()} for n in (agent.network, agent.target, agent.average)]
    return {"networks": copies, "generator": agent.replay.generator.get_state()}


def restore(agent: DQN, before: dict[str, Any]) -> None:
    """Undo updates in place, so that a captured graph still finds its tensors."""
    for network, saved in zip((agent.network, agent.target, agent.average), before["networks"], strict=True):
        network.load_state_dict(saved)
    agent.replay.generator.set_state(before["generator"])


def first_gradient(agent: DQN, learn: Callable[[], Any]) -> Tensor:
    """All gradients of the next update, in one vector."""
    learn()
    gradients = [p.grad for p in agent.network.parameters() if p.grad is not None]
    return torch.cat([g.detach().float().reshape(-1) for g in gradients])


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
        report.add("sync", what, steps / seconds, "training steps/s", f"{environment.num_envs} rows, batch {batch_size}")


def time_volumes(report: Report, scale: Scale, device: torch.device) -> None:
    """Seconds to locate ten landmarks in a volume that lies in the host's memory, with an untrained network."""
    anatomy = random_anatomy()
    torch.manual_seed(0)
    network = FoveaNet(landmarks=len(anatomy.labels), strides=tuple(anatomy.strides), spacing_mm=SPACING_MM).to(device)
    for shape, spacing_mm in scale.volumes:
        volume, matrix = random_volume(shape, spacing_mm)
        for policy in scale.policies:
            what = f"{' x '.join(map(str, shape))}, {policy}"
            with report.attempt("volume", what):
                inferer = LandmarkInferer(anatomy, policy=policy)

                def locate(inferer: LandmarkInferer = inferer, volume: Tensor = volume, matrix: Tensor = matrix) -> None:
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
        print(f"no CUDA device here: {'a dry run on the CPU' if options.dry_run else 'try --dry-run, or another machine'}")
        if not options.dry_run:
            return 2
    device = torch.device("cuda" if cuda else "cpu")
    scale, report = (SMALL if options.dry_run else FULL), Report(options.seconds)
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
    seconds = time.monotonic() - report.start
    print(f"{machine}; {figure(seconds)} s in all.\n")
    print(table(report.rows))
    for failure in report.failures:
        print(f"FAILED: {failure}")
    if options.json is not None:
        record = {"machine": machine, "rows": [r._asdict() for r in report.rows], "failures": report.failures}
        options.json.write_text(json.dumps(record, indent=2).replace("NaN", "null") + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
