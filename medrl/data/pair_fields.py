"""Pairs made of smooth random fields, with known truths: for demonstrations, smoke trainings and tests.

A field is a function of place, so both images of a pair are exact in any pose: nothing is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medrl.data.image_pairs import ImagePairs
from medrl.data.pair_cases import COARSE_MM, FINE_MM, Pair, PairCases, Points
from medrl.geometry.mind import describe
from medrl.geometry.poses import Pose, to_matrices, transform
from medrl.geometry.quaternions import from_vector


class Field:
    """``channels`` sums of random waves [Rahimi and Recht 2007]: places are the more alike, the nearer they are."""

    def __init__(self, channels: int, generator: torch.Generator, *, length_mm: float, waves: int = 4) -> None:
        self.number = torch.randn(3, channels * waves, generator=generator) / length_mm
        self.phase = 2 * math.pi * torch.rand(channels * waves, generator=generator)
        self.waves = waves

    def __call__(self, place_mm: Tensor) -> Tensor:
        """Values (..., C) of standard deviation 1 at places (..., 3)."""
        wave = (place_mm @ self.number + self.phase).cos().unflatten(-1, (-1, self.waves))
        return wave.sum(-1) * math.sqrt(2 / self.waves)


def places(shape: Sequence[int], spacing_mm: float) -> Tensor:
    """Centres (*shape, 3) of the voxels of a grid, from its middle; those of a plane have z = 0."""
    axes = [(torch.arange(n) - (n - 1) / 2) * spacing_mm for n in (*shape, 1)[:3]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(*shape, 3)


def draw_truth(
    generator: torch.Generator, *, degrees: float, shift_mm: float, scale: float, planar: bool = False
) -> Pose:
    """One pose (1,): turned, shifted and changed in size by up to so much."""
    size = 2 * torch.rand(7, generator=generator) - 1
    turn = size[:3] * torch.tensor([0.0, 0.0, 1.0]) if planar else size[:3] / size[:3].norm() * size[6]
    shift = size[3:6] * torch.tensor([1.0, 1.0, 0.0]) if planar else size[3:6]
    log_scale = math.log(scale) * (2 * torch.rand(1, generator=generator) - 1)
    return Pose(from_vector(turn[None] * math.radians(degrees)), log_scale, shift[None] * shift_mm)


def draw_pair(
    generator: torch.Generator, *, name: str = "", counts: tuple[int, int] = (32, 96), side: int = 10,
    degrees: float = 90.0, shift_mm: float = 6.0, scale: float = 1.15, features: int = 16, mind: bool = False,
) -> Pair:  # fmt: skip
    """A case of `PairCases` as if two perfect networks had seen it: both images have the same feature at a place.

    The body is an ellipsoid about as long as ``side`` coarse voxels; the grey values of the moving image are another,
    not monotonous function of those of the fixed one.
    """
    truth = draw_truth(generator, degrees=degrees, shift_mm=shift_mm, scale=scale)
    back = Pose(truth.quaternion * torch.tensor([1.0, -1, -1, -1]), -truth.log_scale, torch.zeros(1, 3))
    feature = Field(features, generator, length_mm=14.0, waves=1)
    grey = Field(1, generator, length_mm=15.0)

    def features_at(place: Tensor) -> Tensor:
        return torch.nn.functional.normalize(feature(place), dim=-1)

    def grey_at(place: Tensor) -> Tensor:
        return torch.sigmoid(1.5 * grey(place)[..., 0])

    half_mm = side * COARSE_MM / 2 * torch.tensor([0.95, 0.7, 0.8])

    def grid_of(spacing_mm: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Places of a grid, indices of some in the body, and where the moving image's ones come from."""
        grid = places([round(side * COARSE_MM / spacing_mm) + n for n in (0, 1, 2)], spacing_mm)
        body = ((grid / half_mm).square().sum(-1) < 1).flatten().nonzero()[:, 0]
        node = body[torch.randint(len(body), (count,), generator=generator)]
        origin = transform(back, (grid - truth.translation_mm).reshape(1, -1, 3)).reshape(grid.shape)
        return grid, node, origin

    grid, node, origin = grid_of(COARSE_MM, counts[0])
    place = grid.reshape(-1, 3)[node]
    coarse, moving_coarse = Points(place, features_at(place)), features_at(origin).movedim(-1, 0)
    grid, node, origin = grid_of(FINE_MM, counts[1])
    fixed_grey = grey_at(grid)
    moving_grey = (1.7 * (grey_at(origin) - 0.35).abs()).clamp(0, 1)
    return Pair(
        name, coarse, grid.reshape(-1, 3)[node], fixed_grey.flatten()[node], moving_coarse, moving_grey,
        to_matrices(truth)[0], coarse.place_mm[:16], truth.translation_mm[0],
        describe(fixed_grey).flatten(1)[:, node].T if mind else None,
    )  # fmt: skip


def draw_pair_cases(count: int, generator: torch.Generator, **options: object) -> PairCases:
    """``count`` pairs; ``options`` go to `draw_pair`."""
    pairs = [draw_pair(generator, name=f"field_{n}", **options) for n in range(count)]  # type: ignore[arg-type]
    return PairCases(pairs, scale=20.0)


def draw_image_pairs(
    count: int, generator: torch.Generator, *, size: Sequence[int] = (32, 32), spacing_mm: float = 2.0,
    degrees: float = 10.0, shift_mm: float = 4.0, scale: float = 1.1,
) -> ImagePairs:  # fmt: skip
    """``count`` pairs of slices, or of volumes, uint8: the same bodies in two contrasts, moved apart."""
    fixed, moving, truths, planar = [], [], [], len(size) == 2
    radius_mm = 0.42 * min(size) * spacing_mm
    grid = places(size, spacing_mm)
    for _ in range(count):
        truth = draw_truth(generator, degrees=degrees, shift_mm=shift_mm, scale=scale, planar=planar)
        back = Pose(truth.quaternion * torch.tensor([1.0, -1, -1, -1]), -truth.log_scale, torch.zeros(1, 3))
        there = transform(back, (grid - truth.translation_mm).reshape(1, -1, 3)).reshape(grid.shape)
        texture = Field(1, generator, length_mm=max(radius_mm / 3, 2 * spacing_mm))
        waist = 0.6 + 0.3 * float(torch.rand((), generator=generator))
        for images, place, inverted in ((fixed, grid, False), (moving, there, True)):
            value = torch.sigmoid(1.5 * texture(place)[..., 0])
            body = (place / radius_mm / torch.tensor([1.0, waist, 0.8])).square().sum(-1)
            value = (1 - value if inverted else value) * torch.sigmoid(8 * (1 - body))
            images.append((255 * value).round().to(torch.uint8)[None])
        truths.append(to_matrices(truth)[0])
    matrices = torch.stack(truths)
    if planar:
        matrices = matrices[:, [0, 1, 3]][:, :, [0, 1, 3]]
    return ImagePairs(
        torch.stack(fixed), torch.stack(moving), spacing_mm=[spacing_mm] * len(size), truth=matrices
    )  # fmt: skip
