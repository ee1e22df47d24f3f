"""Views of a pair: both images through the feature networks, ready for an agent or a search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from medrl.data.pair_cases import COARSE_MM, FINE_MM, Pair, Points
from medrl.data.pair_images import SPACING_MM, PairImage, body_grid, channels, grey
from medrl.geometry.mind import describe
from medrl.networks.features import FeaturePair, PairNetworks

NEAR_BODY = 5  # voxels of the cube about a place that must hold tissue for the place to be looked at


class View(NamedTuple):
    """One image on a 4 mm grid of a frame, and its features there."""

    grid_from_ras: Tensor  # (4, 4) float64; the origin is the grid's middle
    coarse: Tensor  # (C, X/2, Y/2, Z/2)
    grey: Tensor  # (X, Y, Z) in [0, 1]
    tissue: Tensor  # (X, Y, Z) bool


@torch.no_grad()
def view(image: PairImage, networks: PairNetworks, *, frame_from_ras: Tensor | None = None) -> View:
    """Render an image along the axes of a frame (patient axes by default) and compute its features."""
    frame = torch.eye(4, dtype=torch.float64) if frame_from_ras is None else frame_from_ras
    grid_from_ras, shape = body_grid(image, frame)
    values = image.render(grid_from_ras, shape)
    seen = channels(values, ct=image.ct)[None]
    device = networks.coarse.log_scale.device
    return View(
        grid_from_ras, _features(networks.coarse, seen.to(device), image.ct),
        grey(values, ct=image.ct).to(device), image.tissue(values).to(device),
    )  # fmt: skip


def pair_of(
    fixed: View, moving: View, *, counts: tuple[int, int], generator: torch.Generator, name: str = "",
    ras_truth: Tensor | None = None, lattice_ras: Tensor | None = None, mind: bool = False,
) -> Pair:  # fmt: skip
    """Put two views together as a case; ``counts`` are the numbers of coarse and fine points.

    The fixed frame is that of the fixed view, but its origin is the middle of the body.  With ``mind`` the pair can be
    judged by self-similarity, too.
    """
    middle = middle_of(fixed)
    index, coarse_mm = _pick(fixed.tissue, COARSE_MM, counts[0], generator)
    coarse = Points(coarse_mm - middle, fixed.coarse.flatten(1)[:, index].T)
    index, fine_mm = _pick(fixed.tissue, FINE_MM, counts[1], generator)
    descriptors = describe(fixed.grey).flatten(1)[:, index].T if mind else None
    fixed_from_ras = fixed.grid_from_ras.clone()
    fixed_from_ras[:3, 3] -= middle.double().cpu()
    truth = None
    if ras_truth is not None:
        truth = (moving.grid_from_ras @ ras_truth @ torch.linalg.inv(fixed_from_ras)).float()
    lattice = coarse.place_mm[:64]
    if lattice_ras is not None:
        lattice = (lattice_ras @ fixed_from_ras[:3, :3].T + fixed_from_ras[:3, 3]).float()
    return Pair(
        name, coarse, fine_mm - middle, fixed.grey.flatten()[index], moving.coarse, moving.grey, truth, lattice,
        middle_of(moving), descriptors, fixed_from_ras, moving.grid_from_ras,
    )  # fmt: skip


def fixed_frame(fixed: View) -> Tensor:
    """``fixed_from_ras`` (4, 4) of the frame that `pair_of` uses."""
    matrix = fixed.grid_from_ras.clone()
    matrix[:3, 3] -= middle_of(fixed).double().cpu()
    return matrix


def middle_of(seen: View) -> Tensor:
    """(3,) mm: the centre of mass of the tissue, in the frame of the grid."""
    middle = []
    for axis, side in enumerate(seen.tissue.shape):
        place = (torch.arange(side, device=seen.tissue.device) - (side - 1) / 2) * SPACING_MM
        mass = seen.tissue.sum([n for n in range(3) if n != axis]).float()
        middle.append((mass * place).sum() / mass.sum().clamp(min=1))
    return torch.stack(middle)


def _features(pair: FeaturePair, image: Tensor, ct: bool) -> Tensor:
    with torch.autocast(image.device.type, torch.bfloat16):
        return pair(image, "ct" if ct else "mr")[0].float()


def _pick(tissue: Tensor, grid_mm: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices (count,) of voxels of a grid in or near the body, and their places (count, 3) in mm.

    Without order; some twice where there are not enough.
    """
    stride = round(grid_mm / SPACING_MM)
    near = (avg_pool3d(tissue[None, None].float(), NEAR_BODY, 1, NEAR_BODY // 2) > 0.01).float()
    share = avg_pool3d(near, stride)[0, 0]
    found = (share > 0.3).flatten().nonzero()[:, 0]
    order = torch.randperm(len(found), generator=generator).to(found.device)
    index = found[order.repeat(-(-count // max(1, len(found))))[:count]]
    shape = torch.tensor(share.shape, device=index.device)
    voxel = torch.stack([index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]], -1).float()
    return index, (voxel - (shape - 1) / 2) * grid_mm
