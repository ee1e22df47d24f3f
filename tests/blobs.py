"""A volume whose landmarks are blobs of known grey, and a hand-made network that sees them: no training needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from medrl.data.anatomy import Anatomy
from medrl.networks.concentric import LandmarkNet
from medrl.tasks.landmark import MOVES

GREYS = (90.0, 140.0, 190.0, 240.0)
SHAPE_MM = torch.tensor([[-20.0, -12.0, 4.0], [18.0, -14.0, -2.0], [2.0, 18.0, 14.0], [0.0, 4.0, -20.0]])
SPACING_MM = 2.0
STEP_MM = (8.0, 4.0, 2.0)


def anatomy() -> Anatomy:
    """Four points, 2 mm grid, crops of 21^3 at 2, 4 and 8 mm."""
    return Anatomy(
        [f"blob_{n}" for n in range(4)], SHAPE_MM - SHAPE_MM.mean(0), torch.ones(4), SPACING_MM, [1, 2, 4], 21,
        margin_mm=40.0, window=[0.0, 254.0],
    )  # fmt: skip


def blob_volume(ras_from_voxel: Tensor, shape: tuple[int, int, int], points: Tensor, radius_mm: float = 9.0) -> Tensor:
    """Balls of known grey at points (4, 3) RAS mm, rendered exactly on any grid."""
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape))
    place = index @ ras_from_voxel[:3, :3].T + ras_from_voxel[:3, 3]
    volume = torch.full((len(place),), 10.0)
    for grey, point in zip(GREYS, points, strict=True):
        volume[(place - point).norm(dim=1) <= radius_mm] = grey
    return volume.reshape(shape)


class BlobNet(LandmarkNet):
    """Points at the centre of mass of each blob's own grey, at the finest level that holds the blob whole."""

    def __init__(self) -> None:
        super().__init__(landmarks=4, scales=3, unit_mm=1.0)
        self.dummy = torch.nn.Parameter(torch.zeros(1))
        reach = torch.arange(21.0) - 10
        self.register_buffer("lattice", torch.cartesian_prod(reach, reach, reach))

    def forward(self, image: Tensor) -> Tensor:
        """Crops (B, 3, 21, 21, 21) -> (B, 4, 26)."""
        grey = image.float()
        outputs = []
        for target in GREYS:
            band = ((grey - target - 1).abs() < 14).float()
            # only the inside of a ball: the rim of a brighter one passes through this grey too
            band = (band * (avg_pool3d(band, 3, 1, 1) > 0.6)).flatten(2)  # (B, levels, P)
            count = band.sum(-1)
            offsets, found = torch.zeros(len(grey), 3), torch.zeros(len(grey), dtype=torch.bool)
            for level, stride in ((0, 1), (1, 2), (2, 4)):
                mean = (band[:, level] @ self.lattice) / count[:, level, None].clamp(min=1) * stride * SPACING_MM
                near = mean.abs().amax(1) < (10 * stride - 3) * SPACING_MM
                use = ~found & (count[:, level] >= 2) & near
                offsets = torch.where(use[:, None], mean, offsets)
                found = found | use
            step = torch.tensor(STEP_MM)[:, None, None] * MOVES
            gains = offsets.norm(dim=-1)[:, None, None] - (offsets[:, None, None] - step).norm(dim=-1)
            q = (gains / torch.tensor(STEP_MM)[:, None]).flatten(1)
            spread = torch.where(found, 0.5, 20.0)[:, None]
            presence = torch.where(found, 6.0, -6.0)[:, None]
            outputs.append(torch.cat([q, offsets, torch.log(torch.expm1(spread - 0.005)), presence], 1))
        return torch.stack(outputs, 1)
