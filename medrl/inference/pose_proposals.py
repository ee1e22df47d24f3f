"""Propose poses of a pair: many orientations scored by the learned similarity, and the best, different ones kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medrl.data.pair_cases import PairCases
from medrl.geometry.poses import Pose
from medrl.geometry.quaternions import from_vector

SHIFTS_MM = 25.0
ALIKE_DEGREES, ALIKE_MM = 20.0, 30.0
LEAST_SHARE = 0.02


def look_at(cases: PairCases, pose: Pose, *, levels: tuple[str, ...], rows: int = 2048) -> Tensor:
    """Learned similarity (K,) of poses (K,) of the only case, in parts that fit into the cache."""
    count = len(pose.log_scale)
    case = torch.zeros(count, dtype=torch.int64, device=cases.device)
    parts = zip(case.split(rows), *(value.split(rows) for value in pose), strict=True)
    return torch.cat([cases.look(first, Pose(*part), levels=levels).score for first, *part in parts])


def spread(count: int, degrees: float, generator: torch.Generator) -> Tensor:
    """Quaternions (count, 4), the identity first, spread evenly over the turns of up to so many degrees."""
    angle = math.radians(min(180.0, degrees))
    share = (angle - math.sin(angle)) / math.pi  # of all turns
    if share < LEAST_SHARE:  # too few to draw among all; small turns are spread as vectors in a ball
        vector = torch.nn.functional.normalize(torch.randn(count - 1, 3, generator=generator), dim=1)
        drawn = from_vector(vector * angle * torch.rand(count - 1, 1, generator=generator) ** (1 / 3))
    else:
        drawn = torch.randn(int(3 * count / share) + 50, 4, generator=generator)
        drawn = torch.nn.functional.normalize(drawn, dim=1)
        drawn = drawn[drawn[:, 0].abs() >= math.cos(angle / 2)][: count - 1]
    return torch.cat([torch.tensor([[1.0, 0.0, 0.0, 0.0]]), drawn])


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
    score = look_at(cases, pose, levels=("coarse",))
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
