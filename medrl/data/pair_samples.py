"""Training samples of registration: aligned pairs rendered in random frames, cropped, and in new contrasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medrl.data.pair_images import SPACING_MM, PairImage, channels
from medrl.geometry.quaternions import from_vector, to_matrix
from medrl.types import InputError

ATTEMPTS = 100  # at a sample
FEWEST = 200  # tissue voxels that both images of a sample must share


class AlignedPair(NamedTuple):
    """Two images of one patient, aligned in world space."""

    name: str
    subject: str
    fixed: PairImage
    moving: PairImage


class Sample(NamedTuple):
    """Two images on grids of their own, and how they lie."""

    fixed: Tensor  # (2, X, Y, Z) what a network sees
    moving: Tensor  # (2, X', Y', Z')
    modalities: tuple[str, str]
    moving_from_fixed: Tensor  # (4, 4) float32, mm from the middles of the grids
    tissue: Tensor  # (X, Y, Z) bool, of the fixed image
    shared_mm: Tensor  # (L, 3) places of tissue in both images, in the fixed grid


@dataclass(frozen=True)
class Variety:
    """How samples are drawn.

    The fixed image is turned by up to ``fixed_degrees``, with the chance ``any_fixed`` at will; the moving one against
    it by up to ``moving_degrees``, with the chance ``any_moving`` at will, and with the chance 0.4 resized by a factor
    of up to ``scale``.  ``own`` is the share of samples made of one image in two contrasts, ``same`` that of pairs of
    one modality.  A side has at most ``voxels`` voxels.
    """

    fixed_degrees: float = 15.0
    any_fixed: float = 0.25
    moving_degrees: float = 110.0
    any_moving: float = 0.2
    scale: float = 1.25
    own: float = 0.08
    same: float = 0.14
    voxels: int = 60
    lattice: int = 80




class PairSampler:
    """Draws samples for ever; every draw comes from one generator."""

    def __init__(self, pairs: Sequence[AlignedPair], *, variety: Variety | None = None, seed: int = 0) -> None:
        self.variety = Variety() if variety is None else variety
        self.mixed = [pair for pair in pairs if pair.fixed.ct != pair.moving.ct]
        self.alike = [pair for pair in pairs if pair.fixed.ct == pair.moving.ct]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Sample:
        """One sample; draws again where the two images hardly share tissue, and InputError if they never do."""
        for _ in range(ATTEMPTS):
            sample = self._draw()
            if sample is not None:
                return sample
        raise InputError(f"pairs: {ATTEMPTS} draws found hardly any shared tissue; expected images that are aligned")

    def _draw(self) -> Sample | None:
        variety, chance = self.variety, self._uniform()
        own = chance < variety.own
        alike = self.alike if (chance < variety.own + variety.same or not self.mixed) else self.mixed
        pair = self._choice([*self.mixed, *self.alike] if own else alike or self.mixed)
        fixed, moving = pair.fixed, pair.moving
        if own:
            fixed = moving = moving if self._uniform() < 0.6 else fixed
        turn = self._turn(180.0 if self._uniform() < variety.any_fixed else variety.fixed_degrees)
        other = self._turn(180.0 if self._uniform() < variety.any_moving else variety.moving_degrees) @ turn
        size = self._scale(variety.scale) if self._uniform() < 0.4 else 1.0
        fixed_from_ras, shape = self._grid(fixed, _frame(turn))
        moving_from_ras, other_shape = self._grid(moving, _frame(size * other))
        values, inside = self._cut(fixed, fixed.render(fixed_from_ras, shape), 0.25)
        other_values, other_inside = self._cut(moving, moving.render(moving_from_ras, other_shape), 0.3)
        tissue = fixed.tissue(values) & inside
        matrix = (moving_from_ras @ torch.linalg.inv(fixed_from_ras)).float()
        shared = _shared(tissue, moving.tissue(other_values) & other_inside, matrix)
        if len(shared) < FEWEST:
            return None
        shared = shared[torch.randint(len(shared), (variety.lattice,), generator=self.generator)]
        first = self._contrast(fixed, values, new=own and (not fixed.ct or self._uniform() < 0.3), strong=own)
        second = self._contrast(moving, other_values, new=own, strong=own)
        return Sample(
            channels(first[0], ct=first[1]), channels(second[0], ct=second[1]),
            ("ct" if first[1] else "mr", "ct" if second[1] else "mr"), matrix, tissue, shared,
        )  # fmt: skip

    def _grid(self, image: PairImage, frame_from_ras: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """A grid round the body, or round a part of one that is too long, with sides a multiple of 12 voxels."""
        places = image.body_mm @ frame_from_ras[:3, :3].T
        lower, upper = places.amin(0), places.amax(0)
        wanted = (upper - lower + 8 + 32 * self._uniform()) / SPACING_MM / 12
        shape = (wanted.ceil().long() * 12).clamp(24, self.variety.voxels)
        slack = (upper - lower - shape * SPACING_MM).clamp(min=0) / 2 + 6
        middle = (lower + upper) / 2 + slack * (2 * self._random(3).double() - 1)
        grid_from_ras = frame_from_ras.clone()
        grid_from_ras[:3, 3] = -middle
        return grid_from_ras, tuple(shape.tolist())

    def _cut(self, image: PairImage, values: Tensor, chance: float) -> tuple[Tensor, Tensor]:
        """Cut the field of view by random planes, or to a ball: no box edges to read."""
        place = _places(tuple(values.shape))
        inside = torch.ones(values.shape, dtype=torch.bool)
        if self._uniform() < chance:
            for _ in range(int(1 + 3 * self._uniform())):
                height = place @ self._direction()
                reach = height[image.tissue(values)]
                if len(reach) > FEWEST:
                    inside &= height < torch.quantile(reach[:: 1 + len(reach) // 5000], 0.75 + 0.25 * self._uniform())
        elif self._uniform() < 0.2:
            radius = min(values.shape) * SPACING_MM / 2 * (0.8 + 0.35 * self._uniform())
            inside = place.norm(dim=-1) < radius
        return torch.where(inside, values, image.air), inside

    def _contrast(self, image: PairImage, values: Tensor, *, new: bool, strong: bool) -> tuple[Tensor, bool]:
        """Noise for a CT; for MR, and a CT made into MR, another grey curve, bias field and noise."""
        if image.ct and not new:
            noise = 20 * self._uniform() * torch.randn(values.shape, generator=self.generator)
            return values + noise + 40 * self._uniform() - 20, True
        if image.ct:
            low, width = (-200, 500) if self._uniform() < 0.6 else (-1000, 1500)
            values = ((values - low) / width).clamp(0, 1.3)
        air = values <= 0.001
        wild = self._uniform() < (0.7 if strong else 0.05)
        knots = self._random(7) if wild else torch.linspace(0, 1, 7) + 0.08 * torch.randn(7, generator=self.generator)
        knots[0] = 0.0 if self._uniform() < 0.8 else knots[0]
        place = values.clamp(0, 1.3) / 1.3 * 6
        lower = place.floor().clamp(0, 5).long()
        values = torch.lerp(knots[lower], knots[lower + 1], place - lower).clamp(min=0) * (0.8 + 0.4 * self._uniform())
        field = 0.15 * self._uniform() * torch.randn(1, 1, 3, 3, 3, generator=self.generator)
        values = values * interpolate(field, size=values.shape, mode="trilinear", align_corners=True)[0, 0].exp()
        values = values + 0.05 * self._uniform() * torch.randn(values.shape, generator=self.generator)
        values = values.clamp(min=0) ** (0.8 + 0.45 * self._uniform())
        return (torch.where(air, 0.0, values) if self._uniform() < 0.7 else values).clamp(0, 2), False

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)

    def _choice(self, pairs: Sequence[AlignedPair]) -> AlignedPair:
        return pairs[int(torch.randint(len(pairs), (), generator=self.generator))]

    def _direction(self) -> Tensor:
        vector = torch.randn(3, generator=self.generator)
        return vector / vector.norm()

    def _turn(self, degrees: float) -> Tensor:
        return to_matrix(from_vector(self._direction().double() * math.radians(degrees) * self._uniform()))

    def _scale(self, most: float) -> float:
        return math.exp((2 * self._uniform() - 1) * math.log(most))


def _frame(linear: Tensor) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = linear
    return matrix


def _places(shape: tuple[int, ...]) -> Tensor:
    """(X, Y, Z, 3) mm from the middle of a grid."""
    axes = [(torch.arange(side) - (side - 1) / 2) * SPACING_MM for side in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _shared(tissue: Tensor, other: Tensor, moving_from_fixed: Tensor) -> Tensor:
    """Places (N, 3) of a grid that are tissue here and, mapped and rounded to a voxel, in the other image."""
    place = _places(tuple(tissue.shape))[tissue]
    there = place @ moving_from_fixed[:3, :3].T + moving_from_fixed[:3, 3]
    side = torch.tensor(other.shape)
    index = (there / SPACING_MM + (side - 1) / 2).round().long()
    within = ((index >= 0) & (index < side)).all(1)
    index = index.clamp(min=0).minimum(side - 1)
    return place[within & other[tuple(index.T)]]
