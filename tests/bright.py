"""Networks that take what is bright for the object, and images of bright ellipsoids, for tests of segmentation."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from medrl.data.phantoms import random_affine
from medrl.data.seeds import Seeds, make_seeds
from medrl.networks.seed_networks import SeedNetworks
from medrl.networks.seednet import SeedHeads

STOP = 0.2  # share of a cell that must be wrong for a seed


class BrightAgent(nn.Module):
    """Seeds where brightness and mask differ most; the quality is their overlap."""

    def __init__(self, dims: int, cells: int = 6) -> None:
        super().__init__()
        self.dims, self.grid = dims, (cells,) * dims
        self.actions = 2 * cells**dims + 1
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        bright, mask = image[:, 0] > 128, image[:, 1] > 128
        pool = adaptive_avg_pool2d if self.dims == 2 else adaptive_avg_pool3d
        wrong = torch.stack([bright & ~mask, ~bright & mask], 1).float()
        q = pool(wrong, self.grid).flatten(1)
        both, either = ((x.flatten(1)).sum(1) for x in (bright & mask, bright | mask))
        quality = (both / either.clamp(min=1)).clamp(0.01, 0.99).logit()
        logits = (image[:, 0].flatten(1).float() - 128) / 16
        return torch.cat([q, torch.full((len(q), 1), STOP), logits, quality[:, None]], 1)

    def split(self, output: Tensor) -> SeedHeads:
        q, logits, quality = output.split([self.actions, output.shape[1] - self.actions - 1, 1], 1)
        return SeedHeads(q[:, None, None], logits, quality[:, 0])


class BrightClicks(nn.Module):
    """Logits of the object from its brightness, in the channels of a click network; ``shrink`` takes a rim away."""

    def __init__(self, dims: int, sharpness: float = 8.0, believes: bool = True) -> None:
        super().__init__()
        self.dims, self.sharpness, self.believes = dims, sharpness, believes

    def forward(self, image: Tensor) -> Tensor:
        return self.sharpness * image[:, :1] if self.believes else torch.full_like(image[:, :1], -9.0)


def bright_networks(**options) -> SeedNetworks:
    """Both agents, and both click networks."""
    return SeedNetworks([BrightAgent(2), BrightAgent(3)], [BrightClicks(dims, **options) for dims in (2, 3)])


def bright_image(shape=(24, 20, 18), *, affine="oblique", seed=0, level=1000.0) -> tuple[MetaTensor, Tensor]:
    """An image (1, X, Y, Z) of a large and a small ellipsoid that do not touch, and their mask (X, Y, Z) bool."""
    generator = np.random.default_rng(seed)
    if isinstance(affine, str):
        affine = random_affine(generator, (1.5, 2.0, 2.5), oblique_degrees=15.0)
    axes = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / n if n > 1 else np.zeros(1) for n in shape), indexing="ij")
    squares = [sum(((a - at) / size) ** 2 for a in axes) for at, size in ((-0.02, 0.26), (0.29, 0.18))]
    mask = (squares[0] < 1) | (squares[1] < 1)
    voxels = 200 + level * mask + generator.normal(0, 40.0, shape)
    return MetaTensor(torch.tensor(voxels[None], dtype=torch.float32), affine=torch.tensor(affine)), torch.tensor(mask)


def ras(image: MetaTensor, *voxel: float) -> list[float]:
    """The place of a voxel in mm."""
    matrix = image.affine.double()
    return (matrix[:3, :3] @ torch.tensor(voxel).double() + matrix[:3, 3]).tolist()


def clicks_on(image: MetaTensor) -> Seeds:
    """One click in the middle, one near a corner."""
    middle = [round(0.48 * (n - 1)) for n in image.shape[1:]]
    corner = [n // 10 for n in image.shape[1:]]
    return make_seeds([ras(image, *middle), ras(image, *corner)], [True, False])


def overlap(first: Tensor, second: Tensor) -> float:
    """Intersection over union."""
    first, second = first.bool(), second.bool()
    return float((first & second).sum() / (first | second).sum())
