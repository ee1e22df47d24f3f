"""Training samples of click networks: objects of masked volumes on lattices, turned, zoomed, deformed and re-toned."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, interpolate

from medrl.data.implants import implant
from medrl.data.masks import MaskCase
from medrl.data.planes import finite_quantiles
from medrl.data.regions import CT_WINDOW, grey_levels, is_ct, region_of, sample_image

LARGEST_SHARE = 0.95  # of the lattice's side that the object fills
ZOOM_OUT = 1.5  # times the whole image, at most
TISSUE_HU, TISSUE_MR = -300.0, 0.03  # what is not air: in HU, and as a part of the bright end of an MR image


class Level(NamedTuple):
    """A volume at one resolution."""

    values: Tensor  # (2, X, Y, Z) float32: the grey value, and the share of the object in the voxel
    voxel: Tensor  # (3,) voxels of the original in one of these


class Volume(NamedTuple):
    """An image and its object, along right, anterior, superior, at several resolutions."""

    name: str
    group: str  # the data set: groups are drawn evenly
    ct: bool
    bright: float  # the tissue's threshold: what is not air is above
    spacing: Tensor  # (3,) mm
    box: Tensor  # (2, 3) voxels: first and last of the object
    shape: tuple[int, ...]  # of the region that inference would lay over the whole volume
    levels: tuple[Level, ...]


class Sample(NamedTuple):
    """An image on a lattice, before the user clicks."""

    image: Tensor  # (*S) uint8
    mask: Tensor  # (*S) bool
    tissue: Tensor  # (*S) bool
    voxels_per_node: Tensor  # (dimension,)


def make_volume(case: MaskCase, group: str, *, levels: int = 3) -> Volume:
    """Bring a case to axes along right, anterior, superior, and thin it in steps of two for coarse lattices."""
    region = region_of(case.image, largest=case.image.numel())
    if len(region.shape) == 2:
        raise ValueError(f"{case.name} has one slice; training samples are cut from volumes")
    spacing = torch.tensor(region.spacing_mm)
    values = torch.stack([sample_image(image, region) for image in (case.image, case.mask.float())])
    places = (values[1] > 0.5).nonzero()
    ct = is_ct(values[0])
    bright = tissue_threshold(values[0], ct=ct)
    made = [Level(values, torch.ones(3))]
    while len(made) < levels:
        last = made[-1]
        step = last.voxel * spacing
        fine = step <= 0.75 * step.amax()
        factor = torch.where(fine if bool(fine.any()) else torch.tensor(True), 2, 1)
        if bool((torch.tensor(last.values.shape[1:]) < 2 * factor).any()):
            break
        made.append(Level(avg_pool3d(last.values[None], factor.tolist())[0], last.voxel * factor))
    box = torch.stack([places.amin(0), places.amax(0)]).float()
    return Volume(case.name, group, ct, bright, spacing, box, region_of(case.image).shape, tuple(made))


def make_volumes(cases: Iterable[MaskCase], group: str) -> list[Volume]:
    """All cases of a data set in memory."""
    return [make_volume(case, group) for case in cases]


def tissue_threshold(values: Tensor, *, ct: bool) -> float:
    """What is brighter than this is no air."""
    return TISSUE_HU if ct else TISSUE_MR * float(finite_quantiles(values, 0.0, 0.995)[1])


def draw_sample(
    volume: Volume, shape: Sequence[int], generator: np.random.Generator, *, upright: float = 0.5, plain: float = 0.5,
    lesion: float = 0.0, tries: int = 10,
) -> Sample:  # fmt: skip
    """Cut a sample with at least 20 nodes of object out of a volume: a random box, turned and deformed, and its tones.

    In 2D (two sides in ``shape``) it is a slice through the object, in most cases an axial one.

    Args:
        shape: nodes of the lattice.
        plain: probability of the whole image with little change, as inference sees it.
        lesion: probability that the object is a synthetic lesion somewhere in the image instead.
        upright: else, the probability that the patient stays upright: mirrored left to right and tilted a little only.
    """
    flat = len(shape) == 2
    for _ in range(tries):
        whole = bool(generator.random() < plain)
        turn = _turn(generator, straight=whole or generator.random() < upright, flat=flat)
        index, voxels_per_node = _lattice(volume, (*shape, 1)[:3], turn, generator, flat=flat, whole=whole)
        values, share = _read(volume, index, voxels_per_node[: len(shape)])  # a slice has no third step
        mask = (share > 0.5).reshape(tuple(shape))
        if 20 <= int(mask.sum()) < 0.9 * mask.numel():
            break
    else:
        raise ValueError(f"{volume.name}: no part of the object could be laid on a lattice of {list(shape)}")
    values = values.reshape(tuple(shape))
    tissue = values > volume.bright
    if generator.random() < lesion:
        other, place = implant(values, tissue, generator, ct=volume.ct)
        if int(place.sum()) >= 20:
            values, mask = other, place
    if whole and generator.random() < 0.5:
        grey = grey_levels(values, ct=volume.ct)
    else:
        grey = _tone(values, volume.ct, generator)
    return Sample(grey, mask, tissue, voxels_per_node[: len(shape)])


def _turn(generator: np.random.Generator, *, straight: bool, flat: bool) -> Tensor:
    """A rotation (3, 3) from lattice axes to patient axes, with mirroring and, unless straight, any order of axes."""
    orders = list(itertools.permutations(range(3)))
    if flat:
        order = orders[0] if straight or generator.random() < 0.7 else orders[int(generator.integers(6))]
    else:
        order = orders[0] if straight else orders[int(generator.integers(6))]
    turn = torch.eye(3, dtype=torch.float64)[list(order)]
    signs = np.array([generator.random() < 0.5, *(generator.random(2) < (0.05 if straight else 0.5))])
    turn = torch.diag(torch.as_tensor(np.where(signs, -1.0, 1.0))) @ turn
    angles = generator.normal(0.0, 8.0 if straight else 15.0, 3)
    if flat:
        angles[:2] = 0
    for axis, angle in enumerate(np.radians(angles)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        rotation = torch.eye(3, dtype=torch.float64)
        rotation[a, a] = rotation[b, b] = float(np.cos(angle))
        rotation[a, b], rotation[b, a] = -float(np.sin(angle)), float(np.sin(angle))
        turn = turn @ rotation
    return turn


def _lattice(
    volume: Volume, shape: tuple[int, ...], turn: Tensor, generator: np.random.Generator, *, flat: bool,
    whole: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Voxel index (*S, 3) of every node, and the size of a node in voxels along the lattice's axes."""
    spacing = volume.spacing.double()
    first, last = volume.box.double()
    middle = (first + last) / 2
    if flat:  # the slice: where the normal meets the object
        normal = int(turn[:, 2].abs().argmax())
        middle[normal] = first[normal] + (last - first)[normal] * generator.beta(2.0, 2.0)
    size = torch.tensor(shape, dtype=torch.float64)
    object_mm = turn.abs().T @ ((last - first + 1) * spacing)
    step_mm = _steps_mm(volume, size, object_mm, turn, generator, flat=flat, whole=whole)
    room = (size * step_mm - object_mm).clamp(min=0) / 2
    offset = torch.as_tensor(generator.uniform(-1.0, 1.0, 3)) * room
    if flat:
        offset[2] = 0.0
    if whole or generator.random() < 0.7:  # as a viewer does: show as little as can be of what lies outside the image
        offset = _within(volume, turn, middle, offset, size * step_mm / 2, flat=flat)
    axes = [
        (torch.arange(n) - (n - 1) / 2) * t + o
        for n, t, o in zip(shape, step_mm.tolist(), offset.tolist(), strict=True)
    ]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    amplitude = generator.uniform(0.0, 0.05) * float(object_mm[: 2 if flat else 3].max())
    bends = torch.as_tensor(generator.normal(0.0, amplitude, (1, 3, *[1 if n == 1 else 4 for n in shape])))
    if flat:
        bends[:, 2] = 0
    place = place + interpolate(bends.float(), tuple(shape), mode="trilinear", align_corners=True)[0].movedim(0, -1)
    index = place @ turn.float().T / spacing.float() + middle.float()
    return index, step_mm / spacing[turn.abs().argmax(0)]


def _steps_mm(
    volume: Volume, size: Tensor, object_mm: Tensor, turn: Tensor, generator: np.random.Generator, *, flat: bool,
    whole: bool,
) -> Tensor:  # fmt: skip
    """Distance of the nodes (3,): between that which shows the whole image and that in which the object just fits."""
    sides = 2 if flat else 3
    order = turn.abs().argmax(0)
    whole_mm = (torch.tensor(volume.levels[0].values.shape[1:]) * volume.spacing.double())[order]
    if flat:
        extent = whole_mm / size
        if generator.random() < 0.5:  # else the slice is stretched to the lattice
            extent[:2] = extent[:2].log().mean().exp()
    else:  # the nodes are as near to each other as those of the region, in relation
        extent = whole_mm / torch.tensor(volume.shape, dtype=torch.float64)[order]
        extent = extent * (whole_mm / extent / size).log().mean().exp()
    tight = float((object_mm / size / extent)[:sides].amax()) / LARGEST_SHARE
    if whole:
        zoom = np.exp(generator.uniform(-0.1, 0.1) + generator.uniform(-0.05, 0.05, 3))
        return extent * max(1.0, tight) * torch.as_tensor(zoom)
    wide = max(tight, ZOOM_OUT if generator.random() < 0.25 else 1.0)
    zoom = np.exp(generator.uniform(np.log(tight), np.log(wide)) + generator.uniform(-0.15, 0.15, 3))
    return extent * torch.as_tensor(zoom)


def _within(
    volume: Volume, turn: Tensor, middle: Tensor, offset: Tensor, half: Tensor, *, flat: bool
) -> Tensor:  # fmt: skip
    """An offset of the lattice that keeps its box inside the image, along axes where that is possible."""
    size = torch.tensor(volume.levels[0].values.shape[1:], dtype=torch.float64)
    corners = torch.stack([(torch.full((3,), -0.5) - middle), size - 0.5 - middle]) * volume.spacing
    axis = turn.abs().argmax(0)
    low, high = (corners[:, axis] * turn[axis, range(3)].sign()).sort(0).values
    low, high = low + half, high - half
    moved = torch.where(low < high, offset.maximum(low).minimum(high), (low + high) / 2)
    if flat:
        moved[2] = offset[2]
    return moved


def _read(volume: Volume, index: Tensor, voxels_per_node: Tensor) -> tuple[Tensor, Tensor]:
    """Grey values (*S), NaN outside the image, and shares of the object at voxel indices (*S, 3)."""
    fits = [level for level in volume.levels if bool((level.voxel <= 1.2 * voxels_per_node.amax()).all())]
    level = fits[-1] if fits else volume.levels[0]
    whole = torch.tensor(volume.levels[0].values.shape[1:])
    size = torch.tensor(level.values.shape[1:])
    x, y, z = ((part + 0.5) * (n - 0.5 - part) >= 0 for part, n in zip(index.unbind(-1), whole.tolist(), strict=True))
    inside = x & y & z
    position = (index - (level.voxel - 1) / 2) / level.voxel
    grid = ((2 * position + 1) / size - 1).flip(-1)
    values = grid_sample(level.values[None], grid[None], padding_mode="border", align_corners=False)[0]
    return torch.where(inside, values[0], torch.nan), torch.where(inside, values[1], 0.0)


def _tone(values: Tensor, ct: bool, generator: np.random.Generator) -> Tensor:
    """Grey values uint8 (*S) with another window, contrast, shading, sharpness and noise; 0 outside the image."""
    low, high = CT_WINDOW
    window = (low + generator.normal(0.0, 30.0), high + generator.normal(0.0, 50.0))
    grey = grey_levels(values, ct=ct, window=window).float()
    outside = grey == 0
    grey = (grey - 1) / 254
    shape = grey.shape
    if generator.random() < 0.3 and not ct:
        field = torch.as_tensor(generator.normal(0.0, 0.15, (1, 1, *[3] * len(shape)))).float()
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        grey = grey * interpolate(field, tuple(shape), mode=mode, align_corners=True)[0, 0].exp()
    if generator.random() < 0.15:
        grey = _blur(grey)
    if generator.random() < 0.5:
        grey = grey.clamp(0, 1) ** float(np.exp(generator.uniform(-0.5, 0.5)))
    if generator.random() < 0.1:
        grey = 1 - grey
    if generator.random() < 0.5:
        middle = float(grey.mean())
        grey = (grey - middle) * float(np.exp(generator.uniform(-0.3, 0.2))) + middle + generator.uniform(-0.1, 0.1)
    if generator.random() < 0.4:
        noise = torch.as_tensor(generator.standard_normal(tuple(shape), dtype=np.float32))
        grey = grey + noise * generator.uniform(0.0, 0.08)
    return torch.where(outside, 0.0, grey.clamp(0, 1) * 254 + 1).to(torch.uint8)


def _blur(grey: Tensor) -> Tensor:
    """The mean of a node and its neighbours."""
    pool = torch.nn.functional.avg_pool2d if grey.ndim == 2 else avg_pool3d
    return pool(grey[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
