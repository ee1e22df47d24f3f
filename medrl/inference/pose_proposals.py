"""Propose poses of a pair: many orientations scored by the learned similarity, and the best, different ones kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medrl.data.pair_cases import PairCases
from medrl.geometry.poses import Pose
from medrl.geometry.quaternions import from_vector, spread_turns

SHIFTS_MM = 25.0
ALIKE_DEGREES, ALIKE_MM = 20.0, 30.0
LEAST_SHARE = 0.02


def look_at(cases: PairCases, pose: Pose) -> Tensor:
    """Learned similarity (K,) of poses (K,) of the only case."""
    only = torch.zeros(1, dtype=torch.int64, device=cases.device)
    return cases.look(only, Pose(*(value[None] for value in pose)), information=False).score[0]


def spread(count: int, degrees: float, generator: torch.Generator) -> Tensor:
    """Quaternions (count, 4), the identity first, spread evenly over the turns of up to so many degrees."""
    angle = math.radians(min(180.0, degrees))
    share = (angle - math.sin(angle)) / math.pi  # of all turns
    if share < LEAST_SHARE:  # too few to draw among all; small turns are spread as vectors in a ball
        vector = torch.nn.functional.normalize(torch.randn(count - 1, 3, generator=generator), dim=1)
        drawn = from_vector(vector * angle * torch.rand(count - 1, 1, generator=generator) ** (1 / 3))
        return torch.cat([torch.tensor([[1.0, 0.0, 0.0, 0.0]]), drawn])
    first = torch.nn.functional.normalize(torch.randn(4, generator=generator), dim=0)
    return spread_turns(count, degrees, first).float()


def propose(
    cases: PairCases, generator: torch.Generator, *, orientations: int, degrees: float, keep: int,
    scales: tuple[float, ...] = (1.0,), shift_mm: float = SHIFTS_MM,
) -> Pose:  # fmt: skip
    """The ``keep`` best poses (K,) of the only case, best first, that differ by 20 degrees or 30 mm.

    Orientations of up to ``degrees`` from the patient axes, the bodies' middles on each other or ``shift_mm`` off
    along each axis.
    """
    turn = spread(orientations, degrees, generator).to(cases.device)
    shifts = torch.cat([torch.zeros(1, 3), shift_mm * torch.eye(3), -shift_mm * torch.eye(3)]).to(cases.device)
    log_scale = torch.tensor(scales, device=cases.device).log()
    parts = torch.cartesian_prod(torch.arange(len(turn)), torch.arange(len(shifts)), torch.arange(len(scales)))
    first, second, third = parts.to(cases.device).T
    pose = Pose(turn[first], log_scale[third], cases.middle_mm[0] + shifts[second])
    score = look_at(cases, pose)
    return Pose(*(value[distinct(pose, score, keep)] for value in pose))


def distinct(pose: Pose, score: Tensor, keep: int, *, degrees: float = ALIKE_DEGREES, mm: float = ALIKE_MM) -> Tensor:
    """Indices (at most ``keep``,) of the best poses of which no two are alike, best first."""
    order = score.argsort(descending=True)[: 12 * keep]
    turn, shift = pose.quaternion[order], pose.translation_mm[order]
    alike = (turn @ turn.T).abs() > math.cos(math.radians(degrees) / 2)
    alike &= (shift[:, None] - shift).norm(dim=-1) < mm
    alike = alike.cpu()
    kept: list[int] = []
    for row in range(len(order)):
        if len(kept) < keep and not bool(alike[row, kept].any()):
            kept.append(row)
    return order[torch.tensor(kept, device=order.device)]
