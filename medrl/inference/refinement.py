"""Refine poses of a pair to fractions of a millimetre: the gradient of learned similarity and mutual information."""

from __future__ import annotations

import torch
from torch import Tensor

from medrl.data.pair_cases import PairCases
from medrl.geometry.poses import Nudges, Pose, nudged
from medrl.geometry.quaternions import from_vector
from medrl.tasks.registration import ARM_MM


def refine(
    cases: PairCases, case: int, pose: Pose, *, scaled: bool, information: float, iterations: int = 20,
    limit_mm: float = 8.0, tie: float = 0.0,
) -> tuple[Pose, float]:  # fmt: skip
    """Climb from one pose (1,) by L-BFGS over turn, scale and shift, all in mm at 40 mm; returns pose and objective.

    The objective is the learned similarity and ``information`` times the mutual information in nats, less
    ``tie`` times the squared distance walked in mm.  The pose moves by ``limit_mm`` in any parameter at most.
    """
    unit = torch.tensor([1 / ARM_MM] * 3 + [1 / (2.5 * ARM_MM)] + [1.0] * 3, device=cases.device)
    if not scaled:
        unit[3] = 0.0
    delta = torch.zeros(7, device=cases.device, requires_grad=True)
    row = torch.full((1,), case, dtype=torch.int64, device=cases.device)

    def moved(change: Tensor) -> Pose:
        change = limit_mm * torch.tanh(change / limit_mm) * unit
        return nudged(pose, Nudges(from_vector(change[None, :3]), change[None, 3], change[None, 4:]))

    def objective(change: Tensor) -> Tensor:
        seen = cases.look(row, moved(change))
        return (seen.score + information * seen.information)[0] - tie * change.square().sum()

    optimizer = torch.optim.LBFGS([delta], lr=1.0, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -objective(delta)
            loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found, start = objective(delta), objective(torch.zeros_like(delta))
        best = delta if bool(found >= start) else torch.zeros_like(delta)
        return Pose(*(value.detach() for value in moved(best.detach()))), float(torch.maximum(found, start))
