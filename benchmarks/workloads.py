"""What the speed benchmarks share: synthetic cases, tasks, agents, a clock, and the table they print."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medrl.agents.dqn import DQN
from medrl.data.anatomy import Anatomy
from medrl.data.cases import Cases
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.alansary import AlansaryNet
from medrl.networks.concentric import ConcentricNet
from medrl.networks.fovea import FoveaNet
from medrl.tasks.landmark import LandmarkTask

SPACING_MM = 1.5
STRIDES = (1, 2, 4)
NETWORKS = ("AlansaryNet", "ConcentricNet", "FoveaNet")


class Timing(NamedTuple):
    """Seconds a call took: by the clock on the wall, and of this process's CPU time."""

    wall: float
    cpu: float


def random_cases(
    *, count: int = 4, side: int = 128, landmarks: int = 1, strides: tuple[int, ...] = STRIDES,
    device: torch.device | str = "cpu",
) -> Cases:  # fmt: skip
    """Volumes of random grey values with landmarks in their middle half; what a crop costs does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.randint(1, 256, (side,) * 3, dtype=torch.uint8, generator=generator) for _ in range(count)]
    points = (torch.rand(count, landmarks, 3, generator=generator) - 0.5) * side / 2 * SPACING_MM
    labels = [f"point_{n}" for n in range(landmarks)]
    return Cases(volumes, points, labels=labels, spacing_mm=SPACING_MM, strides=strides).to(device)


def random_steps(environment: Environment) -> Callable[[], Any]:
    """Return a function that takes one random step of all rows, resets and observations included."""
    environment.reset()
    actions = int(environment.task.action_space.n)
    count, device, generator = environment.num_envs, environment.device, environment.generator
    return lambda: environment.step(torch.randint(actions, (count,), generator=generator, device=device))


def build_agent(
    name: str, *, side: int = 128, size: int | None = None, rows: int = 64, batch_size: int = 64,
    capacity: int = 100_000, bf16: bool = False, double: bool = True, device: torch.device | str = "cpu",
) -> DQN:  # fmt: skip
    """A (double) DQN agent on one landmark whose replay holds some steps; ``name`` is one of ``NETWORKS``."""
    torch.manual_seed(0)
    cases = random_cases(side=side, device=device)
    if name == "AlansaryNet":
        size = 45 if size is None else size
        # the recipe of Alansary 2019 and Leroy 2020: the last four crops at the walker's own scale, six moves
        task = LandmarkTask(cases, size=size, observation="frames", frames=4, settle=False)
        network: nn.Module = AlansaryNet(size=size)
    else:
        size = 17 if size is None else size
        task = LandmarkTask(cases, size=size)
        if name == "FoveaNet":
            network = FoveaNet(landmarks=1, strides=STRIDES, spacing_mm=SPACING_MM, size=size)
        else:
            network = ConcentricNet(landmarks=1, levels=len(STRIDES), size=size)
    replay = Replay(task, capacity=capacity, num_envs=rows)
    agent = DQN(network.to(device), replay=replay, batch_size=batch_size, bf16=bf16, double=double, warm_up=0)
    fill(agent, Environment(task, num_envs=rows), 40)
    return agent


def fill(agent: DQN, environment: Environment, steps: int) -> None:
    """Record random steps; nothing is rendered but the start."""
    environment.reset()
    actions = int(environment.task.action_space.n)
    for _ in range(steps):
        action = torch.randint(
            actions, (environment.num_envs,), generator=environment.generator, device=environment.device
        )
        state = environment.state
        agent.record(state, action, environment.advance(action))


def random_anatomy(landmarks: int = 10) -> Anatomy:
    """A made-up anatomy: landmarks within 60 mm of its centre, its network's crops at 1.5, 3 and 6 mm."""
    shape = (torch.rand(landmarks, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 120
    labels = [f"point_{n}" for n in range(landmarks)]
    return Anatomy(labels, shape - shape.mean(0), torch.full((landmarks,), 5.0), SPACING_MM, window=[-200.0, 300.0])


def random_volume(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """An int16 volume (X, Y, Z) with a bright body in air, and its ras_from_voxel (4, 4)."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randint(-60, 60, shape, dtype=torch.int16, generator=generator)
    for axis, n in enumerate(shape):
        volume.narrow(axis, 0, n // 8).fill_(-1000)
        volume.narrow(axis, n - n // 8, n // 8).fill_(-1000)
    matrix = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    matrix[:3, 3] = -(torch.tensor(shape) - 1) / 2 * torch.tensor(spacing_mm)
    return volume, matrix


def measure(
    call: Callable[[], Any], *, seconds: float, device: torch.device | str = "cpu", most: int = 100_000
) -> Timing:
    """Median time of a call over about ``seconds``, in up to five blocks; at least one call, at most ``most``."""
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wall: list[float] = []
    cpu: list[float] = []
    done, calls, start = 0, 1, time.perf_counter()
    while done == 0 or (done < most and time.perf_counter() - start < seconds):
        synchronize()
        before = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        synchronize()
        wall.append((time.perf_counter() - before[0]) / calls)
        cpu.append((time.process_time() - before[1]) / calls)
        done += calls
        # blocks of about a fifth of the time, so that reading the clock costs nothing
        calls = max(1, min(most - done, int(seconds / 5 / max(wall[-1], 1e-9))))
    # the first block is a single call, which may have warmed up caches
    keep = slice(1, None) if len(wall) > 1 else slice(None)
    return Timing(statistics.median(wall[keep]), statistics.median(cpu[keep]))
