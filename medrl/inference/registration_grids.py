"""Two images as grids for SimpleITK: along the patient axes, isotropic, anti-aliased, at several resolutions.

So the way an image is stored does not matter.  A metric is taken over the body in the image that shows less of it, and
the other image goes on as air beyond its edges: every pose is judged by the same samples, none wins by a small overlap.
The grids are handed to SimpleITK in RAS: it needs a frame, not LPS.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from medrl.data.regions import is_ct
from medrl.geometry.grids import canonical
from medrl.geometry.similarity import apply
from medrl.geometry.transforms import invert
from medrl.types import InputError

FINE_MM, MOST_SAMPLES = 4.0, 45_000  # the finest grid is coarser where the body has more voxels than this
CT_WINDOW = (-300.0, 300.0)  # HU
AIR = 26  # largest grey value of air: 10 % of the window
UNMEASURED = 1  # largest grey value of the border of a resampled MR image
BODY_MARGIN, EDGE_MARGIN = 2, 1  # fine voxels that the samples reach beyond the skin, and beyond what was measured
BEYOND_MM = 72.0  # of air round the other image
MULTIPLE = 6  # sides of the fine grid are multiples of it, so that grids of 2 and 3 times the spacing fit


class View(NamedTuple):
    """An image on the finest grid."""

    grey: Tensor  # (X, Y, Z) float32 from 0 (air, or beyond the edge) to 1
    body: Tensor  # (X, Y, Z) bool: the samples
    centre: Tensor  # (3,) RAS mm of the grid's centre

    def place(self, index: Tensor, spacing_mm: float) -> Tensor:
        """RAS mm of grid indices (..., 3), float64."""
        return self.centre + (index.double() - (torch.tensor(self.body.shape) - 1) / 2) * spacing_mm

    def points(self, spacing_mm: float, *, most: int = 2000) -> Tensor:
        """Points (N, 3) of the body, evenly drawn."""
        index = self.body.nonzero()
        return self.place(index[:: max(1, len(index) // most)], spacing_mm)

    def mass(self, spacing_mm: float) -> Tensor:
        """The body's centre (3,) of mass, grey values as weights."""
        weight = self.grey[self.body].double()
        return self.place(weight @ self.body.nonzero().double() / weight.sum().clamp(min=1e-6), spacing_mm)


class GridPair:
    """Two images (1, X, Y, Z) prepared for a search of ``other_from_sampled``: moving from fixed, or its inverse.

    InputError if one of them shows nothing but air.
    """

    def __init__(self, fixed: MetaTensor, moving: MetaTensor) -> None:
        self.spacing_mm = FINE_MM
        views = [_view(image, self.spacing_mm) for image in (fixed, moving)]
        for role, view in zip(("fixed", "moving"), views, strict=True):
            if not view.body.any():
                raise InputError(f"the {role} image: shows nothing but air; expected a patient")
        least = min(int(view.body.sum()) for view in views)
        if least > MOST_SAMPLES:
            self.spacing_mm *= (least / MOST_SAMPLES) ** (1 / 3)
            views = [_view(image, self.spacing_mm) for image in (fixed, moving)]
        self.swapped = int(views[1].body.sum()) < int(views[0].body.sum())
        self.fixed_centre = views[0].points(self.spacing_mm).mean(0)
        self.sampled, self.other = reversed(views) if self.swapped else views
        beyond = int(BEYOND_MM / self.spacing_mm / MULTIPLE + 1) * MULTIPLE
        self._padded = pad(self.other.grey, (beyond,) * 6)
        self._grids: dict[int, tuple[Any, Any, Any]] = {}
        self.points = self.sampled.points(self.spacing_mm)
        self.centre = self.points.mean(0)  # what poses turn about
        self.radius_mm = float((self.points - self.centre).square().sum(1).mean().sqrt())

    def turn(self, pose: Tensor) -> Tensor:
        """``moving_from_fixed`` of ``other_from_sampled``, and back."""
        return invert(pose) if self.swapped else pose

    def distance_mm(self, first: Tensor, second: Tensor) -> float:
        """Mean distance between where two poses put the body."""
        return float((apply(first, self.points) - apply(second, self.points)).norm(dim=1).mean())

    def grids(self, factor: int) -> tuple[Any, Any, Any]:
        """SimpleITK images at 1, 2 or 3 times the finest spacing: sampled image, its mask, other image."""
        if factor not in self._grids:
            spacing_mm = self.spacing_mm * factor
            share = avg_pool3d(self.sampled.body[None, None].float(), factor)[0, 0]
            kept = share >= min(0.5, float(share.max()))
            sampled, other = (avg_pool3d(grey[None, None], factor)[0, 0] for grey in (self.sampled.grey, self._padded))
            box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in kept.nonzero().T)
            middle = torch.tensor([(b.start + b.stop - n) / 2 for b, n in zip(box, kept.shape, strict=True)])
            centre = self.sampled.centre + middle * spacing_mm
            self._grids[factor] = (
                _as_image(sampled[box], spacing_mm, centre),
                _as_image(kept[box].to(torch.uint8), spacing_mm, centre),
                _as_image(other, spacing_mm, self.other.centre),
            )
        return self._grids[factor]


def _view(image: MetaTensor, spacing_mm: float) -> View:
    """An image on a grid along the patient axes, and what of it is body."""
    from scipy.ndimage import binary_dilation, label

    volume = image.as_tensor()[0].cpu()
    ct = is_ct(volume)
    if ct:
        volume = volume.clamp(*CT_WINDOW)  # before it is averaged, or the air would eat into the skin
    if volume.min() == volume.max():
        return View(torch.zeros(volume.shape), torch.zeros(volume.shape, dtype=torch.bool), torch.zeros(3).double())
    grid, ras_from_centre = canonical(
        volume, torch.as_tensor(image.affine).cpu(), spacing_mm=spacing_mm, window=CT_WINDOW if ct else None,
        multiple=MULTIPLE,
    )  # fmt: skip
    grey = grid.numpy()
    # the empty border of a resampled image: as dark as can be, and joined to the grid's edge
    dark, _ = label(np.pad(grey <= (0 if ct else UNMEASURED), 1, constant_values=True))
    measured = (dark != dark[0, 0, 0])[1:-1, 1:-1, 1:-1]
    body = binary_dilation(grey > AIR, iterations=BODY_MARGIN) & binary_dilation(measured, iterations=EDGE_MARGIN)
    return View(grid.clamp(min=1).sub(1).float() / 254, torch.from_numpy(body), ras_from_centre[:3, 3])


def _as_image(values: Tensor, spacing_mm: float, centre: Tensor) -> Any:
    """A SimpleITK image of a grid along the axes of the frame."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.numpy().T))
    image.SetSpacing([spacing_mm] * 3)
    image.SetOrigin((centre - (torch.tensor(values.shape) - 1) / 2 * spacing_mm).tolist())
    return image
