"""Images of a pair as the feature networks see them: smoothed, scaled by modality, on 4 mm grids in any frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.regions import is_ct
from medrl.geometry.grids import sample, spacing_of, thin

SPACING_MM = 4.0
THIN_MM = 2.0  # finer images are averaged to about this
BLUR_MM = 1.6
CT_AIR, TISSUE_HU = -1000.0, -300.0
MR_TISSUE = 0.12  # in units of bright tissue
MARGIN_MM = 10.0
BODY_POINTS = 20_000


@dataclass
class PairImage:
    """One image of a pair."""

    values: Tensor  # (X, Y, Z) float32: HU of a CT, units of bright tissue of an MR image
    ras_from_voxel: Tensor  # (4, 4) float64
    ct: bool
    body_mm: Tensor  # (N, 3) float64, RAS: places of tissue

    @property
    def air(self) -> float:
        """Value of what is not tissue."""
        return CT_AIR if self.ct else 0.0

    def render(self, grid_from_ras: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Values (shape) on a 4 mm grid, air outside of the image.

        ``grid_from_ras`` (4, 4) leads to mm from the middle of the grid, along its axes.
        """
        corner = torch.eye(4, dtype=torch.float64) * SPACING_MM
        corner[3, 3] = 1
        corner[:3, 3] = -(torch.tensor(shape, dtype=torch.float64) - 1) / 2 * SPACING_MM
        voxel_from_index = torch.linalg.inv(self.ras_from_voxel) @ torch.linalg.inv(grid_from_ras) @ corner
        return torch.nan_to_num(sample(self.values, voxel_from_index, shape), nan=self.air)

    def tissue(self, values: Tensor) -> Tensor:
        """Where rendered values are tissue, bool."""
        return values > (TISSUE_HU if self.ct else MR_TISSUE)


def prepare(image: MetaTensor) -> PairImage:
    """Smooth and scale an image (1, X, Y, Z); what holds air in HU is a CT, anything else MR."""
    from scipy.ndimage import gaussian_filter

    volume = image.as_tensor()[0].float().cpu()
    ct = is_ct(volume)
    low = float(volume.min())
    values, matrix = thin(volume, torch.as_tensor(image.affine).double().cpu(), THIN_MM)
    if ct:
        values = values.clamp(CT_AIR, 1500)
    spacing = spacing_of(matrix).numpy()
    sigma = np.sqrt(np.clip(BLUR_MM**2 - (0.4 * spacing) ** 2, 0, None)) / spacing
    values = torch.as_tensor(gaussian_filter(values.numpy(), sigma, mode="nearest", truncate=3.0))
    if not ct:
        bright = values.flatten() - low
        bright = bright[:: max(1, len(bright) // 200_000)]
        top = torch.quantile(bright, 0.99)
        tissue = bright[bright > 0.1 * top]  # none where all values are the same
        values = ((values - low) / (torch.quantile(tissue, 0.98) if len(tissue) else 1.0)).clamp(0, 2)
    index = (values > (TISSUE_HU if ct else MR_TISSUE)).nonzero()
    index = index[:: max(1, len(index) // BODY_POINTS)].double()
    return PairImage(values, matrix, ct, index @ matrix[:3, :3].T + matrix[:3, 3])


def body_grid(image: PairImage, frame_from_ras: Tensor, *, multiple: int = 4) -> tuple[Tensor, tuple[int, int, int]]:
    """The 4 mm grid along the axes of a frame (4, 4) round the body: ``grid_from_ras`` (4, 4) and its shape."""
    places = image.body_mm @ frame_from_ras[:3, :3].T + frame_from_ras[:3, 3]
    lower, upper = places.amin(0) - MARGIN_MM, places.amax(0) + MARGIN_MM
    shape = ((upper - lower) / SPACING_MM / multiple).ceil().long() * multiple
    grid_from_ras = frame_from_ras.clone()
    grid_from_ras[:3, 3] -= (lower + upper) / 2
    return grid_from_ras, tuple(shape.tolist())


def channels(values: Tensor, *, ct: bool) -> Tensor:
    """What a network sees (2, X, Y, Z) of values: soft tissue and all of a CT, plain and compressed MR."""
    if ct:
        return torch.stack([(values / 150).clamp(-1.5, 1.5), ((values - CT_AIR) / 1000).clamp(0, 2.2) - 1])
    return torch.stack([values - 0.5, (values.clamp(min=0) + 0.01).sqrt() - 0.6])


def grey(values: Tensor, *, ct: bool) -> Tensor:
    """Values in [0, 1] for histograms: -200 to 400 HU, or up to a little more than bright tissue."""
    return ((values + 200) / 600 if ct else values / 1.2).clamp(0, 1)
