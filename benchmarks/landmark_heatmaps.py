"""The supervised row of the landmark benchmark: a heat-map U-Net of MONAI, in plain torch."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from landmark_baselines import name_points
from monai.networks.nets import UNet
from monai.transforms import GenerateHeatmap
from torch import Tensor, nn
from torch.nn.functional import pad

from medrl.data.anatomy import Anatomy
from medrl.data.cases import Cases, Source
from medrl.data.pool import Pool
from medrl.geometry.similarity import fit_robust
from medrl.inference.pose import search_pose
from medrl.networks.concentric import grey_to_float
from medrl.types import Landmark


class HeatmapNet:
    """A 3D U-Net with one heat map a landmark, read out by soft-argmax; trained on the same pool as an agent.

    The loss is the cross-entropy between the softmax over all voxels and MONAI's Gaussian of ``sigma`` voxels round
    the landmark, plus the distance in voxels of the soft-argmax from it.  At inference the expectation is taken
    within ``3 sigma`` of the peak, and, like the agent, a second pass reads the volume in the anatomical frame that
    the first pass found.  The uncertainty is the heat's standard deviation.  It never says that a landmark is missing.
    """

    def __init__(self, anatomy: Anatomy, *, sigma: float = 1.5, device: str = "cpu") -> None:
        self.anatomy, self.sigma, self.device = anatomy, sigma, torch.device(device)
        self.network = UNet(
            spatial_dims=3, in_channels=1, out_channels=len(anatomy.labels), channels=(32, 64, 128, 256),
            strides=(2, 2, 2), num_res_units=0, norm="batch",
        ).to(self.device)  # fmt: skip
        reach = round(3 * sigma)
        side = 2 * reach + 1
        heat = GenerateHeatmap(sigma=sigma, spatial_shape=(side,) * 3, truncated=3.0)(torch.full((1, 3), float(reach)))
        self.heat = (heat / heat.sum()).flatten().to(self.device)
        line = torch.arange(-reach, reach + 1)
        self.around = torch.cartesian_prod(line, line, line).to(self.device)  # (W, 3) voxels

    def train(
        self, pool: Pool, *, minutes: float, most: int = 10**9, batch: int = 2, rate: float = 1e-3, seed: int = 0
    ) -> int:
        """Train for some minutes or ``most`` updates, one case renewed every second one; returns the updates."""
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(self.network.parameters(), rate, weight_decay=1e-4)
        self.network.train()
        cases, start, updates = pool.cases, time.perf_counter(), 0
        while (share := (time.perf_counter() - start) / (60 * minutes)) < 1 and updates < most:
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (updates + 1) / 50, 0.02 + 1.96 * (1 - share))
            index = torch.randperm(len(cases), generator=generator)[:batch]
            volumes = torch.stack([_volume(cases, int(n)) for n in index])
            size = torch.tensor(volumes.shape[1:], device=self.device)
            voxel = cases.points_mm[index] / cases.pyramid.spacing_mm + (size - 1) / 2
            loss = self.loss(self.logits(volumes), voxel, cases.present[index])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            optimiser.step()
            updates += 1
            if updates % 2 == 0:
                pool.refresh(1)
        self.network.eval()
        return updates

    def logits(self, volumes: Tensor) -> Tensor:
        """Heat (B, L, X, Y, Z) before the softmax of uint8 volumes (B, X, Y, Z)."""
        x, y, z = volumes.shape[1:]
        rest = [n for size in (z, y, x) for n in (0, -size % 8)]  # the U-Net halves three times
        return self.network(grey_to_float(pad(volumes, rest)[:, None]))[:, :, :x, :y, :z]

    def loss(self, logits: Tensor, voxel: Tensor, present: Tensor) -> Tensor:
        """Mean over the present landmarks of maps (B, L, X, Y, Z) against places (B, L, 3) in voxels."""
        size = torch.tensor(logits.shape[2:], device=logits.device)
        at = voxel.round().long()[:, :, None] + self.around  # (B, L, W, 3)
        inside = ((at >= 0) & (at < size)).all(-1)
        at = torch.minimum(at.clamp(min=0), size - 1)
        flat = (at[..., 0] * size[1] + at[..., 1]) * size[2] + at[..., 2]
        chance = logits.float().flatten(2).log_softmax(-1)
        entropy = -(chance.gather(-1, flat) * inside * self.heat).sum(-1)
        distance = (_expectation(chance.exp(), logits.shape[2:]) - voxel).norm(dim=-1)
        return ((entropy + distance) * present).sum() / present.sum().clamp(min=1)

    @torch.no_grad()
    def __call__(self, source: Source, *, passes: int = 2) -> list[Landmark]:
        """Landmarks of a case."""
        anatomy, frame, box = self.anatomy, None, None
        window = None if anatomy.window is None else (anatomy.window[0], anatomy.window[1])
        if anatomy.template is not None:
            frame, _ = search_pose(source.volume, source.ras_from_voxel, anatomy, torch.Generator().manual_seed(0))
            box = anatomy.box_mm()
        for _ in range(passes):
            cases = Cases.from_sources(
                [source], labels=anatomy.labels, spacing_mm=anatomy.spacing_mm, strides=(1,), box_mm=box,
                frames=None if frame is None else [frame], window=window,
            )  # fmt: skip
            volume = _volume(cases, 0)
            voxel, spread = self.read_out(self.logits(volume[None].to(self.device))[0].cpu())
            place = (voxel - (torch.tensor(volume.shape) - 1) / 2) * anatomy.spacing_mm
            points = cases.to_ras(0, place)
            frame, box = fit_robust(anatomy.shape_mm, points, spread.clamp(min=0.1) ** -2), anatomy.box_mm()
        return name_points(anatomy.labels, points, spread * anatomy.spacing_mm)

    def read_out(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Places (L, 3) and standard deviations (L,) in voxels of maps (L, X, Y, Z)."""
        shape = logits.shape[1:]
        chance = logits.float().flatten(1).softmax(-1)
        axes = torch.cartesian_prod(*(torch.arange(n) for n in shape)).float()
        near = (axes - axes[chance.argmax(1)][:, None]).norm(dim=-1) <= 3 * self.sigma
        kept = chance * near
        kept = kept / kept.sum(1, keepdim=True)
        place = kept @ axes
        spread = (chance * (axes - place[:, None]).square().sum(-1)).sum(1).sqrt()
        return place, spread


def _expectation(chance: Tensor, shape: Sequence[int]) -> Tensor:
    """Mean index (B, L, 3) of probabilities (B, L, X * Y * Z), from the sums along each axis."""
    maps = chance.unflatten(-1, tuple(shape))
    sums = (maps.sum((3, 4)), maps.sum((2, 4)), maps.sum((2, 3)))
    return torch.stack([s @ torch.arange(s.shape[-1], device=s.device, dtype=s.dtype) for s in sums], -1)


def _volume(cases: Cases, index: int) -> Tensor:
    shape = cases.pyramid.shape[index].tolist()
    start = int(cases.pyramid.base[0][index])
    return cases.pyramid.flat[0][start : start + int(np.prod(shape))].reshape(shape)
