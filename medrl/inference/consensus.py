"""From many walkers' end points to one point, its uncertainty and its presence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Consensus(NamedTuple):
    """One answer for each of L landmarks."""

    position_mm: Tensor  # (L, 3)
    scatter_mm: Tensor  # (L,) root mean square distance of the kept end points from the answer
    kept: Tensor  # (L,) share of end points kept


def agree(points: Tensor, weight: Tensor, *, cut: float = 3.5) -> Consensus:
    """Weighted mean of the end points (K, L, 3) that are not outliers.

    An end point is an outlier where its distance from the median point exceeds ``cut`` times the median distance
    (MAD rule [Theis 2024]); at least half are always kept.  ``weight`` is (K, L).
    """
    middle = points.quantile(0.5, dim=0)  # torch.median would take the lower of two
    distance = (points - middle).norm(dim=-1)
    limit = torch.maximum(cut * 1.4826 * distance.quantile(0.5, dim=0), torch.full_like(distance[0], 1e-3))
    kept = (distance <= limit).float()
    share = kept * weight
    share = share / share.sum(0).clamp(min=1e-12)
    position = (share[..., None] * points).sum(0)
    scatter = (share * (points - position).square().sum(-1)).sum(0).sqrt()
    return Consensus(position, scatter, kept.mean(0))


def shape_posterior(points: Tensor, error_mm: Tensor, shape: Tensor, spread_mm: Tensor) -> Tensor:
    """Pull points (L, 3) towards a fitted mean shape (L, 3), each by its own doubt.

    ``error_mm`` (L,) is the doubt of the points and ``spread_mm`` (L,) the spread of real shapes round the mean: the
    posterior mean of independent Gaussians (a diagonal Wiener filter).
    """
    trust = spread_mm.square() / (spread_mm.square() + error_mm.square())
    return shape + trust[:, None] * (points - shape)
