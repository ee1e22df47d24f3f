"""Feature volumes of many images as one table, sampled trilinearly at points of any pose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

CORNERS = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


class FeatureTable:
    """N volumes (C, X, Y, Z) on isotropic grids, each with a border of zeros, as rows of one (V, C) table.

    Points are mm in the frame of a volume, whose origin is the middle of its grid and whose axes are the grid's.
    """

    def __init__(self, volumes: Sequence[Tensor], spacing_mm: float) -> None:
        device = volumes[0].device
        padded = [pad(volume.float(), (1,) * 6) for volume in volumes]
        self.rows = torch.cat([volume.flatten(1).T for volume in padded]).contiguous()
        self.spacing_mm = spacing_mm
        self.shape = torch.tensor([volume.shape[1:] for volume in volumes], device=device)  # (N, 3) without border
        sides = self.shape + 2
        self.stride = torch.stack([sides[:, 1] * sides[:, 2], sides[:, 2], torch.ones_like(sides[:, 0])], 1)
        count = sides.prod(1)
        self.base = count.cumsum(0) - count
        self.corners = CORNERS.to(device)

    def to(self, device: torch.device | str) -> FeatureTable:
        """Move to a device; returns self."""
        for name in ("rows", "shape", "stride", "base", "corners"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def sample(self, case: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, ..., C) at ``points`` (B, ..., 3) of the volumes ``case`` (B,), and whether each lies inside.

        Beyond the centres of the outermost voxels features fade, to 0 one voxel further out.
        """
        case = case.long()
        lead = (len(case), *[1] * (points.ndim - 2))
        shape, stride = self.shape[case].reshape(*lead, 3), self.stride[case].reshape(*lead, 3)
        voxel = points / self.spacing_mm + (shape - 1) / 2
        inside = ((voxel > -0.5) & (voxel < shape - 0.5)).all(-1)
        voxel = torch.minimum(voxel.clamp(min=-1), shape) + 1  # of the grid with its border
        lower = torch.minimum(voxel.floor(), shape)
        share = voxel - lower
        first = (lower.long() * stride).sum(-1) + self.base[case].reshape(lead)
        index = first[..., None] + (self.corners * stride[..., None, :]).sum(-1)
        near = torch.stack([1 - share, share], -1)  # (..., 3, 2)
        weight = near[..., 0, :, None, None] * near[..., 1, None, :, None] * near[..., 2, None, None, :]
        value = _Interpolate.apply(self.rows, index.reshape(-1, 8), weight.reshape(-1, 8))
        return value.reshape(*points.shape[:-1], -1), inside


class _Interpolate(torch.autograd.Function):
    """Weighted sums of eight table rows; its backward pass is 15 times faster on a CPU than embedding_bag's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, index, weight)
        return embedding_bag(index, rows, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        rows, index, weight = ctx.saved_tensors
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.zeros_like(rows)
            for corner in range(8):
                of_rows.index_add_(0, index[:, corner], gradient * weight[:, corner, None])
        if ctx.needs_input_grad[2]:
            of_weight = torch.stack([(rows[index[:, corner]] * gradient).sum(-1) for corner in range(8)], -1)
        return of_rows, None, of_weight
