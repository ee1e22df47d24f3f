"""Multigrid for graphs on a lattice whose edges are very unequal, as the preconditioner of conjugate gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.lattice import degree, dense

DENSE = 64  # a grid of at most so many nodes is solved by its inverse


class Coarsening:
    """Every second node along one axis, with interpolation that follows the edges (Alcouffe et al. 1981).

    An odd node takes from its two neighbours in proportion to its edges to them.  Edges along the axis combine in
    series; edges across it of an odd node go over to the neighbours in the same proportion.  So the coarse graph is a
    lattice again, and regions behind weak edges stay apart.  ``residual`` and ``correction`` (B, *S) are the buffers
    of the fine grid that ``restrict`` reads and ``prolong`` writes; those of the coarse grid are made here.
    """

    def __init__(
        self, weights: Sequence[Tensor], extra: Tensor, axis: int, residual: Tensor, correction: Tensor
    ) -> None:
        n = extra.shape[axis]
        odd = (n - 1) // 2  # nodes that go; both ends stay, or a padded margin would have no coarse node
        tail = n - 1 - 2 * odd  # 1 if the last two nodes both stay

        def every(values: Tensor, first: int) -> Tensor:
            return values[(slice(None),) * axis + (slice(first, first + 2 * odd - 1, 2),)]

        left_edge, right_edge = every(weights[axis - 1], 0), every(weights[axis - 1], 1)
        total = (left_edge + right_edge + every(extra, 1)).clamp_(min=torch.finfo(extra.dtype).tiny)
        self.from_left, self.from_right = left_edge / total, right_edge / total

        def gather(values: Tensor, from_left: Tensor, from_right: Tensor) -> Tensor:
            """What stays, and the shares of what goes."""
            last = values.narrow(axis, values.shape[axis] - 1 - tail, 1 + tail)
            out = torch.cat([every(values, 0), last], axis)
            out.narrow(axis, 0, odd).addcmul_(every(values, 1), from_left)
            out.narrow(axis, 1, odd).addcmul_(every(values, 1), from_right)
            return out

        self.weights = [
            torch.cat([left_edge * self.from_right, weight.narrow(axis, n - 1 - tail, tail)], axis)
            if other == axis
            else gather(weight, _between(self.from_left, other), _between(self.from_right, other))
            for other, weight in enumerate(weights, 1)
        ]
        self.extra = gather(extra, self.from_left, self.from_right)
        self.residual, self.correction = torch.empty_like(self.extra), torch.empty_like(self.extra)
        # views of both grids' (residual, correction), made once: on a small grid they would cost as much as the sums
        fine, coarse = (residual, correction), (self.residual, self.correction)
        self._kept, self._gone = [every(values, 0) for values in fine], [every(values, 1) for values in fine]
        self._last = [values.narrow(axis, n - 1 - tail, 1 + tail) for values in fine]
        self._left = [values.narrow(axis, 0, odd) for values in coarse]
        self._right = [values.narrow(axis, 1, odd) for values in coarse]
        self._coarse_last = [values.narrow(axis, odd, 1 + tail) for values in coarse]

    def restrict(self) -> None:
        """Sum the fine residual onto the coarse one: the transpose of ``prolong``."""
        torch.addcmul(self._kept[0], self._gone[0], self.from_left, out=self._left[0])
        self._coarse_last[0].copy_(self._last[0])
        self._right[0].addcmul_(self._gone[0], self.from_right)

    def prolong(self) -> None:
        """Interpolate the coarse correction into the fine one."""
        self._kept[1].copy_(self._left[1])
        self._last[1].copy_(self._coarse_last[1])
        torch.mul(self._left[1], self.from_left, out=self._gone[1])
        self._gone[1].addcmul_(self._right[1], self.from_right)


class Multigrid:
    """Approximate inverse of ``L + extra``: one point relaxation on every grid, all added up (Bramble et al. 1990).

    Reads its buffer ``residual`` (B, *S) and fills its buffer ``correction``.  Symmetric and positive, as conjugate
    gradients ask.  Added, not one after another: sweeps between the grids cost more than the iterations they save.
    """

    def __init__(self, weights: Sequence[Tensor], extra: Tensor) -> None:
        self.residual, self.correction = torch.empty_like(extra), torch.empty_like(extra)
        residual, correction = self.residual, self.correction
        self.levels: list[tuple[Tensor, Tensor, Tensor, list[Coarsening]]] = []
        while extra[0].numel() > DENSE:
            inverse = (degree(weights) + extra).reciprocal_()
            steps: list[Coarsening] = []
            self.levels.append((residual, correction, inverse, steps))
            for axis in range(1, extra.ndim):  # the last axis last: reading every second number there is slow
                if extra.shape[axis] > 2:
                    step = Coarsening(weights, extra, axis, residual, correction)
                    weights, extra, residual, correction = step.weights, step.extra, step.residual, step.correction
                    steps.append(step)
        diagonal = (degree(weights) + extra).double() * (1 + 1e-9)  # a graph without seeds is singular
        factor = torch.linalg.cholesky_ex(dense([w.double() for w in weights], diagonal))[0]
        self.inverse = torch.cholesky_inverse(factor).to(extra)
        self.bottom = residual.view(len(extra), -1, 1), correction.view(len(extra), -1, 1)

    def apply(self) -> Tensor:
        """Fill ``correction`` from ``residual``."""
        for _, _, _, steps in self.levels:
            for step in steps:
                step.restrict()
        torch.bmm(self.inverse, self.bottom[0], out=self.bottom[1])
        for residual, correction, inverse, steps in reversed(self.levels):
            for step in reversed(steps):
                step.prolong()
            correction.addcmul_(residual, inverse)
        return self.correction


def _between(values: Tensor, axis: int) -> Tensor:
    """Mean of each two neighbours along an axis."""
    n = values.shape[axis]
    return values.narrow(axis, 0, n - 1).add(values.narrow(axis, 1, n - 1)).mul_(0.5)
