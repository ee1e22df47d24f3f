"""Working grids of interactive segmentation: a slice or a box of a volume on a lattice of bounded size, and back.

The axes of a lattice are those of the voxels, in the order and direction nearest to right, anterior, superior; so
flipped and permuted copies of a volume give one lattice, and a lattice of a volume's own voxels changes no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.planes import finite_quantiles
from medrl.data.seeds import BACKGROUND, FOREGROUND, Seeds
from medrl.geometry.grids import spacing_of, to_grey
from medrl.geometry.separable import Line, line_weights, resample_lines
from medrl.types import InputError

LARGEST = {2: 128**2, 3: 48**3}  # nodes, by the number of axes
CT_BELOW = -500.0  # HU: an image that holds air is a CT
CT_WINDOW = (-200.0, 300.0)  # HU: soft tissue
MIDDLE_GREY = 128


@dataclass(frozen=True)
class Region:
    """A lattice in patient space: ``shape`` (X, Y, Z), or (H, W) of one slice whose normal is the third axis."""

    shape: tuple[int, ...]
    ras_from_index: Tensor  # (4, 4) float64, mm

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of the nodes along each axis of ``shape``."""
        return tuple(spacing_of(self.ras_from_index)[: len(self.shape)].tolist())

    def index(self, position_ras: Tensor) -> Tensor:
        """Lattice indices (K, 3) float64 of points (K, 3) in RAS mm; of a slice the third is the distance in slices."""
        matrix = torch.linalg.inv(self.ras_from_index)
        return torch.as_tensor(position_ras).double() @ matrix[:3, :3].T + matrix[:3, 3]

    def position_ras(self, index: Tensor) -> Tensor:
        """Points (K, 3) in RAS mm, float64, of lattice indices (K, 2) or (K, 3)."""
        columns = self.ras_from_index[:3, : index.shape[-1]]
        return index.double() @ columns.T + self.ras_from_index[:3, 3]

    def node(self, position_ras: Tensor) -> Tensor:
        """Flat index (K,) int64 of the node nearest to each point (K, 3) in RAS mm, -1 for a point outside."""
        size = torch.tensor((*self.shape, 1)[:3])
        index = self.index(position_ras)
        inside = ((index > -0.5 - 1e-6) & (index < size - 0.5 + 1e-6)).all(-1)
        nearest = torch.minimum(index.round().long().clamp(min=0), size - 1)
        flat = (nearest[:, 0] * size[1] + nearest[:, 1]) * size[2] + nearest[:, 2]
        return torch.where(inside, flat, -1)


def region_of(
    image: MetaTensor,
    *,
    around: Tensor | None = None,
    margin_mm: float = 150.0,
    plane: tuple[int, int] | None = None,
    size: Sequence[int] | None = None,
    isotropic: bool = False,
    spacing_mm: float = 0.0,
    largest: int | None = None,
) -> Region:
    """Lay a lattice over a volume, over a box of it, or over one slice.

    Args:
        image: (1, X, Y, Z) with ``affine`` = ras_from_voxel.  A volume of one slice gives a lattice of that slice.
        around: (K, 3) RAS mm, such as the user's clicks: the region is their box and ``margin_mm`` round it.  An axis
            no longer than twice the margin is kept whole, and so is everything where there are no points.
        plane: (storage axis, voxel index) of the one slice that is wanted.
        size: exactly so many nodes an axis, spread over the box; with ``isotropic`` at one spacing, so that the nodes
            of the shorter axes reach beyond it.
        spacing_mm: without ``size``: no finer than this.
        largest: without ``size``: at most so many nodes (default `LARGEST`).  Axes stay as fine as the voxels, whose
            centres the nodes then are, until that is too many; then the finest are thinned first.

    Raises:
        InputError: no such slice, or ``size`` with the wrong number of axes.
    """
    ras_from_canonical, shape, voxel_from_canonical = _canonical(image)
    lower, upper = torch.zeros(3, dtype=torch.float64), torch.tensor(shape, dtype=torch.float64)  # in voxels, edges
    spacing = spacing_of(ras_from_canonical)
    if around is not None and len(around):
        matrix = torch.linalg.inv(ras_from_canonical)
        points = torch.as_tensor(around).double() @ matrix[:3, :3].T + matrix[:3, 3]
        margin = margin_mm / spacing
        whole = upper <= 2 * margin
        first = (points.amin(0) - margin).round().clamp(min=0).minimum(upper - 1)
        last = (points.amax(0) + margin + 1).round().minimum(upper).maximum(first + 1)
        lower, upper = torch.where(whole, lower, first), torch.where(whole, upper, last)
    axes = [0, 1, 2]
    normal = _slice(shape, plane, voxel_from_canonical)
    if normal is not None:
        axis, index = normal
        axes.remove(axis)
        lower[axis], upper[axis] = index, index + 1
        axes.append(axis)
    dimension = 3 if normal is None else 2
    sides_mm = ((upper - lower) * spacing)[axes[:dimension]]
    if size is None:
        count = _count(sides_mm, spacing[axes[:dimension]], spacing_mm, largest or LARGEST[dimension])
    elif len(size) == dimension and min(size) > 0:
        count = [int(n) for n in size]
    else:
        raise InputError(f"a lattice of size {list(size)}: expected {dimension} sides above 0, one an axis")
    step_mm = sides_mm / torch.tensor(count, dtype=torch.float64)
    if isotropic and size is not None:
        step_mm = step_mm.amax().expand(dimension)
    step = torch.ones(3, dtype=torch.float64)  # voxels from node to node, along the lattice's axes
    step[:dimension] = step_mm / spacing[axes[:dimension]]
    centre = ((lower + upper - 1) / 2)[axes]
    canonical_from_index = torch.eye(4, dtype=torch.float64)
    canonical_from_index[:3, :3] = 0
    for column, axis in enumerate(axes):
        canonical_from_index[axis, column] = step[column]
        canonical_from_index[axis, 3] = centre[column] - step[column] * ((*count, 1)[column] - 1) / 2
    return Region(tuple(count), ras_from_canonical @ canonical_from_index)


def sample_image(image: MetaTensor, region: Region) -> Tensor:
    """Read an image (1, X, Y, Z) on a lattice of its own axes: (shape) float32, NaN outside the field of view.

    Linear; an axis that is thinned is averaged over about a step of the lattice first.
    """
    return _sample(image, region)


def sample_mask(mask: MetaTensor, region: Region) -> Tensor:
    """Read a mask (1, X, Y, Z) on a lattice of its own axes: (shape) bool, where it fills more than half of a node."""
    return _sample(mask, region) > 0.5  # NaN is not


def is_ct(image: Tensor) -> bool:
    """Whether an image is in HU: whether it holds air.  A CT cropped to tissue is taken for MR, and scaled as such."""
    return float(image.min()) < CT_BELOW


def grey_levels(values: Tensor, *, ct: bool, window: tuple[float, float] = CT_WINDOW) -> Tensor:
    """Quantise lattice values to uint8, 1 to 255, and 0 for NaN (outside the field of view).

    CT: the window in HU.  MR: the 1 and 99 % quantiles of the region.  Where all values are the same: middle grey.
    """
    low, high = window if ct else finite_quantiles(values, 0.01, 0.99)
    if not high > low:
        finite = values[values.isfinite()]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if not high > low:
        return torch.where(values.isfinite(), MIDDLE_GREY, 0).to(torch.uint8)
    return to_grey(values, low, high)


def seed_map(seeds: Seeds, region: Region) -> Tensor:
    """Paint seeds on a lattice: (shape) int8, 0 none, 1 foreground, 2 background.

    Seeds outside the region are left out.  Of two seeds on one node the later counts.
    """
    painted = torch.zeros(math.prod(region.shape), dtype=torch.int8)
    for node, foreground in zip(region.node(seeds.position_ras).tolist(), seeds.foreground.tolist(), strict=True):
        if node >= 0:
            painted[node] = FOREGROUND if foreground else BACKGROUND
    return painted.reshape(region.shape)


def restore_probability(potential: Tensor, region: Region, image: MetaTensor) -> Tensor:
    """Bring a potential (shape) to the image's grid: (X, Y, Z) float32 on the CPU, linear, 0 outside the region."""
    box, values = _restore(potential, region, image)
    restored = torch.zeros(image.shape[1:])
    restored[box] = values.cpu()
    return restored


def restore_mask(potential: Tensor, region: Region, image: MetaTensor, *, threshold: float = 0.5) -> Tensor:
    """`restore_probability` above a threshold, (X, Y, Z) bool, without a float copy of a large volume."""
    box, values = _restore(potential, region, image)
    restored = torch.zeros(image.shape[1:], dtype=torch.bool)
    restored[box] = (values > threshold).cpu()
    return restored


def _canonical(image: MetaTensor) -> tuple[Tensor, list[int], Tensor]:
    """ras_from_canonical (4, 4), the shape along R, A, S, and voxel_from_canonical (4, 4): flips and permutes only."""
    ras_from_voxel = image.affine.detach().cpu().double()
    voxel_from_canonical = torch.zeros(4, 4, dtype=torch.float64)
    voxel_from_canonical[3, 3] = 1
    shape = [0, 0, 0]
    for axis, (column, direction) in enumerate(nibabel.io_orientation(ras_from_voxel.numpy()).astype(int)):
        size = int(image.shape[1 + axis])
        voxel_from_canonical[axis, column] = direction
        voxel_from_canonical[axis, 3] = 0 if direction > 0 else size - 1
        shape[column] = size
    return ras_from_voxel @ voxel_from_canonical, shape, voxel_from_canonical


def _slice(shape: list[int], plane: tuple[int, int] | None, voxel_from_canonical: Tensor) -> tuple[int, int] | None:
    """Canonical axis and index of the slice that is wanted, or of the only one; None for a volume."""
    if plane is None:
        return (shape.index(1), 0) if 1 in shape else None
    axis = int(voxel_from_canonical[plane[0], :3].abs().argmax())
    if not 0 <= plane[1] < shape[axis]:
        raise InputError(
            f"slice {plane[1]} of axis {plane[0]}: expected 0 to {shape[axis] - 1}, the slices of the image"
        )
    backwards = voxel_from_canonical[plane[0], axis] < 0
    return axis, shape[axis] - 1 - plane[1] if backwards else plane[1]


def _count(sides: Tensor, spacing_mm: Tensor, finest_mm: float, largest: int) -> list[int]:
    """Nodes along each side (in mm): as fine as the voxels, or coarser for ``finest_mm`` or too many nodes."""
    step_mm = max(finest_mm, float(spacing_mm.min()))
    while True:
        count = [max(1, int(n + 1e-6)) for n in (sides / spacing_mm.clamp(min=step_mm)).tolist()]
        if math.prod(count) <= largest or max(count) == 1:
            return count
        step_mm *= 1.01


def _lines(image: Tensor, ras_from_voxel: Tensor, region: Region) -> tuple[list[Line], list[int]]:
    """The lattice along each storage axis, and the axis of the lattice that each of them is."""
    voxel_from_index = torch.linalg.inv(ras_from_voxel.detach().cpu().double()) @ region.ras_from_index
    columns = [int(column) for column in voxel_from_index[:3, :3].abs().argmax(1)]
    step = voxel_from_index[[0, 1, 2], columns]
    rest = voxel_from_index[:3, :3].clone()
    rest[[0, 1, 2], columns] = 0
    if sorted(columns) != [0, 1, 2] or float((rest.abs().amax(1) / step.abs()).max()) > 1e-3:
        raise ValueError("the axes of the region are not those of the image; lay the region over this image")
    count = (*region.shape, 1)[:3]
    origin = [_snap(float(value)) for value in voxel_from_index[:3, 3]]
    lines = [Line(count[c], origin[a], _snap(float(step[a]))) for a, c in enumerate(columns)]
    return lines, columns


def _snap(value: float) -> float:
    """A voxel index without the rounding of the matrices, so that a lattice of the voxels reads them unchanged."""
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


def _sample(image: MetaTensor, region: Region) -> Tensor:
    lines, columns = _lines(image, image.affine, region)
    values, inside = resample_lines(image.as_tensor()[0], lines)
    values = torch.where(inside, values, torch.nan)
    return values.permute([columns.index(axis) for axis in range(3)]).reshape(region.shape)


def _restore(potential: Tensor, region: Region, image: MetaTensor) -> tuple[tuple[slice, ...], Tensor]:
    """The box of voxels that a region covers and the values there."""
    lines, columns = _lines(image, image.affine, region)
    back = [line.inverse(n) for line, n in zip(lines, image.shape[1:], strict=True)]
    box, cut = [], []
    for line, reverse in zip(lines, back, strict=True):
        _, inside = line_weights(reverse, line.count)
        covered = inside.nonzero()[:, 0]
        first, last = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)
        box.append(slice(first, last))
        cut.append(Line(last - first, reverse.origin + reverse.step * first, reverse.step))
    volume = potential.reshape((*region.shape, 1)[:3]).permute(columns)
    return tuple(box), resample_lines(volume, cut)[0]
