"""Similarity and affine fits between point sets, and small matrix helpers (4x4, float64, millimetres)."""

from __future__ import annotations

import torch
from torch import Tensor


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Map points (..., 3) by a matrix (4, 4) named ``to_from``; the result is in the first frame."""
    return points @ matrix[:3, :3].T.to(points) + matrix[:3, 3].to(points)


def compose(rotation: Tensor, scale: float | Tensor, translation: Tensor) -> Tensor:
    """Build the (4, 4) matrix ``x -> scale * rotation @ x + translation``."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation.double() * scale
    matrix[:3, 3] = translation.double()
    return matrix


def rotation(vector: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) in radians (exponential map, Rodrigues' formula)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape, 3)
    turns = torch.linalg.vector_norm(vector, dim=-1)[..., None, None] / torch.pi  # sinc makes it exact down to 0
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return identity + torch.sinc(turns) * skew + 0.5 * torch.sinc(turns / 2).square() * (skew @ skew)


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Rotation matrices (count, 3, 3) spread evenly over all orientations (unit quaternions of Gaussian draws)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=1).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def fit(target: Tensor, source: Tensor, weight: Tensor | None = None, *, scaled: bool = True) -> Tensor:
    """Least-squares similarity ``target_from_source`` (4, 4) between matched points (L, 3) [Umeyama 1991].

    ``weight`` (L,) counts points; at least three that do not lie on a line are needed, else only the centroids match.
    """
    target, source = target.double(), source.double()
    weight = torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double()
    weight = weight / weight.sum()
    target_mean, source_mean = weight @ target, weight @ source
    a, b = target - target_mean, source - source_mean
    u, singular, vh = torch.linalg.svd(a.T @ (weight[:, None] * b))
    if singular[1] < 1e-9:
        return compose(torch.eye(3), 1.0, target_mean - source_mean)
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    turn = u @ torch.diag(sign) @ vh
    scale = (singular * sign).sum() / (weight @ b.square().sum(1)) if scaled else 1.0
    return compose(turn, scale, target_mean - scale * (turn @ source_mean))


def fit_robust(target: Tensor, source: Tensor, weight: Tensor | None = None, *, rounds: int = 5) -> Tensor:
    """The same fit with Cauchy weights, so that single wild points do not turn the frame."""
    weight = torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double()
    current = weight
    for _ in range(rounds):
        matrix = fit(target, source, current)
        error = (apply(matrix, source.double()) - target.double()).norm(dim=1)
        spread = error.median().clamp(min=1e-6)
        current = weight / (1 + (error / (2 * spread)) ** 2)
    return fit(target, source, current)


def mean_shape(points: Tensor, present: Tensor, *, rounds: int = 5) -> Tensor:
    """Mean (L, 3) of shapes (N, L, 3) after similarity alignment: mean size, average orientation, centred at 0.

    ``present`` (N, L) bool marks the points that exist.  Shapes may be turned at will against each other; where they
    are not, the patient axes survive.  Source: generalised Procrustes analysis [Gower 1975].
    """
    some = present.any(1)
    points, weight = torch.nan_to_num(points[some].double()), present[some].double()
    total = weight.sum(0)[:, None].clamp(min=1)
    mean = points[int(weight.sum(1).argmax())]
    for _ in range(rounds):
        matrices = [fit(mean, shape, mask) for shape, mask in zip(points, weight, strict=True)]
        aligned = torch.stack([apply(m, shape) for m, shape in zip(matrices, points, strict=True)])
        mean = (aligned * weight[..., None]).sum(0) / total
    linear = torch.stack([m[:3, :3] for m in matrices])
    size = torch.linalg.det(linear).pow(1 / 3)
    u, _, vh = torch.linalg.svd((linear / size[:, None, None]).mean(0))
    turn = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vh))], dtype=torch.float64)) @ vh
    mean = (mean - mean.mean(0)) @ turn  # the inverse of the average turn, on row vectors
    return (mean / size.log().mean().exp()).float()
