"""Synthetic lesions in real images: they teach a click network to find what was clicked, whatever it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

CONTRAST_HU = (10.0, 80.0)  # of a lesion with the tissue round it
CONTRAST_MR = (0.1, 0.7)  # the same, as a logarithm


def implant(values: Tensor, tissue: Tensor, generator: np.random.Generator, *, ct: bool) -> tuple[Tensor, Tensor]:
    """Put a bumpy ellipsoid of another grey value into an image.

    Args:
        values: (*S) float32, HU or MR signal, NaN outside the image.
        tissue: (*S) bool; the lesion keeps to it and its middle is in it.

    Returns:
        the image with the lesion, and the lesion's mask (*S) bool, empty where there is no tissue.
    """
    places = tissue.reshape(-1).nonzero()[:, 0]
    if not len(places):
        return values, torch.zeros_like(tissue)
    shape = torch.tensor(values.shape)
    dimension = len(shape)
    middle = torch.stack(torch.unravel_index(places[int(generator.integers(len(places)))], tuple(values.shape)))
    radius = float(shape.min()) * generator.uniform(0.08, 0.35) * np.exp(generator.normal(0.0, 0.25, dimension))
    distance = torch.zeros_like(values)
    for axis, size in enumerate(values.shape):
        along = (torch.arange(size) - middle[axis]).float() / max(float(radius[axis]), 1.5)
        distance = distance + along.square().view([-1 if n == axis else 1 for n in range(dimension)])
    depth = 1 - distance.sqrt() + generator.uniform(0.1, 0.4) * _bumps(values, generator, 7)
    edge = 2.0 / float(np.mean(radius)) * generator.uniform(0.2, 1.0)  # soft over a node or two
    share = torch.sigmoid(depth / edge) * tissue
    mask = share > 0.5
    if not mask.any():
        return values, mask
    around = float(values[mask].mean())
    sign = 1 if generator.random() < 0.5 else -1
    if ct:
        level = around + sign * generator.uniform(*CONTRAST_HU)
        rough = generator.uniform(0.0, 25.0)
    else:
        level = around * float(np.exp(sign * generator.uniform(*CONTRAST_MR)))
        rough = abs(level) * generator.uniform(0.0, 0.25)
    left = generator.uniform(0.0, 0.6)  # of the anatomy that shines through
    inner = left * (values - around) + level + rough * _bumps(values, generator, int(generator.integers(4, 14)))
    return values + share * (inner - values), mask


def _bumps(values: Tensor, generator: np.random.Generator, nodes: int) -> Tensor:
    """Smooth noise of about unit variance, with so many knots an axis."""
    knots = torch.as_tensor(generator.standard_normal((1, 1, *[nodes] * values.ndim), dtype=np.float32))
    mode = "bilinear" if values.ndim == 2 else "trilinear"
    return interpolate(knots, tuple(values.shape), mode=mode, align_corners=True)[0, 0]
