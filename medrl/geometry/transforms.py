"""Batched similarity transforms: parameters, points, inverses, and volumes resampled through one.

Matrices map column vectors of homogeneous points in mm; composition is ``@``.  Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.geometry.grids import sample
from medrl.geometry.similarity import rotation


def from_parameters(parameters: Tensor, centre: Tensor) -> Tensor:
    """Matrices (B, 4, 4) of ``x -> centre + translation + scale * R (x - centre)``.

    ``parameters`` (B, 7): rotation vector (radians), logarithm of the scale, translation (mm); ``centre`` (3,) or
    (B, 3) in mm.  The result has the type and device of the parameters.
    """
    centre = centre.to(parameters)
    linear = parameters[..., 3, None, None].exp() * rotation(parameters[..., :3])
    offset = centre + parameters[..., 4:] - (linear @ centre[..., None])[..., 0]
    return _assemble(linear, offset)


def to_parameters(matrix: Tensor, centre: Tensor) -> Tensor:
    """Parameters (B, 7) of similarity matrices (B, 4, 4) about a centre: the inverse of `from_parameters`.

    Rotation vectors have a length of at most pi; there the sign of the axis is arbitrary.
    """
    centre = centre.to(matrix)
    linear = matrix[..., :3, :3]
    scale = torch.linalg.det(linear).pow(1 / 3)
    vector = rotation_vector(linear / scale[..., None, None])
    translation = (linear @ centre[..., None])[..., 0] + matrix[..., :3, 3] - centre
    return torch.cat([vector, scale.log()[..., None], translation], -1)


def rotation_vector(turn: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians of rotation matrices (..., 3, 3): the logarithm, exact near 0 and near pi.

    Goes through the unit quaternion, read from its largest component.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in turn.unbind(-2))
    products = torch.stack(
        [
            1 + a + e + i, h - f, c - g, d - b,
            h - f, 1 + a - e - i, b + d, c + g,
            c - g, b + d, 1 - a + e - i, f + h,
            d - b, c + g, f + h, 1 - a - e + i,
        ],
        -1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*products.shape[:-2], 1, 4)
    quaternion = torch.nn.functional.normalize(products.gather(-2, largest)[..., 0, :], dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = torch.linalg.vector_norm(quaternion[..., 1:], dim=-1, keepdim=True)
    half = torch.atan2(sine, quaternion[..., :1])
    return 2 * quaternion[..., 1:] / torch.sinc(half / torch.pi)  # the sine is half * sinc: no division by 0


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Map points (N, 3), or (B, N, 3), by matrices (B, 4, 4); returns (B, N, 3) of the points' type.

    A single matrix (4, 4) maps (N, 3) to (N, 3).
    """
    matrix = matrix.to(points)
    return points @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]


def invert(matrix: Tensor) -> Tensor:
    """Inverses (..., 4, 4) of affine matrices (..., 4, 4), in closed form."""
    first, second, third = matrix[..., :3, :3].unbind(-1)
    rows = [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)]
    determinant = (first * rows[0]).sum(-1)
    linear = torch.stack(rows, -2) / determinant[..., None, None]
    return _assemble(linear, -(linear @ matrix[..., :3, 3, None])[..., 0])


def resample(
    volume: Tensor, ras_from_voxel: Tensor, moving_from_fixed: Tensor, shape: Sequence[int], ras_from_grid: Tensor, *,
    outside: float = torch.nan,
) -> Tensor:  # fmt: skip
    """Read a moving volume (X, Y, Z) through a transform on a grid of the fixed image: float32 (shape), trilinear.

    ``ras_from_voxel`` (4, 4) belongs to the volume, ``ras_from_grid`` (4, 4) to the grid, both in mm, and
    ``moving_from_fixed`` (4, 4) maps between their RAS frames.  What lies beyond the volume's field of view becomes
    ``outside``.  On the volume's device; done once, so nothing is blurred twice.
    """
    placed = (matrix.to(volume.device, torch.float64) for matrix in (ras_from_voxel, moving_from_fixed, ras_from_grid))
    ras_from_voxel, moving_from_fixed, ras_from_grid = placed
    voxel_from_grid = invert(ras_from_voxel) @ moving_from_fixed @ ras_from_grid
    first, second, third = shape
    values = sample(volume, voxel_from_grid, (first, second, third))
    return values if outside != outside else torch.nan_to_num(values, nan=outside)


def _assemble(linear: Tensor, offset: Tensor) -> Tensor:
    """Matrices (..., 4, 4) of a linear part (..., 3, 3) and an offset (..., 3)."""
    upper = torch.cat([linear, offset[..., None]], -1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=linear.dtype, device=linear.device)
    return torch.cat([upper, last.expand(*linear.shape[:-2], 1, 4)], -2)
