"""Clicks of a simulated user on a lattice, and the channels in which a network sees clicks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medrl.data.seeds import BACKGROUND, FOREGROUND

BAND = (5.0, 10.0)  # voxels outside of the boundary at which a user clicks the background
DEPTH = 1.5  # voxels inside of the boundary that a random click in the object keeps, where it can
CHANNELS = 7  # of `click_input`


class Clicks(NamedTuple):
    """Clicks of B rows, in the order of placing; rows with fewer than K are filled up with node -1 and label 0."""

    node: Tensor  # (B, K) int64, flat index on the lattice
    label: Tensor  # (B, K) int8, FOREGROUND or BACKGROUND


def stack_clicks(rows: Sequence[Sequence[tuple[int, int]]]) -> Clicks:
    """Clicks from lists of (node, label), one list a row."""
    longest = max((len(row) for row in rows), default=0)
    node = torch.full((len(rows), longest), -1, dtype=torch.int64)
    label = torch.zeros((len(rows), longest), dtype=torch.int8)
    for n, row in enumerate(rows):
        for k, (at, kind) in enumerate(row):
            node[n, k], label[n, k] = at, kind
    return Clicks(node, label)


def first_clicks(
    mask: np.ndarray, tissue: np.ndarray, *, variant: str, generator: np.random.Generator,
    voxels_per_node: Sequence[float] | None = None, spacing: Sequence[float] | None = None,
    band: tuple[float, float] = BAND,
) -> list[tuple[int, int]]:  # fmt: skip
    """One click inside of an object and one outside, (node, label) each.

    Args:
        mask, tissue: (*S) bool; the object, and what is not air.
        variant: ``inner``, the node farthest from the boundary; ``random``, a node at least 1.5 voxels inside of it.
        voxels_per_node: along each axis; the depth and the band are in voxels of the image.
        spacing: of the nodes, for the farthest node of ``inner``.
        band: nearest and farthest distance of the outer click from the object, in tissue where there is some.

    Raises:
        ValueError: an empty mask, or no such variant.
    """
    from scipy.ndimage import distance_transform_edt

    scale = np.ones(mask.ndim) if voxels_per_node is None else np.asarray(voxels_per_node, dtype=float)
    if variant not in ("inner", "random"):
        raise ValueError(f"a click of variant {variant!r}: expected 'inner' or 'random'")
    if not mask.any():
        raise ValueError("no click can be placed in an empty mask")
    clicks = []
    box, low = _box(mask, 1)
    inside = np.pad(mask[box], 1)
    if variant == "inner":
        depth = distance_transform_edt(inside, sampling=scale if spacing is None else spacing)
        chosen = np.array(np.unravel_index(int(np.argmax(depth)), depth.shape))
    else:
        depth = distance_transform_edt(inside, sampling=scale)
        deep = np.argwhere(depth > DEPTH)
        chosen = generator.choice(deep if len(deep) else np.argwhere(inside))
    clicks.append((int(np.ravel_multi_index(tuple(chosen - 1 + low), mask.shape)), FOREGROUND))
    if mask.all():
        return clicks
    distance = distance_transform_edt(~mask, sampling=scale)
    ring = (distance >= band[0]) & (distance <= band[1])
    for places in (ring & tissue, ring):
        nodes = np.flatnonzero(places)
        if len(nodes):
            return [*clicks, (int(generator.choice(nodes)), BACKGROUND)]
    return [*clicks, (int(np.argmax(distance)), BACKGROUND)]  # the field of view ends before the band


def error_clicks(mask: np.ndarray, predicted: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Clicks (node, label) in the middle of the ``count`` largest connected errors of a prediction, largest first."""
    from scipy.ndimage import distance_transform_edt, find_objects, label

    places: list[tuple[int, int, int, tuple[slice, ...], np.ndarray]] = []
    for kind, wrong in ((FOREGROUND, mask & ~predicted), (BACKGROUND, predicted & ~mask)):
        parts, total = label(wrong)
        if total:
            sizes = np.bincount(parts.reshape(-1))
            boxes = find_objects(parts)
            places += [(int(sizes[n + 1]), kind, n + 1, boxes[n], parts) for n in range(total)]
    clicks = []
    for _, kind, number, box, parts in sorted(places, key=lambda place: -place[0])[:count]:
        depth = distance_transform_edt(np.pad(parts[box] == number, 1))
        chosen = np.array(np.unravel_index(int(np.argmax(depth)), depth.shape)) - 1
        index = chosen + [side.start for side in box]
        clicks.append((int(np.ravel_multi_index(tuple(index), mask.shape)), kind))
    return clicks


def click_input(image: Tensor, clicks: Clicks, *, near: float = 2.0, wide: float = 12.0) -> Tensor:
    """Channels of a click network, (B, 7, *S) float32.

    The grey value from -1 to 1; for foreground, then background clicks: a Gaussian of ``near`` nodes round each, a
    decay of ``wide`` nodes from the nearest (its slope tells the distance far away), and how unlike the grey values
    at the clicks each node is, 0 where it equals one of them and 1 where there is no click.

    Args:
        image: (B, *S) uint8.
        clicks: nodes of S, -1 for none.
    """
    shape = image.shape[1:]
    dimension = len(shape)
    grey = image.float() / 255
    index = torch.stack(torch.unravel_index(clicks.node.clamp(min=0), tuple(shape)), -1)
    level = _level(grey, index)
    values = torch.empty((len(image), CHANNELS, *shape), device=image.device)
    torch.sub(2 * grey, 1, out=values[:, 0])
    for first, kind in ((1, FOREGROUND), (4, BACKGROUND)):
        distance, unlike = torch.full_like(grey, math.inf), values[:, first + 2].fill_(1.0)
        for k in range(clicks.node.shape[1]):
            for row in ((clicks.label[:, k] == kind) & (clicks.node[:, k] >= 0)).nonzero()[:, 0].tolist():
                square = torch.zeros([1] * dimension, device=image.device)
                for axis, size in enumerate(shape):
                    along = torch.arange(size, device=image.device) - index[row, k, axis]
                    square = square + along.float().square().view([-1 if n == axis else 1 for n in range(dimension)])
                torch.minimum(distance[row], square, out=distance[row])
                torch.minimum(unlike[row], (grey[row] - level[row, k]).abs(), out=unlike[row])
        torch.exp(distance / (-2 * near**2), out=values[:, first])
        torch.exp(distance.sqrt_().div_(-wide), out=values[:, first + 1])
    return values


def _level(grey: Tensor, index: Tensor) -> Tensor:
    """Mean grey values (B, K) of the nodes at ``index`` (B, K, dimension) and their neighbours."""
    shape, dimension = grey.shape[1:], grey.ndim - 1
    last = torch.tensor(shape, device=grey.device) - 1
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=grey.device)] * dimension)
    places = index[:, :, None] + steps  # (B, K, 3^d, dimension)
    inside = ((places >= 0) & (places <= last)).all(-1)
    node = torch.zeros_like(places[..., 0])
    for axis, size in enumerate(shape):
        node = node * size + places[..., axis].clamp(min=0).minimum(last[axis])
    values = grey.flatten(1).gather(1, node.flatten(1)).view(node.shape) * inside
    return values.sum(-1) / inside.sum(-1)


def _box(mask: np.ndarray, margin: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box of an object and ``margin`` nodes round it, and its lower corner."""
    box, low = [], []
    for axis in range(mask.ndim):
        covered = np.flatnonzero(mask.any(axis=tuple(n for n in range(mask.ndim) if n != axis)))
        first, last = max(0, int(covered[0]) - margin), min(mask.shape[axis], int(covered[-1]) + margin + 1)
        box.append(slice(first, last))
        low.append(first)
    return tuple(box), np.array(low)
