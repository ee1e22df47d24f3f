"""Concentric crops at several scales, read from volumes of mixed sizes without copying volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medrl.geometry.grids import OUTSIDE, coarsen, smooth


class Pyramid:
    """N uint8 volumes at every level of a scale space, in one flat buffer a level.

    Level ``k`` has ``strides[k]`` times the spacing of the finest.  Its volume is low-pass filtered to that scale but
    kept at twice its resolution (at most the finest grid's), so that crops of all levels share their centre to within
    a quarter of the level's voxel.  Strides are powers of two; the sides of a volume are multiples of half the largest.
    """

    def __init__(self, volumes: list[Tensor], *, spacing_mm: float, strides: tuple[int, ...] = (1, 2, 4)) -> None:
        if any(s < 1 or s & (s - 1) for s in strides):
            raise ValueError(f"strides must be powers of two, not {strides}")
        self.spacing_mm, self.strides = float(spacing_mm), tuple(strides)
        self.shrink = tuple(max(1, s // 2) for s in strides)  # of the stored grid against the finest
        self.sample = tuple(s // d for s, d in zip(strides, self.shrink, strict=True))  # crop stride on the stored grid
        self.shape = torch.tensor([list(v.shape) for v in volumes], dtype=torch.int64)  # (N, 3)
        if (self.shape % max(self.shrink)).any():
            raise ValueError(f"volume sides must be multiples of {max(self.shrink)}")
        self.flat: list[Tensor] = []
        self.base: list[Tensor] = []
        levels = [self._levels(v) for v in volumes]
        for k in range(len(strides)):
            sizes = torch.tensor([volume[k].numel() for volume in levels])
            self.base.append(torch.cumsum(sizes, 0) - sizes)
            self.flat.append(torch.cat([volume[k].reshape(-1) for volume in levels]))
        self.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the volumes live."""
        return self.flat[0].device

    def to(self, device: torch.device | str) -> Pyramid:
        """Move the volumes; returns self."""
        self.flat = [f.to(device) for f in self.flat]
        self.base = [b.to(device) for b in self.base]
        self.shape = self.shape.to(device)
        self._view()
        return self

    def replace(self, index: int, volume: Tensor) -> None:
        """Put another volume of the same shape in the place of one; ValueError if its shape differs."""
        if list(volume.shape) != self.shape[index].tolist():
            raise ValueError(f"volume {index} is {self.shape[index].tolist()}, its successor {list(volume.shape)}")
        for k, level in enumerate(self._levels(volume)):
            start = int(self.base[k][index])
            self.flat[k][start : start + level.numel()] = level.reshape(-1).to(self.device)

    def crop(self, case: Tensor, position_mm: Tensor, size: int) -> Tensor:
        """Read uint8 crops (B, levels, size, size, size) centred at positions (B, 3) in mm from the volumes' centres.

        The centre is rounded to the nearest voxel of the finest grid.  What lies beyond a volume is OUTSIDE.
        """
        centre = self.nearest_voxel(case, position_mm)
        if self.device.type == "cpu":
            return self._crop_slices(case, centre, size)
        return self._crop_gather(case, centre, size)

    def nearest_voxel(self, case: Tensor, position_mm: Tensor) -> Tensor:
        """Finest-grid index (B, 3) nearest to a position in mm from the volume's centre."""
        return torch.round(position_mm / self.spacing_mm + (self.shape[case.long()] - 1) / 2).long()

    def voxel_position(self, case: Tensor, voxel: Tensor) -> Tensor:
        """Position (B, 3) in mm from the volume's centre of finest-grid indices; undoes ``nearest_voxel``."""
        return (voxel - (self.shape[case.long()] - 1) / 2) * self.spacing_mm

    def half_size_mm(self) -> Tensor:
        """Half the sides (N, 3) of the volumes."""
        return self.shape * (self.spacing_mm / 2)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"views": []}  # a copy's views must look at its own buffers

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self._view()

    def _levels(self, volume: Tensor) -> list[Tensor]:
        level = {1: volume}
        for power in range(1, max(self.strides).bit_length()):
            finer = level[2 ** (power - 1)]
            level[2**power] = smooth(coarsen(finer) if power > 1 else finer)
        return [level[s].contiguous() for s in self.strides]

    def _view(self) -> None:
        self.views: list[list[np.ndarray]] = []  # of every level, the volumes as arrays that share its buffer
        if self.device.type != "cpu":
            return
        for flat, base, shrink in zip(self.flat, self.base, self.shrink, strict=True):
            array = flat.numpy()
            shapes = (self.shape // shrink).tolist()
            ends = [*base.tolist()[1:], len(array)]
            parts = zip(base.tolist(), ends, shapes, strict=True)
            self.views.append([array[start:end].reshape(shape) for start, end, shape in parts])

    def _crop_slices(self, case: Tensor, centre: Tensor, size: int) -> Tensor:
        out = np.full((len(case), len(self.strides), size, size, size), OUTSIDE, np.uint8)
        cases = case.tolist()
        shape = self.shape[case.long()]
        for k, (shrink, step) in enumerate(zip(self.shrink, self.sample, strict=True)):
            corner = torch.div(centre, shrink, rounding_mode="floor") - (size // 2) * step
            # first and last crop index whose voxel exists
            first = torch.div(-corner + step - 1, step, rounding_mode="floor").clamp(0, size)
            last = (torch.div(shape // shrink - 1 - corner, step, rounding_mode="floor") + 1).clamp(0, size)
            begin = corner + first * step
            end = corner + (last - 1) * step + 1
            box = torch.cat([first, last, begin, end], 1).tolist()
            views = self.views[k]
            for row, (n, b) in enumerate(zip(cases, box, strict=True)):
                if b[3] > b[0] and b[4] > b[1] and b[5] > b[2]:
                    out[row, k, b[0] : b[3], b[1] : b[4], b[2] : b[5]] = views[n][
                        b[6] : b[9] : step, b[7] : b[10] : step, b[8] : b[11] : step
                    ]
        return torch.from_numpy(out)

    def _crop_gather(self, case: Tensor, centre: Tensor, size: int) -> Tensor:
        case = case.long()
        reach = torch.arange(size, device=self.device) - size // 2
        crops = []
        for k, (shrink, step) in enumerate(zip(self.shrink, self.sample, strict=True)):
            shape = self.shape[case] // shrink
            index = torch.div(centre, shrink, rounding_mode="floor")[:, :, None] + reach * step  # (B, 3, size)
            valid = (index >= 0) & (index < shape[:, :, None])
            x, y, z = index.clamp(min=0).minimum(shape[:, :, None] - 1).unbind(1)
            flat = (x[:, :, None, None] * shape[:, 1, None, None, None] + y[:, None, :, None]) * shape[
                :, 2, None, None, None
            ] + z[:, None, None, :]
            value = self.flat[k][self.base[k][case][:, None, None, None] + flat]
            vx, vy, vz = valid.unbind(1)
            inside = vx[:, :, None, None] & vy[:, None, :, None] & vz[:, None, None, :]
            crops.append(torch.where(inside, value, OUTSIDE))
        return torch.stack(crops, 1)
