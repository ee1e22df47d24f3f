"""How likely a colour is an object's, by histograms of an image whose mask is known."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 16  # a channel, of what is remembered


def colour_chance(now: Tensor, before: Tensor, mask: Tensor, bins: int, prior: float = 2.0) -> Tensor:
    """Share (B, 1, n, n) of the mask (B, 1, n, n) among the cells of the image before that have a cell's colour.

    Images (B, 3, n, n) in 0..1 are sorted into ``bins`` a channel; ``prior`` cells with the mask's mean are added.
    """
    inside = mask.flatten(1)
    index, known = (colour_bins(image, bins).flatten(1) for image in (now, before))
    found, total = _histograms(known, inside, bins)
    return _share(found, total, inside, prior).gather(1, index).reshape(mask.shape)


def colour_bins(images: Tensor, bins: int) -> Tensor:
    """The bin (B, ...) int64 of every colour of images (B, 3, ...) in 0..1, with ``bins`` a channel."""
    red, green, blue = (images * bins).long().clamp(0, bins - 1).unbind(1)
    return blue + bins * (green + bins * red)


def remembered_chance(now: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """How likely cells are an object's (B, 2, V), by the colours of an image whose mask (B, V), 0 or 1, is known.

    Both images, now (B, V) and known (B, V), are given as bins of `BINS` a channel.  The first chance goes by half as
    many bins; the second by all of them, blurred 1 2 1 along each channel, since few cells are in one.
    """
    fine = [x.unflatten(1, (BINS,) * 3) for x in _histograms(known.long(), mask, BINS)]
    half = BINS // 2
    coarse = [x.unflatten(1, (half, 2)).sum(2).unflatten(2, (half, 2)).sum(3).unflatten(3, (half, 2)).sum(4)
              for x in fine]  # fmt: skip
    first = _share(*coarse, mask, 2.0)[:, :, None, :, None, :, None].expand(-1, half, 2, half, 2, half, 2)
    second = _share(*(_blurred(x) for x in fine), mask, 0.5)
    index = now.long()
    return torch.stack([table.reshape(len(mask), -1).gather(1, index) for table in (first, second)], 1)


def _histograms(index: Tensor, mask: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Mass of the mask, and cells, in every bin (B, bins**3)."""
    empty = mask.new_zeros(len(mask), bins**3)
    return empty.scatter_add(1, index, mask), empty.scatter_add(1, index, torch.ones_like(mask))


def _share(found: Tensor, total: Tensor, mask: Tensor, prior: float) -> Tensor:
    mean = mask.mean(1).reshape(-1, *[1] * (found.ndim - 1))
    return (found + prior * mean) / (total + prior)


def _blurred(values: Tensor) -> Tensor:
    for axis in range(1, values.ndim):
        last = values.shape[axis] - 1
        low = torch.cat([values.narrow(axis, 0, 1), values.narrow(axis, 0, last)], axis)
        high = torch.cat([values.narrow(axis, 1, last), values.narrow(axis, last, 1)], axis)
        values = 0.5 * values + 0.25 * (low + high)
    return values
