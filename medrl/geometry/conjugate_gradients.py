"""Conjugate gradients on lattice graphs, B of them at once, preconditioned by multigrid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.lattice import Laplacian, degree
from medrl.geometry.multigrid import Multigrid

HELD = 1e10  # times its degree, a node that is not free is tied to its value


def conjugate_gradients(
    weights: Sequence[Tensor],
    free: Tensor,
    potential: Tensor,
    *,
    shift: float = 0.0,
    pull: Tensor | None = None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """Solve ``(L + shift) u = pull`` on the nodes where ``free`` (B, *S) is 1; elsewhere u stays as in ``potential``.

    Returns u (B, *S), and which rows (B,) bool did not reach the tolerance: the largest preconditioned residual, an
    estimate of the largest error.  With a ``tolerance`` of 0 the host never waits for the device.  Rows that are done
    drop out by halves.
    """
    product, multigrid = _operators(weights, free, shift)
    torch.neg(product(potential), out=multigrid.residual)
    if pull is not None:
        multigrid.residual += pull
    solution, potential = potential, potential.clone()
    active = torch.arange(len(potential), device=potential.device)
    direction, last = torch.zeros_like(potential), torch.zeros_like(potential).flatten(1)[:, 0]
    each, every = (-1, *[1] * (free.ndim - 1)), 8 if free.is_cuda else 2  # a look at the error halts the device
    slow = torch.ones_like(last, dtype=torch.bool)
    for iteration in range(max_iterations):
        residual, correction = multigrid.residual, multigrid.apply()
        correction.mul_(free)  # so that nothing moves a held node, whatever its residual
        if tolerance > 0 and iteration % every == 0:
            left = _unfinished(correction, tolerance).nonzero()[:, 0]
            if len(left) <= len(active) // 2:
                solution[active] = potential
                slow[active] = False
                if len(left) == 0:
                    return solution, slow
                active, potential, direction, last = active[left], potential[left], direction[left], last[left]
                weights, free = [weight[left] for weight in weights], free[left]
                product, multigrid = _operators(weights, free, shift)
                residual, correction = multigrid.residual.copy_(residual[left]), correction[left]
                slow[active] = True
        # a row that is solved to the last bit divides nothing by nothing: it stays
        slope = _dot(residual, correction)
        torch.addcmul(correction, direction, torch.where(last > 0, slope / last, 0.0).view(each), out=direction)
        image, last = product(direction), slope
        bend = _dot(direction, image)
        step = torch.where(bend > 0, slope / bend, 0.0).view(each)
        potential.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
    solution[active] = potential
    slow[active] = _unfinished(multigrid.apply().mul_(free), tolerance)
    return solution, slow


def _operators(weights: Sequence[Tensor], free: Tensor, shift: float) -> tuple[Laplacian, Multigrid]:
    held = degree(weights).mul_(1 - free).mul_(HELD)
    return Laplacian(weights, shift=shift), Multigrid(weights, held.add_(shift))


def _unfinished(correction: Tensor, tolerance: float) -> Tensor:
    rows = correction.flatten(1)  # two passes: aminmax along an axis takes ten times as long
    return ~((rows.amax(1) <= tolerance) & (rows.amin(1) >= -tolerance))  # not a number is not finished


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).flatten(1).sum(1)
