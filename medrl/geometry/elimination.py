"""Direct solution on a lattice graph, slab by slab: block elimination with dense blocks, for many right-hand sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.lattice import dense


def elimination_cost(shape: Sequence[int]) -> float:
    """Multiplications that the elimination of a lattice takes."""
    nodes, slabs = math.prod(shape), max(shape)
    return slabs * (nodes / slabs) ** 3


class BlockElimination:
    """Inverse of a matrix on one lattice graph: a ``diagonal`` (S), and minus the ``weights`` of the edges off it.

    ``weights``: one tensor (S less 1 along its axis) an axis; ``diagonal``: for a Laplacian the degree, plus whatever
    makes it regular.  Slab after slab along the longest axis: n slabs of M nodes take n M^3 multiplications in
    float64, and n M^2 numbers of ``dtype``; right for many columns, on grids of up to about 32^3.
    """

    def __init__(self, weights: Sequence[Tensor], diagonal: Tensor, *, dtype: torch.dtype = torch.float64) -> None:
        axes = sorted(range(diagonal.ndim), key=lambda axis: -diagonal.shape[axis])
        index = torch.arange(diagonal.numel(), device=diagonal.device).reshape(diagonal.shape)
        self.order = index.permute(axes).flatten()  # node of the caller's at each of ours
        self.place = self.order.argsort()
        diagonal = diagonal.double().permute(axes)
        weights = [weights[axis].double().permute(axes) for axis in axes]
        self.slabs, self.nodes = len(diagonal), diagonal[0].numel()
        coupling = weights[0].reshape(self.slabs - 1, self.nodes)
        self.coupling = coupling.to(dtype)
        self.inverses = coupling.new_empty(self.slabs, self.nodes, self.nodes, dtype=dtype)
        inverse = None
        for i in range(self.slabs):
            block = dense([weight[i, None] for weight in weights[1:]], diagonal[i, None])[0]
            if inverse is not None:
                block -= inverse.mul_(coupling[i - 1]).mul_(coupling[i - 1, :, None])
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(block))
            self.inverses[i] = inverse

    def solve(self, right: Tensor) -> Tensor:
        """Solutions (K, N) of right-hand sides (K, N)."""
        x = right.to(self.inverses)[:, self.order].T.reshape(self.slabs, self.nodes, -1).contiguous()
        return self._solve(x, [len(right)] * self.slabs)

    def columns(self, nodes: Tensor) -> Tensor:
        """Columns (K, N) of the inverse at flat indices (K,)."""
        source, sorting = self.place[nodes.long()].sort()
        x = self.inverses.new_zeros(self.slabs, self.nodes, len(source))
        x.view(-1, len(source))[source, torch.arange(len(source), device=x.device)] = 1.0
        begun = torch.searchsorted(source // self.nodes, torch.arange(self.slabs, device=x.device), right=True)
        return self._solve(x, begun.tolist())[sorting.argsort()]

    def _solve(self, x: Tensor, begun: list[int]) -> Tensor:
        """Forwards, then backwards, in place; in slab i only the first ``begun[i]`` columns have met a source."""
        for i, k in enumerate(begun):
            if i:
                x[i, :, :k].addcmul_(self.coupling[i - 1, :, None], x[i - 1, :, :k])
            if k:
                x[i, :, :k] = self.inverses[i] @ x[i, :, :k]
        for i in range(self.slabs - 2, -1, -1):
            x[i].addmm_(self.inverses[i], self.coupling[i, :, None] * x[i + 1])
        return x.flatten(0, 1).T[:, self.place]
