"""Tiny phantoms of two blobs, and agents that learn them in seconds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.data.cases import Cases, Source
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.concentric import ConcentricNet
from medrl.tasks.landmark import LandmarkTask
from medrl.training.trainer import RLTrainer
from medrl.types import MISSING, NOT_CONVERGED, Landmark, where

LABELS = ("bright", "dark")
SPACING_MM = 1.5


def make_source(name: str, generator: torch.Generator) -> Source:
    """A bright and a dark blob on a flipped, oblique, anisotropic grid of about 36 mm."""
    angle = 0.3 * torch.randn((), generator=generator).item()
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn.double() @ torch.diag(torch.tensor([-1.5, 1.5, 2.0], dtype=torch.float64))
    shape = torch.tensor([24, 24, 18])
    affine[:3, 3] = torch.tensor([10.0, -20.0, 30.0]) - affine[:3, :3] @ ((shape - 1) / 2).double()
    middle = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
    points = middle + 16 * (torch.rand(2, 3, generator=generator, dtype=torch.float64) - 0.5)
    points[1] += torch.tensor([0.0, 0.0, 6.0]) * torch.sign(points[1, 2] - points[0, 2])
    voxel = torch.stack(torch.meshgrid(*(torch.arange(int(n)) for n in shape), indexing="ij"), -1).double()
    place = voxel @ affine[:3, :3].T + affine[:3, 3]
    near = [torch.exp(-(place - p).square().sum(-1) / (2 * 3.5**2)) for p in points]
    volume = 100 + 120 * near[0] - 80 * near[1] + 5 * torch.randn(*shape.tolist(), generator=generator)
    return Source(name, volume.float(), affine, points)


def make_cases(sources: list[Source]) -> Cases:
    """The sources on canonical grids."""
    return Cases.from_sources(sources, labels=LABELS, spacing_mm=SPACING_MM, strides=(1, 2), window=(0.0, 255.0))


def make_task(cases: Cases) -> LandmarkTask:
    """Walks of at most 12 steps of 4.5 and 1.5 mm."""
    return LandmarkTask(cases, size=9, step_mm=(4.5, 1.5), max_steps=12, near_mm=(2.5, 6.0, 12.0))


class GreedyWalk:
    """A small inferer: one walker a landmark, from the centre, by the best action."""

    def locate(self, volume: Tensor, ras_from_voxel: Tensor, network: Any) -> list[Landmark]:
        """Landmarks of one volume."""
        cases = make_cases([Source("", volume, ras_from_voxel, torch.full((2, 3), torch.nan, dtype=torch.float64))])
        task = make_task(cases)
        state = task.state(torch.zeros(2, dtype=torch.long), torch.arange(2), torch.zeros(2, 3))
        path = [state.position]
        for _ in range(task.max_steps):
            values = network.action_values(network(task.observe(state)["image"]), state.scale.long())
            moved = task.advance(state, values[torch.arange(2), torch.arange(2)].argmax(-1))
            state = where(task.terminated(state), state, moved)
            path.append(state.position)
        ras = cases.to_ras(0, torch.stack(path))
        return [
            Landmark(label, tuple(ras[-1, n].tolist()), NOT_CONVERGED, steps=len(path) - 1, path_mm=ras[:, n].numpy())
            for n, label in enumerate(LABELS)
        ]


class Answers:
    """An inferer that answers fixed errors in mm along x, in turn; None is a missing landmark."""

    def __init__(self, sources: list[Source], errors: list[list[float | None]]) -> None:
        self.sources, self.errors, self.calls = sources, errors, 0

    def locate(self, volume: Tensor, ras_from_voxel: Tensor, network: Any) -> list[Landmark]:
        """The truth, moved."""
        number = next(n for n, s in enumerate(self.sources) if s.volume is volume)
        found = []
        for label, point, error in zip(LABELS, self.sources[number].points_ras, self.errors[number], strict=True):
            place = tuple((torch.nan_to_num(point) + torch.tensor([error or 0.0, 0.0, 0.0])).tolist())
            found.append(Landmark(label, place, MISSING if error is None else "found", steps=7))
        self.calls += 1
        return found


class BlobPool:
    """Renews cases by new phantoms of the same grid."""

    def __init__(self, count: int = 4, seed: int = 5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.cases = Cases(*self._draw(count, self.generator), labels=LABELS, spacing_mm=SPACING_MM, strides=(1, 2))

    def refresh(self, count: int, generator: torch.Generator) -> Tensor:
        """Replace random cases."""
        indices = torch.randperm(len(self.cases), generator=generator)[:count]
        for index, volume, points in zip(indices.tolist(), *self._draw(count, self.generator), strict=True):
            self.cases.replace(index, volume, points)
        return indices

    def _draw(self, count: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        volumes = [torch.randint(1, 255, (24, 24, 24), generator=generator, dtype=torch.uint8) for _ in range(count)]
        return volumes, 20 * (torch.rand(count, 2, 3, generator=generator) - 0.5)


def make_training(kind: str, cases: Cases, *, seed: int = 0) -> SimpleNamespace:
    """An agent, its environment (None for cloning) and the arguments of a trainer."""
    torch.manual_seed(seed)
    network = ConcentricNet(landmarks=2, levels=2, size=9, scales=2, width=8, hidden=48)
    task = make_task(cases)
    if kind == "cloning":
        agent = Cloning(network, task=task, batch_size=24, updates=400, bf16=False, average=20, seed=seed)
        return SimpleNamespace(agent=agent, environment=None)
    environment = Environment(task, num_envs=8, seed=seed)
    replay = Replay(task, capacity=160, num_envs=8, n=2, alpha=0.6, seed=seed)
    agent = DQN(network, replay=replay, batch_size=16, warm_up=24, updates=400, bf16=False, average=20, seed=seed)
    return SimpleNamespace(agent=agent, environment=environment)


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Eight phantoms; the last two are for validation."""
    generator = torch.Generator().manual_seed(1)
    return [make_source(f"case{n}", generator) for n in range(8)]


@pytest.fixture
def cases(sources: list[Source]) -> Cases:
    """The training cases."""
    return make_cases(sources[:6])


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The builders of this file."""

    def train(built: SimpleNamespace, *, max_epochs: int = 1, epoch_length: int = 3, **arguments: Any) -> RLTrainer:
        return RLTrainer(
            device="cpu", max_epochs=max_epochs, epoch_length=epoch_length, agent=built.agent,
            environment=built.environment, **arguments,
        )  # fmt: skip

    return SimpleNamespace(
        training=make_training, trainer=train, GreedyWalk=GreedyWalk, Answers=Answers, BlobPool=BlobPool, LABELS=LABELS
    )
