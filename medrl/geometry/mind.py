"""MIND: how alike a place is to its own neighbours, which all contrasts of one anatomy agree on [Heinrich 2012]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

SIGMA = 0.5  # voxels, of the patches that are compared
LEAST, MOST = 1e-3, 1e3  # of the local variance, in units of its mean


def describe(volume: Tensor) -> Tensor:
    """Descriptors (6, X, Y, Z) in (0, 1], the largest of a place 1, of a volume (X, Y, Z).

    Component 2 a is ``exp(-D / V)`` for the neighbour one voxel up axis a, 2 a + 1 for the one down: D is the squared
    difference of 3^3 patches under a Gaussian weight, V the mean of the six D.  A linear change of all values, also a
    reversal, changes nothing.  Beyond the border its values go on.
    """
    values = volume.float()[None, None]
    whole = pad(values, (1,) * 6, mode="replicate")
    middle = [slice(1, -1)] * 3
    differences = []
    for axis in range(3):
        for way in (slice(2, None), slice(None, -2)):
            moved = whole[0, 0][tuple(way if n == axis else m for n, m in enumerate(middle))]
            differences.append((moved - values[0, 0]).square())
    distance = _smooth(torch.stack(differences)[:, None])[:, 0]
    variance = distance.mean(0)
    mean = variance.mean()
    variance = variance.maximum(LEAST * mean).minimum(MOST * mean).clamp(min=1e-12)
    descriptor = (-distance / variance).exp()
    return descriptor / descriptor.amax(0).clamp(min=1e-12)


def _smooth(values: Tensor) -> Tensor:
    """Patches' weighted means of (N, 1, X, Y, Z)."""
    side = math.exp(-1 / (2 * SIGMA**2))
    weight = values.new_tensor([side, 1.0, side]) / (1 + 2 * side)
    for axis in range(3):
        shape = [1] * 5
        shape[2 + axis] = 3
        border = [0] * 6
        border[2 * (2 - axis)] = border[2 * (2 - axis) + 1] = 1
        values = conv3d(pad(values, border, mode="replicate"), weight.reshape(shape))
    return values
