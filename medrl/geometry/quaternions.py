"""Unit quaternions (w, x, y, z): rotations that compose for ever without drifting from orthogonality."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def from_vector(vector: Tensor) -> Tensor:
    """Quaternions (..., 4) of rotation vectors (..., 3) in radians."""
    angle = vector.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()  # with a gradient at 0 too
    half = angle / 2
    # sin(x) / x tends to 1; torch.sinc is that of pi x
    return torch.cat([half.cos(), 0.5 * vector * torch.sinc(half / torch.pi)], -1)


def from_matrix(matrix: Tensor) -> Tensor:
    """Quaternions (..., 4), w >= 0, of rotation matrices (..., 3, 3) [Bar-Itzhack 2000: the largest eigenvector]."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = [
        [xx + yy + zz, wx, wy, wz],
        [wx, xx - yy - zz, xy, xz],
        [wy, xy, yy - xx - zz, yz],
        [wz, xz, yz, zz - xx - yy],
    ]
    quaternion = torch.linalg.eigh(torch.stack([torch.stack(row, -1) for row in rows], -2))[1][..., -1]
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3)."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def multiply(first: Tensor, second: Tensor) -> Tensor:
    """The rotation ``second`` followed by ``first``, (..., 4), of length 1."""
    a, b, c, d = first.unbind(-1)
    w, x, y, z = second.unbind(-1)
    product = [
        a * w - b * x - c * y - d * z, a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x, a * z + b * y - c * x + d * w,
    ]  # fmt: skip
    return normalize(torch.stack(product, -1), dim=-1)


def spread_turns(count: int, degrees: float, first: Tensor | None = None) -> Tensor:
    """``count`` turns of at most ``degrees``, (count, 4) float64, the identity first and the others as even as can be.

    ``first`` (4,) turns the pattern before it is cut to the ball: other draws, as even.  Balls below some 20 degrees
    cost much, since points are spread over all turns.  Source: super-Fibonacci spirals [Alexa 2022].
    """
    angle = math.radians(min(degrees, 180.0))
    total = math.ceil((count - 1) * math.pi / (angle - math.sin(angle))) + 1  # the ball's share of all turns
    while True:
        index = torch.arange(total, dtype=torch.float64) + 0.5
        inner, outer = (index / total).sqrt(), (1 - index / total).sqrt()
        one, two = 2 * torch.pi * index / 2**0.5, 2 * torch.pi * index / 1.533751168755204288118041
        turns = torch.stack([outer * two.cos(), inner * one.sin(), inner * one.cos(), outer * two.sin()], 1)
        if first is not None:
            turns = multiply(turns, first.double().expand_as(turns))
        turns = turns[2 * turns[:, 0].abs().clamp(max=1).acos() <= angle]
        if len(turns) >= count - 1:
            return torch.cat([torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), turns[: count - 1]])
        total += 1
