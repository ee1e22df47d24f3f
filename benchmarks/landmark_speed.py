"""How fast and how small landmark agents are on a CPU; prints a markdown table.

    python benchmarks/landmark_speed.py [--parts env,memory,update,volume] [--seconds 4] [--json speed.json]

env     steps/s of the environment: random actions, resets and crops included
memory  bytes a transition and growth of the process at 1e5 and 1e6 transitions, filled for real
update  seconds per update at batch 64, crops rendered from the replay included: double DQN, and for the peer's network
        also plain DQN, which is the peer's own recipe
volume  seconds and peak memory to locate 10 landmarks in a volume, from voxels in memory, with an untrained network;
        with two threads by the wall clock too, which says something only where nothing else runs

Each part runs in a process of its own with one thread, and figures are CPU seconds, where not said otherwise.  Beside
it stand the peer's figures, measured by us on the same kind of machine with one thread and without huge pages:
gml16/rl-medical at 824180d, unmodified.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# read once, when torch is imported: large tensors on huge pages, without which the kernel spends a quarter of the large
# network's update in clearing pages of 4 kB (Linux; elsewhere it does nothing)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from report import Row, figure, table, write_json
from workloads import (
    NETWORKS,
    build_agent,
    fill,
    measure,
    random_anatomy,
    random_cases,
    random_steps,
    random_volume,
)

from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.fovea import FoveaNet
from medrl.tasks.landmark import LandmarkTask

PEERS_NETWORK = "AlansaryNet"
PEER = "gml16/rl-medical at 824180d, same kind of machine"
PEER_STEPS = 1_010.0  # environment steps/s, one 45^3 crop, resets included
PEER_BYTES = 91_134.0  # a transition
PEER_FULL = 9_469.0  # MB of the process with 1e5 transitions
PEER_UPDATE = 15.3  # s, batch 64, 4-convolution network on 45^3 x 4
PEER_LANDMARK = 1.87  # s a landmark and volume of 128^3, untrained network, stopped by oscillation
LEVELS = {(128, 128, 128): 2.0, (512, 512, 400): 4.0}  # s on two cores that a volume should not exceed
LEVEL_MB = 1_500.0  # nor this much memory

OBSERVATIONS: dict[str, dict[str, Any]] = {
    "one 25^3 crop": {"size": 25, "strides": (1,)},
    "default, 17^3 at 3 levels": {"size": 17, "strides": (1, 2, 4)},
    "one 45^3 crop, as the peer": {"size": 45, "strides": (1,)},
}


def environment_rows(seconds: float, side: int) -> list[Row]:
    """Steps/s for 1, 32 and 256 rows."""
    rows = []
    for name, options in OBSERVATIONS.items():
        cases = random_cases(side=side, strides=options["strides"])
        for count in (1, 32, 256):
            task = LandmarkTask(cases, size=options["size"], max_steps=200)
            timing = measure(random_steps(Environment(task, num_envs=count)), seconds=seconds)
            rows.append(
                Row("env", f"{name}, {count} row{'s' * (count > 1)}", count / timing.cpu, "steps/s", _beside(timing))
            )
    rows.append(Row("env", PEER, PEER_STEPS, "steps/s", "one 45^3 crop, 1 row, reads the volume again at every reset"))
    return rows


def memory_rows(count: int, side: int) -> list[Row]:
    """Growth of this process by a replay that random walks fill to the brim."""
    task = LandmarkTask(random_cases(side=side))
    environment = Environment(task, num_envs=250)
    walk = random_steps(environment)
    walk()  # what the walks themselves need is not counted
    _give_back_freed_memory()
    before = _resident()
    replay = Replay(task, capacity=count, num_envs=250)
    agent = _Recorder(replay)
    fill(agent, environment, count // 250)
    grown = (_resident() - before) / 1e6
    filled = f"{len(replay):,} transitions"
    return [
        Row(
            "memory", filled, replay.bytes_per_transition(), "bytes/transition", "observations are rendered when drawn"
        ),
        Row("memory", filled, grown, "MB", "growth of the process"),
    ]


def update_rows(seconds: float, batch_size: int, side: int, size: int) -> list[Row]:
    """Seconds per update of every network in fp32 and bf16, and their ratios.  The large network gets few updates."""
    rows: dict[str, Row] = {}
    for name, rule in [(PEERS_NETWORK, "DQN"), *((name, "double DQN") for name in NETWORKS)]:
        peer = name == PEERS_NETWORK
        crops = f"4 crops of {size}^3" if peer else "17^3 at 3 levels"
        for precision in ("fp32", "bf16"):
            agent = build_agent(
                name, bf16=precision == "bf16", batch_size=batch_size, side=side, size=size if peer else None,
                double=rule != "DQN",
            )  # fmt: skip
            timing = measure(agent.learn, seconds=0 if peer else seconds)
            what = f"{name}, {rule}, {precision}"
            rows[what] = Row("update", f"{name}, {crops}, {rule}, {precision}", timing.cpu, "s", _beside(timing))
    plain = {precision: rows[f"{PEERS_NETWORK}, DQN, {precision}"].value for precision in ("fp32", "bf16")}
    against = f"{PEERS_NETWORK}, DQN"
    ratios = [
        Row("update", f"peer / {against}, fp32", PEER_UPDATE / plain["fp32"], "times", "the same network and recipe")
    ]
    for name in NETWORKS:
        if name != PEERS_NETWORK:
            for precision, value in plain.items():
                ours = f"{name}, double DQN, {precision}"
                note = "the peer's recipe against ours, equal precision"
                ratios.append(Row("update", f"{against} / {ours}", value / rows[ours].value, "times", note))
    peer_row = Row("update", PEER, PEER_UPDATE, "s", "plain DQN on 4 crops of 45^3, fp32")
    return [*rows.values(), peer_row, *ratios]


def volume_rows(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], policy: str) -> list[Row]:
    """Seconds to locate ten landmarks in one int16 volume, and the peak of this process above the volume.

    CPU time with one thread; with more, the wall clock: the best of three, because other work only adds to it.
    """
    from medrl.inference.landmarks import LandmarkInferer  # MONAI takes seconds to load, which no other part needs

    anatomy, threads = random_anatomy(), torch.get_num_threads()
    torch.manual_seed(0)
    network = FoveaNet(landmarks=len(anatomy.labels), strides=tuple(anatomy.strides), spacing_mm=anatomy.spacing_mm)
    inferer = LandmarkInferer(anatomy, policy=policy)
    inferer.locate(*random_volume((32, 32, 32), (4.0, 4.0, 4.0)), network)  # loads what is loaded once
    volume, matrix = random_volume(shape, spacing_mm)
    before = _resident()
    timings = [
        measure(lambda: inferer.locate(volume, matrix, network), seconds=0) for _ in range(1 if threads == 1 else 3)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    what, size = f"{' x '.join(map(str, shape))}, {policy}", volume.numel() * 2 / 1e6
    if threads == 1:
        each = timings[0].cpu / len(anatomy.labels)
        rows = [
            Row("volume", what, timings[0].cpu, "s/volume", _beside(timings[0])),
            Row("volume", what, each, "s/landmark", f"{len(anatomy.labels)} landmarks"),
        ]
    else:
        what, timing = f"{what}, {threads} threads", min(timings)
        level = f"; at most {LEVELS[shape]:g} s is wanted" if shape in LEVELS else ""
        rows = [Row("volume", what, timing.wall, "s/volume, wall clock", f"{figure(timing.cpu)} CPU s{level}")]
    note = f"peak above the loaded volume of {figure(size)} MB; at most {figure(LEVEL_MB)} is wanted"
    return [*rows, Row("volume", what, (peak - before) / 1e6, "MB", note)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="env,memory,update,volume", help="which parts, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each repeated measurement")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs: figures mean nothing")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    unknown = set(parts) - {"env", "memory", "update", "volume"}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: expected env, memory, update or volume")
    small, seconds = options.small, options.seconds
    side = 32 if small else 128
    rows: list[Row] = []
    if "env" in parts:
        rows += _alone(environment_rows, seconds, side)
    if "memory" in parts:
        for count in (20_000,) if small else (100_000, 1_000_000):
            rows += _alone(memory_rows, count, side)
        rows.append(Row("memory", PEER, PEER_BYTES, "bytes/transition", f"{PEER_FULL:,.0f} MB at 100,000 transitions"))
    if "update" in parts:
        rows += _alone(update_rows, seconds, 4 if small else 64, side, 35 if small else 45)
    if "volume" in parts:
        sizes = [((128, 128, 128), (1.5, 1.5, 1.5)), ((512, 512, 400), (0.75, 0.75, 1.0))]
        for shape, spacing_mm in [((24, 24, 24), (6.0, 6.0, 6.0))] if small else sizes:
            for policy in ("jumps",) if small else ("jumps", "moves"):
                for threads in (1,) if small else (1, 2):
                    rows += _alone(volume_rows, shape, spacing_mm, policy, threads=threads)
        rows.append(Row("volume", PEER, PEER_LANDMARK, "s/landmark", "128^3, one landmark after another"))
    machine = f"{platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}"
    print(f"Times are CPU seconds on {machine}.\n")
    print(table(rows))
    if options.json is not None:
        write_json(options.json, machine, rows, [])
    return 0


class _Recorder:
    """The part of an agent that ``fill`` needs."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay

    def record(self, state: Any, action: torch.Tensor, step: Any) -> None:
        ended = step.terminated | step.truncated
        self.replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])


def _alone(work: Callable[..., list[Row]], *arguments: Any, threads: int = 1) -> list[Row]:
    """Run in a fresh process, so that memory is this work's own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(work, *arguments).result()


def _give_back_freed_memory() -> None:
    """Return what was freed to the system, or new tensors would fill it unseen (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> float:
    """Bytes of memory that this process holds (Linux; elsewhere its peak so far)."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _beside(timing: Any) -> str:
    """Say so where other work on the machine made the wall clock run longer."""
    return (
        f"by the wall clock {figure(timing.wall / timing.cpu)} times as long" if timing.wall > 1.1 * timing.cpu else ""
    )


if __name__ == "__main__":
    sys.exit(main())
