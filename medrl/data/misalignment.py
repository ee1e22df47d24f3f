"""Known misalignments of aligned pairs: draw one, apply it to the moving image, and measure what an answer leaves.

A pair is aligned in world space.  Its moving image is moved by a drawn ``matrix`` (new place from old place, RAS mm),
so the right answer of a registration is ``moving_from_fixed = matrix``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.body import find_body
from medrl.geometry.grids import bounding_box, spacing_of
from medrl.geometry.transforms import from_parameters, invert, resample, transform_points
from medrl.types import InputError


class Level(NamedTuple):
    """How far a pair is moved apart at most; at least half as far, but for the scale, which may be 1."""

    translation_mm: float
    angle_deg: float
    scale: float = 1.0


LEVELS = {
    "small": Level(10.0, 10.0), "medium": Level(30.0, 30.0), "large": Level(60.0, 90.0),
    "similarity": Level(30.0, 30.0, 1.25),
}  # fmt: skip
LEAST = 0.5  # of the level's translation and angle
BORDER = 0.10  # most that is added to a side of a moved image, as a share of its size
LATTICES, FEWEST = (8, 10, 12, 16, 20), 100  # points along each side of the body's box, until so many lie inside
LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))


class Misalignment(NamedTuple):
    """One drawn misalignment."""

    matrix: Tensor  # (4, 4) float64, RAS mm: new place from old place
    angle_deg: float
    translation_mm: float
    scale: float


def draw_misalignment(level: str, centre_mm: Sequence[float] | Tensor, generator: np.random.Generator) -> Misalignment:
    """Draw a similarity about a point (3,) in RAS mm, of a level of LEVELS.

    Angle and length of the translation are uniform in [0.5, 1] of the level's, axis and direction uniform on the
    sphere, the scale log-uniform in [1 / s, s].

    Raises:
        InputError: an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"level {level!r} is unknown; expected one of {', '.join(LEVELS)}")
    most = LEVELS[level]
    angle_deg = generator.uniform(LEAST, 1.0) * most.angle_deg
    length_mm = generator.uniform(LEAST, 1.0) * most.translation_mm
    scale = math.exp(generator.uniform(-1.0, 1.0) * math.log(most.scale))
    vector, translation = _direction(generator) * math.radians(angle_deg), _direction(generator) * length_mm
    parameters = torch.as_tensor(np.concatenate([vector, [math.log(scale)], translation]))
    return Misalignment(from_parameters(parameters, torch.as_tensor(centre_mm)), angle_deg, length_mm, scale)


def image_centre(image: MetaTensor) -> Tensor:
    """The middle (3,) of an image (1, X, Y, Z) in RAS mm, float64."""
    matrix = torch.as_tensor(image.affine).double()
    return matrix[:3, :3] @ ((torch.tensor(image.shape[1:]) - 1).double() / 2) + matrix[:3, 3]


def regrid(moving: MetaTensor, matrix: Tensor, generator: np.random.Generator, *, ball: bool = False) -> MetaTensor:
    """Move an image and resample it (linear) so that nothing of the movement can be read from its header.

    The new grid lies along the patient axes (stored as L, P, S), has the image's own voxel size, and covers the moved
    image and an uneven border of 0 to 10 % a side; what was not measured has the image's minimum.

    Args:
        moving: (1, X, Y, Z).
        matrix: (4, 4) RAS mm, new place from old place.
        generator: of the borders.
        ball: keep only the largest ball about the image's centre, so that the edges of its box tell nothing.

    Returns:
        (1, X', Y', Z') float32.
    """
    ras_from_voxel, matrix = torch.as_tensor(moving.affine).double(), matrix.double()
    volume = moving.as_tensor()[0]
    lower, upper = bounding_box(ras_from_voxel, tuple(volume.shape), LPS @ matrix)
    borders = torch.as_tensor(generator.uniform(0, BORDER, (2, 3))) * (upper - lower)
    lower, upper = lower - borders[0], upper + borders[1]
    spacing_mm = _patient_spacing(ras_from_voxel)
    shape = tuple(((upper - lower) / spacing_mm).ceil().long().tolist())
    lps_from_grid = torch.diag(torch.cat([spacing_mm, torch.ones(1, dtype=torch.float64)]))
    lps_from_grid[:3, 3] = lower + spacing_mm / 2
    ras_from_grid = LPS @ lps_from_grid
    old_from_new = invert(matrix)
    values = resample(volume, ras_from_voxel, old_from_new, shape, ras_from_grid, outside=float(volume.min()))
    if ball:
        radius_mm = float((spacing_of(ras_from_voxel) * torch.tensor(volume.shape)).min()) / 2
        _cut_ball(values, old_from_new @ ras_from_grid, image_centre(moving), radius_mm, float(volume.min()))
    return MetaTensor(values[None], affine=ras_from_grid)


def body_lattice(fixed: MetaTensor, moving: MetaTensor) -> Tensor:
    """Points (N, 3) in RAS mm, float64, of a regular lattice inside what is body in both images of an aligned pair.

    The lattice has 8 points along each side of the body's box, more where fewer than 100 lie inside.

    Raises:
        InputError: the bodies hardly overlap.
    """
    inside = find_body(fixed)
    index = np.argwhere(inside)
    moving_from_fixed = invert(torch.as_tensor(moving.affine).double()) @ torch.as_tensor(fixed.affine).double()
    other = find_body(moving)
    place = np.rint(transform_points(moving_from_fixed, torch.as_tensor(index).double()).numpy()).astype(int)
    within = ((place >= 0) & (place < other.shape)).all(1)
    within[within] = other[tuple(place[within].T)]
    inside[tuple(index[~within].T)] = False
    index = index[within]
    if len(index) < FEWEST:
        raise InputError("the bodies in both images hardly overlap; expected a pair that is aligned in world space")
    lower, upper = index.min(0), index.max(0)
    for count in LATTICES:
        shares = (np.arange(count) + 0.5) / count
        places = np.rint(lower[:, None] + shares * (upper - lower)[:, None]).astype(int)
        nodes = np.stack(np.meshgrid(*map(np.unique, places), indexing="ij"), -1).reshape(-1, 3)
        nodes = nodes[inside[tuple(nodes.T)]]
        if len(nodes) >= FEWEST:
            break
    return transform_points(torch.as_tensor(fixed.affine).double(), torch.as_tensor(nodes).double())


def registration_error_mm(moving_from_fixed: Tensor, truth: Tensor, points: Tensor) -> Tensor:
    """Mean distance in mm, in the fixed image, of ``inverse(truth) @ moving_from_fixed @ x`` from points x (N, 3).

    ``moving_from_fixed`` is (4, 4) or (B, 4, 4); the result has no axis, or (B,).
    """
    truth, points = truth.double(), points.double()
    back = invert(truth) @ moving_from_fixed.double()
    return (transform_points(back, points) - points).norm(dim=-1).mean(-1)


def _direction(generator: np.random.Generator) -> np.ndarray:
    vector = generator.normal(size=3)
    return vector / np.linalg.norm(vector)


def _patient_spacing(ras_from_voxel: Tensor) -> Tensor:
    """Voxel size (3,) along the patient axes that the storage axes are nearest to."""
    import nibabel

    axes = nibabel.io_orientation(ras_from_voxel.numpy())[:, 0].astype(int)
    spacing_mm = torch.empty(3, dtype=torch.float64)
    spacing_mm[axes.tolist()] = spacing_of(ras_from_voxel)
    return spacing_mm


def _cut_ball(values: Tensor, old_from_grid: Tensor, centre: Tensor, radius_mm: float, outside: float) -> None:
    """Overwrite what lies outside of a ball; the distance is a quadratic form of the index, axis by axis."""
    axes = [torch.arange(n, dtype=torch.float64) for n in values.shape]
    offset = old_from_grid[:3, 3] - centre
    squared = torch.zeros((), dtype=torch.float64)
    for row, start in zip(old_from_grid[:3, :3], offset, strict=True):
        line = [axis * step for axis, step in zip(axes, row, strict=True)]
        squared = squared + (line[0][:, None, None] + line[1][:, None] + line[2] + start).square()
    values[squared > radius_mm**2] = outside
