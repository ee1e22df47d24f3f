"""Refine poses of a pair to fractions of a millimetre: the gradient of learned similarity and mutual information."""

from __future__ import annotations

import numpy as np
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
    """Climb from one pose (1,) by BFGS over turn, scale and shift, all in mm at 40 mm; returns pose and objective.

    The objective is the learned similarity and ``information`` times the mutual information in nats, less
    ``tie`` times the squared distance walked in mm.  The pose moves by ``limit_mm`` in any parameter at most.
    """
    from scipy.optimize import minimize

    unit = torch.tensor([1 / ARM_MM] * 3 + [1 / (2.5 * ARM_MM)] + [1.0] * 3, device=cases.device)
    if not scaled:
        unit[3] = 0.0
    row = torch.full((1,), case, dtype=torch.int64, device=cases.device)

    def moved(change: Tensor) -> Pose:
        change = limit_mm * torch.tanh(change / limit_mm) * unit
        return nudged(pose, Nudges(from_vector(change[None, :3]), change[None, 3], change[None, 4:]))

    def objective(change: Tensor) -> Tensor:
        seen = cases.look(row, moved(change))
        return (seen.score + information * seen.information)[0] - tie * change.square().sum()

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        change = torch.tensor(values, dtype=torch.float32, device=cases.device, requires_grad=True)
        with torch.enable_grad():
            loss = -objective(change)
            loss.backward()
        return float(loss.detach()), change.grad.double().cpu().numpy()

    start = np.zeros(7)
    first = loss_and_gradient(start)[0]
    result = minimize(loss_and_gradient, start, jac=True, method="BFGS", options={"maxiter": iterations, "gtol": 1e-3})
    better = bool(result.fun < first)
    best = torch.tensor(result.x if better else start, dtype=torch.float32, device=cases.device)
    with torch.no_grad():
        return moved(best), -float(result.fun if better else first)
