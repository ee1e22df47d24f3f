"""An image on a lattice, and points on lattices that seeds are placed at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import pad

from medrl.data.regions import Region, grey_levels, sample_image
from medrl.data.seeds import Seeds, make_seeds, seed_voxels


class View(NamedTuple):
    """An image on a lattice."""

    region: Region
    grey: Tensor  # (1, *S) uint8


def look(image: MetaTensor, region: Region, ct: bool, device: torch.device) -> View:
    """Read an image (1, X, Y, Z) on a region's lattice, as grey levels on a device."""
    return View(region, grey_levels(sample_image(image, region), ct=ct)[None].to(device))


def resample(potential: Tensor, source: Region, target: Region) -> Tensor:
    """Bring a potential (1, *S) from one lattice to another with the same axes; 0 where it does not reach."""
    volume = potential[0].cpu().reshape(1, *(*source.shape, 1)[:3])
    values = sample_image(MetaTensor(volume, affine=source.ras_from_index), target)
    return values.nan_to_num(0.0)[None].to(potential.device)


def positions(region: Region, node: Tensor) -> Tensor:
    """Points (K, 3) in RAS mm of flat node indices (K,)."""
    return region.position_ras(torch.stack(torch.unravel_index(node, region.shape), -1))


def corners_of(region: Region) -> Tensor:
    """Corners (K, 3) in RAS mm of a region."""
    return region.position_ras(torch.cartesian_prod(*(torch.tensor([-0.5, n - 0.5]) for n in region.shape)))


def innermost(object_: Tensor, region: Region) -> Tensor:
    """The node deepest inside an object (*S) bool, as a point (1, 3) in RAS mm; the region's border bounds it too."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(pad(object_, (1, 1) * object_.ndim).numpy(), sampling=region.spacing_mm)
    inside = torch.as_tensor(depth)[(slice(1, -1),) * object_.ndim]
    return positions(region, inside.flatten().argmax()[None])


def surest(object_: Tensor, likelihood: Tensor, free: Tensor, region: Region, *, reach: float) -> Tensor:
    """The least likely free node at most ``reach`` steps outside an object (*S), as a point (1, 3) in RAS mm."""
    from scipy.ndimage import distance_transform_edt

    distance = torch.as_tensor(distance_transform_edt(~object_.numpy()))
    near = free & (distance > 1) & (distance <= reach)
    chance = torch.where(near if bool(near.any()) else free, likelihood, torch.inf)
    return positions(region, chance.flatten().argmin()[None])


def closed_cells(
    seeds: Seeds, cells: Tensor, grid: Sequence[int], region: Region, image: MetaTensor
) -> Tensor:  # fmt: skip
    """Cells (C,) bool not to be seeded: they hold a seed, or their centre's voxel does, or an earlier cell's centre.

    ``cells`` (C,) are the centres' flat indices on the region's lattice, ``grid`` the cells along each axis.
    """
    node = region.node(seeds.position_ras)
    index = torch.stack(torch.unravel_index(node[node >= 0], region.shape), -1)
    taken = torch.zeros(tuple(grid), dtype=torch.bool)
    taken[tuple((index * torch.tensor(grid) // torch.tensor(region.shape)).T)] = True
    centres = make_seeds(positions(region, cells), [True] * len(cells))
    voxels = torch.cat([seed_voxels(seeds, image), seed_voxels(centres, image)])
    same = (voxels[:, None] == voxels[None]).all(-1).tril(-1).any(1)
    return taken.flatten() | same[len(seeds.foreground) :]


def mix(agent: Tensor | None, click: Tensor | None, share: float) -> Tensor:
    """What two networks that see an object with probabilities (1, *S) believe together.

    ``share`` of the logit is the first one's; only one of them may have been asked, whose belief is then returned.
    """
    if agent is None or click is None:
        return click if agent is None else agent
    first, second = (each.clamp(1e-4, 1 - 1e-4).logit() for each in (agent, click))
    return (share * first + (1 - share) * second).sigmoid()
