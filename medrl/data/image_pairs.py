"""Pairs of images in 2D or 3D as they are, for an agent that looks at the images themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medrl.geometry.poses import Pose, distance_mm, from_matrices, to_matrices
from medrl.types import InputError

LATTICE, SPREAD = 5, 0.8  # points along an axis, and the share of the fixed image's side that they cover


class ImagePairs:
    """N pairs on one device, all fixed images of one shape and all moving ones of one.

    Frames are mm along the axes of the images, from the middle of each; a 2D image lies at z = 0.

    Args:
        fixed: (N, 1, X, Y) or (N, 1, X, Y, Z), uint8, or floating point in [0, 1].
        moving: (N, 1, X', Y'[, Z']) of the same type.
        spacing_mm: of a voxel along each axis; of both images.
        truth: moving_from_fixed (N, 3, 3) in 2D or (N, 4, 4) in 3D, similarities in mm; None where it is unknown.
        lattice_mm: (N, L, 2) or (N, L, 3) places of the fixed image at which the error counts; without them a lattice
            over its middle.

    Raises:
        InputError: shapes, types or values are others.
    """

    def __init__(
        self, fixed: Tensor, moving: Tensor, *, spacing_mm: Sequence[float], truth: Tensor | None = None,
        lattice_mm: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.dims = fixed.ndim - 2
        if self.dims not in (2, 3) or moving.ndim != fixed.ndim or len(moving) != len(fixed):
            raise InputError(
                f"images of shapes {tuple(fixed.shape)} and {tuple(moving.shape)}; expected (N, 1, X, Y[, Z]) both"
            )
        if fixed.dtype != moving.dtype or not (fixed.dtype == torch.uint8 or fixed.is_floating_point()):
            raise InputError(f"images of types {fixed.dtype} and {moving.dtype}; expected both uint8 or both floating")
        if fixed.is_floating_point() and not bool(((fixed >= 0) & (fixed <= 1)).all() and (moving <= 1).all()):
            raise InputError("floating-point images have values outside of [0, 1]; scale them first")
        if len(spacing_mm) != self.dims:
            raise InputError(f"spacing_mm has {len(spacing_mm)} numbers; expected {self.dims}, one an axis")
        count, device = len(fixed), fixed.device
        self.fixed, self.moving, self.spacing_mm = fixed, moving, tuple(map(float, spacing_mm))
        self.half_mm = torch.tensor(
            [[n * s / 2 for n, s in zip(x.shape[2:], self.spacing_mm, strict=True)] for x in (fixed, moving)],
            device=device,
        )  # (2, dims): half the sides of both fields of view
        self.known = torch.full((count,), truth is not None, device=device)
        matrices = torch.eye(self.dims + 1).expand(count, -1, -1) if truth is None else truth.float()
        self.truth: Pose = from_matrices(_spatial(matrices.to(device)))
        if lattice_mm is None:
            line = torch.linspace(-SPREAD, SPREAD, LATTICE, device=device)
            nodes = torch.stack(torch.meshgrid(*[line] * self.dims, indexing="ij"), -1).reshape(-1, self.dims)
            lattice_mm = (nodes * self.half_mm[0]).expand(count, -1, -1)
        self.lattice_mm = torch.nn.functional.pad(lattice_mm.to(device).float(), (0, 3 - self.dims))

    def __len__(self) -> int:
        return len(self.fixed)

    @property
    def device(self) -> torch.device:
        """Where everything lives."""
        return self.fixed.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a fixed image, (X, Y) or (X, Y, Z)."""
        return tuple(self.fixed.shape[2:])

    def to(self, device: torch.device | str) -> ImagePairs:
        """Move to a device; returns self."""
        self.truth = Pose(*(value.to(device) for value in self.truth))
        for name in ("fixed", "moving", "half_mm", "known", "lattice_mm"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def error_mm(self, case: Tensor, pose: Pose) -> Tensor:
        """Mean distance (B,) or (B, K) of poses from the truth over the lattice, mm of the fixed image; or NaN."""
        case = case.long()
        distance = distance_mm(pose, Pose(*(value[case] for value in self.truth)), self.lattice_mm[case])
        return torch.where(self.known[case].reshape(-1, *[1] * (distance.ndim - 1)), distance, torch.nan)

    def warp(self, case: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
        """Moving images (B, 1, *S) float32 read on the fixed grid through poses (B,), 0 outside, and what is inside."""
        case, dims = case.long(), self.dims
        matrix = to_matrices(pose)
        linear = matrix[:, :dims, :dims] * self.half_mm[0] / self.half_mm[1][:, None]
        offset = matrix[:, :dims, 3] / self.half_mm[1]
        theta = torch.cat([linear.flip(1, 2), offset.flip(1)[..., None]], -1)  # grid_sample names the last axis first
        grid = affine_grid(theta, [len(case), 1, *self.shape], align_corners=False)
        inside = (grid.abs() <= 1).all(-1)[:, None]
        value = grid_sample(self.moving[case].float(), grid, padding_mode="border", align_corners=False)
        return value * inside, inside

    def state_dict(self) -> dict[str, Any]:
        """Nothing: pairs are never replaced."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""


def _spatial(matrix: Tensor) -> Tensor:
    """Matrices (N, 4, 4) of those in the plane (N, 3, 3): z is scaled like x and y."""
    if matrix.shape[-1] == 4:
        return matrix
    whole = torch.eye(4, device=matrix.device).repeat(len(matrix), 1, 1)
    whole[:, :2, :2], whole[:, :2, 3] = matrix[:, :2, :2], matrix[:, :2, 2]
    whole[:, 2, 2] = torch.linalg.det(matrix[:, :2, :2]).abs().sqrt()
    return whole
