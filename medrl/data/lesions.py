"""Synthetic CT and MR volumes with one object and its mask: lesions and organs of many shapes, contrasts and textures.

For tests, smoke trainings, and as a training set of its own: which object is meant can only be told from a click, since
others like it lie around.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from medrl.data.dataset import split_cases
from medrl.data.masks import MaskFiles, write_mask_dataset
from medrl.data.phantoms import Modality, random_affine
from medrl.data.write import write_image

AIR = {"ct": -1000.0, "mr": 0.0}
TISSUE = {"ct": 50.0, "mr": 300.0}
CONTRAST = {"ct": (25.0, 120.0), "mr": (60.0, 250.0)}  # between an object and the tissue round it
NOISE = {"ct": (5.0, 25.0), "mr": (5.0, 30.0)}
NEIGHBOURS = (3, 8)  # other objects
RADIUS = (0.12, 0.30)  # of the object, as a share of the shortest side
LOBES = 4


def lesion(
    generator: np.random.Generator,
    *,
    shape: Sequence[int] = (48, 48, 48),
    spacing_mm: float | Sequence[float] = 2.0,
    modality: Modality = "ct",
    affine: np.ndarray | Literal["random"] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one volume: place, size, shape, contrast, border and texture of the object are random.

    Args:
        generator: the only source of randomness.
        shape: voxels along the storage axes; one of them may be 1.
        spacing_mm: voxel size along the storage axes; ignored where ``affine`` is a matrix.
        modality: ``ct`` (HU) or ``mr`` (arbitrary units, at least 0, with gain and bias field).
        affine: ras_from_voxel (4, 4), ``random`` for `random_affine`, or None for axes along R, A, S.

    Returns:
        the voxels (X, Y, Z) int16, ras_from_voxel (4, 4), and the mask (X, Y, Z) bool, which is never empty.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, np.float64), 3)
    if affine is None:
        ras_from_voxel = np.diag([*spacing, 1.0])
    elif isinstance(affine, str):
        ras_from_voxel = random_affine(generator, spacing)
    else:
        ras_from_voxel = np.asarray(affine, np.float64)
    spacing = np.linalg.norm(ras_from_voxel[:3, :3], axis=0)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - (np.asarray(shape) - 1) / 2
    world = voxels @ ras_from_voxel[:3, :3].T  # mm from the middle
    thick = np.asarray(shape) > 1
    side_mm = float((spacing * shape)[thick].min())
    reach = (thick * spacing * shape) @ np.abs(ras_from_voxel[:3, :3] / spacing).T  # of the volume along R, A, S

    volume = np.full(tuple(shape), AIR[modality])
    body = _blob(generator, world, generator.uniform(-0.1, 0.1, 3) * reach, 0.55 * reach.max(), lobes=0.05)
    _paint(
        volume, body, TISSUE[modality] + _texture(generator, world, side_mm, 0.3 * CONTRAST[modality][0]), side_mm / 40
    )
    for _ in range(int(generator.integers(*NEIGHBOURS, endpoint=True))):
        centre = generator.uniform(-0.45, 0.45, 3) * reach
        near = _blob(generator, world, centre, generator.uniform(0.06, 0.3) * side_mm, lobes=0.1)
        _paint(volume, np.minimum(near, body), _level(generator, modality), side_mm / generator.uniform(30, 100))

    centre = generator.uniform(-0.2, 0.2, 3) * reach
    radius_mm = generator.uniform(*RADIUS) * side_mm
    inside = _blob(generator, world, centre, radius_mm, lobes=generator.uniform(0.0, 0.3))
    level = _level(generator, modality)
    texture = _texture(generator, world, radius_mm, 0.35 * abs(level - TISSUE[modality]))
    _paint(volume, inside, level + texture, generator.uniform(0.3, 1.5) * float(spacing[thick].mean()))
    if generator.random() < 0.3:  # a core of another brightness, as in necrosis
        core = _blob(generator, world, centre, generator.uniform(0.3, 0.6) * radius_mm, lobes=0.2)
        _paint(volume, np.minimum(core, inside), level + 0.5 * (TISSUE[modality] - level), side_mm / 60)
    mask = inside > 0
    if not mask.any():  # an object thinner than a voxel
        mask[np.unravel_index(inside.argmax(), mask.shape)] = True

    volume += generator.normal(0.0, generator.uniform(*NOISE[modality]), volume.shape)
    if modality == "mr":
        bias = 1 + _texture(generator, world, 2 * reach.max(), generator.uniform(0.0, 0.2))
        volume = generator.uniform(0.5, 2.0) * np.abs(volume * bias)
    return np.round(volume).clip(-1024, 32767).astype(np.int16), ras_from_voxel, mask


def write_lesions(
    folder: Path | str,
    count: int,
    generator: np.random.Generator,
    *,
    modality: Modality | Literal["both"] = "both",
    shape: Sequence[int] = (48, 48, 48),
    spacing_mm: float = 2.0,
    validation: float = 0.2,
    test: float = 0.2,
) -> Path:
    """Write ``count`` volumes with masks, of random oblique, anisotropic affines; ``both``: CT and MR by turns.

    ``images/``, ``labels/`` (uint8) and ``dataset.json``, whose path is returned.
    """
    folder = Path(folder)
    cases = [f"lesion_{number:03d}" for number in range(count)]
    split = split_cases(cases, validation=validation, test=test, generator=generator)
    files: dict[str, MaskFiles] = {}
    for number, case in enumerate(cases):
        kind: Modality = ("ct", "mr")[number % 2] if modality == "both" else modality
        spacing = spacing_mm * generator.uniform(0.8, 1.25, 3)
        voxels, matrix, mask = lesion(generator, shape=shape, spacing_mm=spacing, modality=kind, affine="random")
        image_path, label_path = (folder / kind / f"{case}.nii.gz" for kind in ("images", "labels"))
        write_image(image_path, voxels, matrix)
        write_image(label_path, mask.astype(np.uint8), matrix)
        files[case] = MaskFiles(image_path, label_path, case)
    sections = {section: [files[case] for case in members] for section, members in split.items()}
    return write_mask_dataset(folder, f"lesions_{modality}", "lesion", sections)


def _level(generator: np.random.Generator, modality: Modality) -> float:
    """Brightness of an object: brighter or darker than tissue."""
    return TISSUE[modality] + generator.choice([-1.0, 1.0]) * generator.uniform(*CONTRAST[modality])


def _blob(
    generator: np.random.Generator, world: np.ndarray, centre: np.ndarray, radius_mm: float, *, lobes: float
) -> np.ndarray:
    """Depth in mm, about, below the surface of an ellipsoid with bulges and dents of ``lobes`` times its radius."""
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    place = (world - centre) @ turn / (radius_mm * generator.uniform(0.6, 1.3, 3))
    distance = np.linalg.norm(place, axis=-1)
    direction = place / np.maximum(distance, 1e-9)[..., None]
    surface = np.ones(distance.shape)
    for _ in range(LOBES if lobes else 0):
        wave = generator.normal(size=3)
        wave *= generator.uniform(2.0, 6.0) / np.linalg.norm(wave)
        surface += lobes / LOBES**0.5 * np.cos(direction @ wave + generator.uniform(0, 2 * np.pi))
    return (np.maximum(surface, 0.2) - distance) * radius_mm


def _paint(volume: np.ndarray, depth_mm: np.ndarray, level: float | np.ndarray, border_mm: float) -> None:
    """Blend a brightness in where the depth is above 0, over a border of a width."""
    share = 0.5 * (1 + np.tanh(2 * depth_mm / border_mm))
    volume += share * (level - volume)


def _texture(generator: np.random.Generator, world: np.ndarray, scale_mm: float, amplitude: float) -> np.ndarray:
    """A smooth random field in patient space: waves of ``scale_mm`` and shorter."""
    field = np.zeros(world.shape[:-1])
    for octave in range(3):
        for _ in range(3):
            wave = generator.normal(size=3)
            wave *= 2 * np.pi * 2.0**octave / (scale_mm * np.linalg.norm(wave))
            field += 0.6**octave * np.cos(world @ wave + generator.uniform(0, 2 * np.pi))
    return amplitude / 3 * field
