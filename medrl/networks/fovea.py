"""The default network of landmark agents: sharp in the middle, wide around it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medrl.networks.concentric import (
    ACTIONS,
    EXTRA,
    LandmarkNet,
    convolve,
    dueling_values,
    grey_to_float,
    small_linear,
)


class FoveaNet(LandmarkNet):
    """Reads concentric crops from the widest to the finest; each level sees the middle of the level above it.

    Every level votes for where each landmark is: a heat over its own lattice of places.  One softmax over all
    lattices, and over "elsewhere" (a regressed place), gives the offset as an expectation, so that a structure
    found anywhere in a crop is located by geometry and not by memory.  Action values, spread and presence come from
    a hidden layer over all levels.  Crops (B, levels, n, n, n), ``size`` n = 8 m + 1, each level twice as wide as
    the one before.
    """

    def __init__(
        self, *, landmarks: int, strides: tuple[int, ...] = (1, 2, 4), spacing_mm: float = 1.5, size: int = 17,
        scales: int = 3, width: int = 16, hidden: int = 256, dueling: bool = True, quantiles: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(landmarks=landmarks, scales=scales, unit_mm=6 * spacing_mm, quantiles=quantiles)
        if size % 8 != 1 or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError("FoveaNet needs a crop size of 8 m + 1 and strides that double")
        levels, self.dueling = len(strides), dueling
        self.side = size // 2 + 1  # of a level's lattice of places
        pooled = ((self.side + 1) // 2 + 1) // 2
        self.stem = nn.ModuleList([convolve(1, width, 2) for _ in strides])
        self.mix = nn.ModuleList([convolve(2 * width, width) for _ in strides])
        self.heat = nn.ModuleList([nn.Conv3d(width, landmarks, 1) for _ in strides])
        self.pool = nn.ModuleList(
            [nn.Sequential(convolve(width, 2 * width, 2), convolve(2 * width, 2 * width, 2)) for _ in strides]
        )
        self.hidden = nn.Sequential(nn.Linear(levels * 2 * width * pooled**3, hidden), nn.ReLU(inplace=True))
        self.place_head = small_linear(hidden, landmarks * (EXTRA + levels + 1))
        self.value_head = small_linear(hidden, landmarks * scales * (ACTIONS + 1) * quantiles)
        reach = (torch.arange(self.side) * 2 - size // 2).float()
        lattice = torch.cartesian_prod(reach, reach, reach) * spacing_mm
        self.register_buffer("places_mm", torch.cat([lattice * s for s in reversed(strides)]), persistent=False)
        corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
        self.register_buffer("corners", corners, persistent=False)  # (8, 3) of a lattice cell
        self.cell_mm = [2.0 * s * spacing_mm for s in reversed(strides)]

    def forward(self, image: Tensor) -> Tensor:
        """Crops (B, levels, n, n, n) -> (B, landmarks, scales * 7 + 5)."""
        return self.locate(image)[0]

    def locate(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the log probability (B, L, places + 1) of every place, "elsewhere" last."""
        grey = grey_to_float(image)
        levels = grey.shape[1]
        heats: list[Tensor] = []
        pooled: list[Tensor] = []
        quarter = self.side // 4
        feature = torch.zeros(1)
        # coarse to fine, so module lists run from the widest level to the finest
        for n, (stem, mix, heat, pool) in enumerate(zip(self.stem, self.mix, self.heat, self.pool)):  # noqa: B905
            level = levels - 1 - n
            seen = stem(grey[:, level : level + 1])
            if n == 0:
                context = torch.zeros_like(seen)
            else:
                end = self.side - quarter
                context = _double(feature[:, :, quarter:end, quarter:end, quarter:end])
            feature = mix(torch.cat([seen, context.to(seen.dtype)], 1))
            heats.append(heat(feature).flatten(2).float())
            pooled.append(pool(feature).flatten(1))
        hidden = self.hidden(torch.cat(pooled, 1))
        shape = (-1, self.landmarks, self.scales, self.actions + 1, self.quantiles)
        q = dueling_values(self.value_head(hidden).reshape(shape), self.dueling)
        out = self.place_head(hidden).reshape(-1, self.landmarks, 5 + levels + 1).float()
        bias = out[..., 5:]
        votes = torch.cat([h + bias[..., n : n + 1] for n, h in enumerate(heats)] + [bias[..., -1:]], -1)
        place = votes.log_softmax(-1)
        chance = place.exp()
        elsewhere = out[..., :3]
        offset = chance[..., :-1] @ (self.places_mm / self.unit_mm) + chance[..., -1:] * elsewhere
        return torch.cat([q.flatten(2), offset, out[..., 3:5]], -1), place

    @torch.jit.unused
    def place_loss(self, place: Tensor, offset_mm: Tensor) -> Tensor:
        """Cross-entropy (B, L) of the true place, shared between the 8 lattice places round it at the finest level.

        ``place`` is (B, L, places + 1) from ``locate``; ``offset_mm`` (B, L, 3).  Beyond all levels, "elsewhere".
        """
        count = self.side**3
        found = torch.zeros(offset_mm.shape[:2], dtype=torch.bool, device=offset_mm.device)
        total = torch.zeros(offset_mm.shape[:2], device=offset_mm.device)
        half = (self.side - 1) / 2
        for n in range(len(self.cell_mm) - 1, -1, -1):
            at = offset_mm / self.cell_mm[n] + half  # (B, L, 3) in lattice cells
            inside = ((at >= 0) & (at <= self.side - 1)).all(-1) & ~found
            low = at.floor().clamp(0, self.side - 2)
            part = (at - low).clamp(0, 1)
            loss = torch.zeros_like(total)
            for bit in self.corners:
                index = (low + bit).long()
                flat = (index[..., 0] * self.side + index[..., 1]) * self.side + index[..., 2] + n * count
                share = torch.where(bit.bool(), part, 1 - part).prod(-1)
                loss = loss - share * place.gather(-1, flat[..., None])[..., 0]
            total = torch.where(inside, loss, total)
            found = found | inside
        return torch.where(found, total, -place[..., -1])


def _double(feature: Tensor) -> Tensor:
    """Linear interpolation of (B, C, n, n, n) to 2 n - 1 places a side, end points kept."""
    for axis in (2, 3, 4):
        n = feature.shape[axis]
        before, after = feature.narrow(axis, 0, n - 1), feature.narrow(axis, 1, n - 1)
        pairs = torch.stack([before, (before + after) / 2], axis + 1).flatten(axis, axis + 1)
        feature = torch.cat([pairs, feature.narrow(axis, n - 1, 1)], axis)
    return feature
