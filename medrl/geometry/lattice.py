"""Graphs on a lattice: the edges between neighbours along each axis, B graphs of one shape at once.

Weights are one tensor (B, *S less 1 along its axis) an axis; what lives on the nodes is (B, *S).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def degree(weights: Sequence[Tensor]) -> Tensor:
    """Sum (B, *S) of the weights of each node's edges: the diagonal of the Laplacian."""
    shape = list(weights[0].shape)
    shape[1] += 1
    out = weights[0].new_zeros(shape)
    for axis, weight in enumerate(weights, 1):
        n = shape[axis]
        out.narrow(axis, 1, n - 1).add_(weight)
        out.narrow(axis, 0, n - 1).add_(weight)
    return out


def dense(weights: Sequence[Tensor], diagonal: Tensor) -> Tensor:
    """Matrices (B, N, N) with a ``diagonal`` (B, *S), and minus the weights off it."""
    matrix = torch.diag_embed(diagonal.flatten(1))
    index = torch.arange(matrix.shape[1], device=diagonal.device).reshape(diagonal.shape[1:])
    for axis, weight in enumerate(weights):
        n = index.shape[axis]
        low, high = index.narrow(axis, 0, n - 1).flatten(), index.narrow(axis, 1, n - 1).flatten()
        matrix[:, low, high] -= weight.flatten(1)
        matrix[:, high, low] -= weight.flatten(1)
    return matrix


class Laplacian:
    """``(L + shift) u`` of potentials, summed from the flows along the edges.

    What leaves one node enters the next, so a region behind weak edges keeps its balance in float32, which it would
    lose to rounding in ``degree * u - neighbours``.  Edges are padded with zeros to (B, *S): then all rows are one
    long vector, a neighbour is a constant distance away, and nothing is strided.
    """

    def __init__(self, weights: Sequence[Tensor], *, shift: float = 0.0) -> None:
        nodes = degree(weights)
        self.shift, self.out = shift, torch.empty_like(nodes)
        self.flow = torch.empty_like(nodes).view(-1)
        self.edges: list[tuple[Tensor, int]] = []
        for axis, weight in enumerate(weights, 1):
            if weight.shape[axis] > 0:
                padded = torch.zeros_like(nodes)
                padded.narrow(axis, 0, weight.shape[axis]).copy_(weight)
                distance = nodes.stride(axis)
                self.edges.append((padded.view(-1)[: nodes.numel() - distance], distance))

    def __call__(self, potential: Tensor) -> Tensor:
        """The result (B, *S) of a contiguous potential (B, *S); overwritten by the next call."""
        u, out = potential.view(-1), self.out.view(-1)
        torch.mul(u, self.shift, out=out)
        for weight, distance in self.edges:
            flow = self.flow[: len(weight)]
            torch.sub(u[distance:], u[:-distance], out=flow)
            out[distance:].addcmul_(weight, flow)
            out[:-distance].addcmul_(weight, flow, value=-1)
        return self.out
