"""Synthetic CT and MR patients whose landmarks are known exactly, for tests, smoke trainings and documentation.

A body with six organs is rendered from its formula in world millimetres, so that the organ centres are exact for every
affine.  Left and right differ, so that an agent on a mirrored grid fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from medrl.data.dataset import split_cases, write_dataset
from medrl.data.write import write_image, write_truth_csv

Modality = Literal["ct", "mr"]


class Organ(NamedTuple):
    """An ellipsoid in units of the body's half axes (right, anterior, superior), and how bright it is."""

    centre: tuple[float, float, float]
    radius: tuple[float, float, float]
    ct: float  # HU
    mr: float  # arbitrary units


ORGANS = {
    "liver": Organ((0.40, 0.10, 0.05), (0.36, 0.40, 0.19), 120.0, 420.0),
    "spleen": Organ((-0.55, -0.25, 0.12), (0.17, 0.25, 0.14), 160.0, 300.0),
    "heart": Organ((-0.15, 0.30, 0.50), (0.25, 0.30, 0.16), 250.0, 120.0),
    "kidney_R": Organ((0.38, -0.47, -0.30), (0.14, 0.18, 0.14), 210.0, 520.0),
    "kidney_L": Organ((-0.36, -0.45, -0.20), (0.15, 0.18, 0.16), 210.0, 520.0),
    "bladder": Organ((0.04, 0.25, -0.66), (0.24, 0.27, 0.13), -60.0, 700.0),
}
LABELS = tuple(ORGANS)
BODY = Organ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 40.0, 220.0)
BODY_SHARE = np.array([0.40, 0.32, 0.44])  # half axes of the body as a share of the shortest side of the volume
CT_AIR, CT_NOISE, MR_NOISE = -1000.0, 15.0, 15.0


def phantom(
    generator: np.random.Generator,
    *,
    shape: Sequence[int] = (48, 48, 48),
    spacing_mm: float | Sequence[float] | np.ndarray = 4.0,
    modality: Modality = "ct",
    affine: np.ndarray | Literal["random"] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw one patient: pose, size, organ shapes, noise and (MR) gain and bias field are random.

    Args:
        generator: the only source of randomness.
        shape: voxels along the storage axes.
        spacing_mm: voxel size along the storage axes; ignored where ``affine`` is a matrix.
        modality: ``ct`` (HU) or ``mr`` (arbitrary units, at least 0).
        affine: ras_from_voxel (4, 4), ``random`` for `random_affine`, or None for axes along R, A, S.

    Returns:
        the voxels (X, Y, Z) int16, ras_from_voxel (4, 4), and label -> organ centre (3,) in RAS mm.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    if affine is None:
        ras_from_voxel = np.diag([*spacing, 1.0])
    elif isinstance(affine, str):
        ras_from_voxel = random_affine(generator, spacing)
    else:
        ras_from_voxel = np.asarray(affine, dtype=np.float64)
    patient = draw_patient(generator, shape=shape, ras_from_voxel=ras_from_voxel)
    voxels = render(patient, generator, shape=shape, ras_from_voxel=ras_from_voxel, modality=modality)
    return voxels, ras_from_voxel, {name: patient.position_mm(name) for name in ORGANS}


class Patient(NamedTuple):
    """A drawn body: pose and size, and centre and radii of its parts in units of the half axes."""

    middle_mm: np.ndarray  # (3,) RAS
    rotation: np.ndarray  # (3, 3) world from body
    half_axes_mm: np.ndarray  # (3,)
    parts: dict[str, tuple[np.ndarray, np.ndarray]]  # "body", then ORGANS

    def position_mm(self, name: str) -> np.ndarray:
        """Centre (3,) of a part in RAS mm."""
        return self.middle_mm + self.rotation @ (self.parts[name][0] * self.half_axes_mm)


def draw_patient(generator: np.random.Generator, *, shape: Sequence[int], ras_from_voxel: np.ndarray) -> Patient:
    """Draw pose, size and organ shapes of a patient who fits into a grid."""
    spacing = np.linalg.norm(ras_from_voxel[:3, :3], axis=0)
    half_axes_mm = BODY_SHARE * (spacing * shape).min() * generator.uniform(0.9, 1.05, 3)
    rotation = _rotation(np.radians(generator.uniform(-8.0, 8.0, 3)))
    middle = ras_from_voxel[:3, :3] @ ((np.asarray(shape) - 1) / 2) + ras_from_voxel[:3, 3]
    middle = middle + generator.uniform(-0.05, 0.05, 3) * half_axes_mm
    parts = {}
    for name, organ in {"body": BODY, **ORGANS}.items():
        spread = 0.0 if organ is BODY else 0.03
        centre = np.asarray(organ.centre) + generator.uniform(-spread, spread, 3)
        parts[name] = centre, np.asarray(organ.radius) * generator.uniform(0.9, 1.1)
    return Patient(middle, rotation, half_axes_mm, parts)


def render(
    patient: Patient,
    generator: np.random.Generator,
    *,
    shape: Sequence[int],
    ras_from_voxel: np.ndarray,
    modality: Modality,
) -> np.ndarray:
    """Render a patient on any grid: voxels (X, Y, Z) int16; noise and (MR) gain and bias field are random."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxels @ ras_from_voxel[:3, :3].T + ras_from_voxel[:3, 3]
    body = (world - patient.middle_mm) @ patient.rotation / patient.half_axes_mm  # in units of the half axes
    edge = np.linalg.norm(ras_from_voxel[:3, :3], axis=0).max() / patient.half_axes_mm.min()
    volume = np.full(tuple(shape), CT_AIR if modality == "ct" else 0.0)
    for name, organ in {"body": BODY, **ORGANS}.items():
        share = _occupancy(body, *patient.parts[name], edge)
        volume += share * ((organ.ct if modality == "ct" else organ.mr) - volume)
    if modality == "ct":
        volume += generator.normal(0.0, CT_NOISE, volume.shape)
    else:
        bias = np.exp(body @ generator.uniform(-0.2, 0.2, 3))
        volume = generator.uniform(0.7, 1.6) * np.abs(volume * bias + generator.normal(0.0, MR_NOISE, volume.shape))
    return np.round(volume).clip(-1024, 32767).astype(np.int16)


def random_affine(
    generator: np.random.Generator,
    spacing_mm: float | Sequence[float] | np.ndarray,
    *,
    oblique_degrees: float = 15.0,
    origin_mm: float = 100.0,
) -> np.ndarray:
    """Draw a ras_from_voxel (4, 4): axes in any order and direction, turned by up to ``oblique_degrees`` about each.

    ``spacing_mm`` belongs to the storage axes; the first voxel lies within ``origin_mm`` of 0 along each patient axis.
    """
    axes = np.eye(3)[:, generator.permutation(3)] * generator.choice([-1.0, 1.0], 3)
    ras_from_voxel = np.eye(4)
    turn = _rotation(np.radians(generator.uniform(-oblique_degrees, oblique_degrees, 3)))
    ras_from_voxel[:3, :3] = turn @ axes * np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    ras_from_voxel[:3, 3] = generator.uniform(-origin_mm, origin_mm, 3)
    return ras_from_voxel


def write_phantoms(
    folder: Path | str,
    count: int,
    generator: np.random.Generator,
    *,
    modality: Modality = "ct",
    shape: Sequence[int] = (48, 48, 48),
    spacing_mm: float = 4.0,
    validation: float = 0.2,
    test: float = 0.2,
) -> Path:
    """Write ``count`` patients with random oblique, anisotropic affines, by turns as NIfTI and NRRD.

    Each has a table ``<case>_landmarks.csv`` beside it; ``dataset.json`` lists all.  Returns the path of that file.
    """
    folder = Path(folder)
    cases = [f"phantom_{number:03d}" for number in range(count)]
    split = split_cases(cases, validation=validation, test=test, generator=generator)
    images: dict[str, Path] = {}
    for number, case in enumerate(cases):
        spacing = spacing_mm * generator.uniform(0.8, 1.25, 3)
        voxels, ras_from_voxel, points = phantom(
            generator, shape=shape, spacing_mm=spacing, modality=modality, affine="random"
        )
        images[case] = folder / f"{case}{('.nii.gz', '.nrrd')[number % 2]}"
        write_image(images[case], voxels, ras_from_voxel)
        write_truth_csv(folder / f"{case}_landmarks.csv", points)
    sections = {
        section: [(images[case], folder / f"{case}_landmarks.csv") for case in members]
        for section, members in split.items()
    }
    return write_dataset(folder, f"phantoms_{modality}", LABELS, sections)


def _occupancy(body: np.ndarray, centre: np.ndarray, radius: np.ndarray, edge: float) -> np.ndarray:
    """Share of a voxel that an ellipsoid fills: smooth over about a voxel, so that organs have no jagged border."""
    distance = (1.0 - np.linalg.norm((body - centre) / radius, axis=-1)) * radius.min()
    return 0.5 * (1.0 + np.tanh(2.0 * distance / edge))


def _rotation(radians: np.ndarray) -> np.ndarray:
    """Rotate about the first, then the second, then the third axis."""
    total = np.eye(3)
    for axis, angle in enumerate(radians):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        total = turn @ total
    return total
