"""Cases of interactive segmentation on one working grid, with every seed's response computed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from medrl.geometry.random_walker import edge_weights, responses

LEVELS = 255.0  # grey values are bytes


class SeedCases:
    """N images and masks of one shape S, their user clicks, and the table of responses of the random walker.

    Seeds lie at the centres of the cells of a ``grid`` laid over S, or at a user's clicks; their nodes are the
    table's columns, cells first.  A column holds the potential that a unit current at its node causes (the
    pseudo-inverse of the image's Laplacian), so that the exact random walker of any k seeds is a sum of k columns
    whose coefficients solve a system of k + 1.

    Args:
        images: (N, *S) uint8.
        truths: (N, *S) bool; empty where there is no truth.
        clicks: (N, P, 2) int64, flat indices of P pairs of a foreground and a background click.
        grid: cells along each axis.
        beta, floor: of the edge weights ``exp(-beta |dg|^2 / (10 std g)) + floor``.
        spacing_mm: of the working grid, an axis each; shared by all cases.
    """

    def __init__(
        self, images: Tensor, truths: Tensor, clicks: Tensor, *, grid: Sequence[int], beta: float = 130.0,
        floor: float = 1e-6, names: Sequence[str] | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.shape, self.grid, self.beta, self.floor = tuple(images.shape[1:]), tuple(grid), beta, floor
        self.device = torch.device(device)
        self.names = tuple(names) if names is not None else tuple(str(n) for n in range(len(images)))
        self.cells = cell_centres(self.shape, self.grid)
        count, pairs = len(images), clicks.shape[1]
        self.image = torch.zeros((count, *self.shape), dtype=torch.uint8)
        self.truth = torch.zeros((count, -(-images[0].numel() // 8)), dtype=torch.uint8)
        self.node = torch.zeros((count, len(self.cells) + 2 * pairs), dtype=torch.int64)
        self.table = torch.zeros((count, self.node.shape[1], images[0].numel()))
        for n in range(count):
            self.replace(n, images[n], truths[n], clicks[n])
        self.to(device)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pairs(self) -> int:
        """Pairs of clicks that each case has."""
        return (self.node.shape[1] - len(self.cells)) // 2

    def to(self, device: torch.device | str) -> SeedCases:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        for name in ("image", "truth", "node", "table", "cells"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def replace(self, index: int, image: Tensor, truth: Tensor, clicks: Tensor) -> None:
        """Put another image (*S), its mask and its clicks (P, 2) in the place of one case."""
        node = torch.cat([self.cells.cpu(), clicks.reshape(-1).cpu()])
        weights = edge_weights(image[None].float().cpu() / LEVELS, beta=self.beta, floor=self.floor)
        self.image[index], self.truth[index] = image, pack(truth.reshape(1, -1))[0]
        self.node[index], self.table[index] = node, responses(weights, node)

    def state_dict(self) -> dict[str, Any]:
        """Images, masks and nodes of the moment, for an exact resume; the table is computed again from them."""
        return {"image": self.image, "truth": self.truth, "node": self.node}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``; ValueError for cases of another number or shape."""
        if saved["image"].shape != self.image.shape or saved["node"].shape != self.node.shape:
            raise ValueError("the saved cases have another number, shape or grid than these")
        truths = unpack(saved["truth"].cpu(), self.image[0].numel())
        for index, (image, truth, node) in enumerate(zip(saved["image"], truths, saved["node"], strict=True)):
            clicks = node[len(self.cells) :].reshape(-1, 2)
            self.replace(index, image.cpu(), truth.reshape(self.shape), clicks.cpu())

    def masks(self, case: Tensor) -> Tensor:
        """True masks (B, V) bool."""
        return unpack(self.truth[case], self.table.shape[-1])

    def columns(self, case: Tensor, column: Tensor) -> Tensor:
        """Responses (B, k, V) of columns (B, k)."""
        return self.table[case[:, None], column]

    def among(self, case: Tensor, column: Tensor) -> Tensor:
        """Responses (B, k, k) of columns (B, k) at the nodes of one another, in double precision."""
        node = self.node[case[:, None], column]
        among = self.table[case[:, None, None], column[:, :, None], node[:, None]].double()
        return (among + among.mT) / 2

    def blend(self, case: Tensor, column: Tensor, weight: Tensor) -> Tensor:
        """Sums (B, V) of the responses of columns (B, k) by weights (B, k), without a copy of the responses."""
        row = case[:, None] * self.table.shape[1] + column
        return embedding_bag(row, self.table.flatten(0, 1), mode="sum", per_sample_weights=weight)

    def subset(self, keep: Sequence[int]) -> SeedCases:
        """The cases of some indices, sharing no memory."""
        new: Any = object.__new__(SeedCases)
        new.__dict__.update(self.__dict__)
        index = torch.as_tensor(list(keep), device=self.device)
        new.image, new.truth, new.node, new.table = (x[index] for x in (self.image, self.truth, self.node, self.table))
        new.names = tuple(self.names[n] for n in keep)
        return new


def cell_centres(shape: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Flat indices (C,) of the voxels at the centres of the cells of a grid, in row-major order of the cells."""
    axes = [((torch.arange(g) + 0.5) * s / g).long() for s, g in zip(shape, grid, strict=True)]
    index = torch.zeros([1] * len(shape), dtype=torch.int64)
    for axis, at in enumerate(axes):
        index = index * shape[axis] + at.reshape([-1 if n == axis else 1 for n in range(len(shape))])
    return index.reshape(-1)


def pack(mask: Tensor) -> Tensor:
    """Bits (B, V) bool -> bytes (B, ceil(V / 8)) uint8."""
    rows, size = mask.shape
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -size % 8)).reshape(rows, -1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """Bytes (B, ceil(size / 8)) uint8 -> bits (B, size) bool."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(-2)[..., :size].bool()


POPULATION = torch.tensor([n.bit_count() for n in range(256)], dtype=torch.int32)


def count_bits(packed: Tensor) -> Tensor:
    """Set bits (B,) of bytes (B, n)."""
    return POPULATION.to(packed.device)[packed.long()].sum(-1)
