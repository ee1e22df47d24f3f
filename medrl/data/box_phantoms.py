"""Procedural pictures with textured targets among distractors, and volumes with an organ, whose boxes are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medrl.data.box_cases import BoxCases, pad_boxes
from medrl.data.dataset import split_cases
from medrl.data.phantoms import draw_patient, render
from medrl.data.write import whole_file, write_image, write_json

TARGET = "target"
ROOM = 0.15  # share of the smaller of two boxes that they may have in common


def draw_picture(
    generator: np.random.Generator, *, targets: int = 1, distractors: int = 3, side: int = 64,
    sides: tuple[float, float] = (0.1, 0.6),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draw a grey picture (side, side) uint8 and the boxes (targets, 4) of its targets, x1, y1, x2, y2 in pixels.

    Targets are ellipses with concentric rings; distractors are ellipses and rectangles with stripes, checks or a
    gradient.  Brightness, contrast, size and place are drawn alike for all, so that only texture and shape tell.
    """
    boxes: list[np.ndarray] = []
    for number in range(targets + distractors):
        boxes.append(_place(generator, boxes, side, sides if number < targets else (sides[0], 0.7 * sides[1])))
    picture = _ground(generator, side)
    y, x = np.mgrid[:side, :side] + 0.5
    for number in reversed(range(len(boxes))):  # targets last: they hide what they touch
        low, high = boxes[number][:2], boxes[number][2:]
        across, down = (2 * (p - (a + b) / 2) / (b - a) for p, a, b in zip((x, y), low, high, strict=True))
        if number < targets:
            radius = np.hypot(across, down)
            share, wave = _edge(1 - radius, high - low), np.cos(2 * np.pi * 1.5 * radius)
        else:
            share, wave = _distractor(generator, across, down, high - low)
        brightness, contrast = generator.uniform(80, 175), generator.uniform(40, 70)
        picture += share * (brightness + contrast * wave - picture)
    picture += generator.normal(0, 6, picture.shape)
    return picture.clip(1, 255).round().astype(np.uint8), np.array(boxes[:targets]).reshape(-1, 4)


def _place(
    generator: np.random.Generator, boxes: list[np.ndarray], side: int, sides: tuple[float, float]
) -> np.ndarray:
    """A box (4,) inside the picture that hardly touches the others; the longer it takes, the smaller it gets."""
    least, largest = sides[0] * side, sides[1] * side
    box = np.zeros(4)
    for attempt in range(200):
        limit = max(least + 0.02 * side, largest * (1 - attempt / 200))
        size = generator.uniform(least, limit) * generator.uniform(0.75, 1.33, 2)
        size = size.clip(least, largest)
        low = generator.uniform(0, 1, 2) * (side - size)
        box = np.concatenate([low, low + size])
        shared = [
            (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0).prod()
            / min(size.prod(), (other[2:] - other[:2]).prod())
            for other in boxes
        ]
        if max(shared, default=0.0) <= ROOM:
            break
    return box


def _ground(generator: np.random.Generator, side: int) -> np.ndarray:
    coarse = torch.from_numpy(generator.uniform(60, 195, (1, 1, 5, 5)))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    return fine[0, 0].numpy().copy()


def _edge(depth: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Share of each pixel that is covered; depth in units of the half sides."""
    return (depth * size.mean() / 2 + 0.5).clip(0, 1)


def _distractor(
    generator: np.random.Generator, across: np.ndarray, down: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share and texture of something that is no target."""
    depth = 1 - (np.hypot(across, down) if generator.random() < 0.5 else np.maximum(abs(across), abs(down)))
    angle, phase = generator.uniform(0, np.pi), generator.uniform(0, 2 * np.pi)
    along, aside = across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)
    kind = generator.integers(3)
    if kind == 0:
        wave = np.cos(np.pi * 2.5 * along + phase)
    elif kind == 1:
        wave = np.sign(np.sin(np.pi * 1.5 * along + phase) * np.sin(np.pi * 1.5 * aside + phase))
    else:
        wave = along
    return _edge(depth, size), wave


def draw_box_cases(
    count: int, generator: np.random.Generator, *, targets: Sequence[int] = (0, 1, 1, 1, 2, 3), distractors: int = 3,
    side: int = 64,
) -> BoxCases:  # fmt: skip
    """Draw pictures; each has as many targets as the next of ``targets`` says, over and over."""
    drawn = [
        draw_picture(generator, targets=targets[n % len(targets)], distractors=distractors, side=side)
        for n in range(count)
    ]
    boxes, present = pad_boxes([torch.from_numpy(box).float() for _, box in drawn], 2)
    return BoxCases(torch.from_numpy(np.stack([picture for picture, _ in drawn]))[:, None], boxes, present)


def write_box_pictures(
    folder: Path | str, count: int, generator: np.random.Generator, *, targets: Sequence[int] = (0, 1, 1, 1, 2, 3),
    distractors: int = 3, side: int = 64, validation: float = 0.1, test: float = 0.2,
) -> Path:  # fmt: skip
    """Write pictures as PNG files, and ``dataset.json``; returns its path."""
    from PIL import Image

    folder, entries = Path(folder), {}
    for number in range(count):
        name = f"picture_{number:04d}"
        picture, boxes = draw_picture(
            generator, targets=targets[number % len(targets)], distractors=distractors, side=side
        )
        with whole_file(folder / "images" / f"{name}.png") as part:
            Image.fromarray(picture).save(part)
        entries[name] = {
            "image": f"images/{name}.png",
            "boxes": [_entry(TARGET, box[:2], box[2:]) for box in boxes.round(3).tolist()],
        }
    return _write(folder, TARGET, entries, validation, test, generator)


def write_organ_volumes(
    folder: Path | str, count: int, generator: np.random.Generator, *, organ: str = "liver", side: int = 40,
    spacing_mm: float = 5.0, validation: float = 0.1, test: float = 0.2, modality: str = "ct",
) -> Path:  # fmt: skip
    """Write volumes (NIfTI) of synthetic patients and the box of an organ in RAS mm; returns dataset.json's path."""
    folder, entries = Path(folder), {}
    for number in range(count):
        name = f"patient_{number:03d}"
        volume, matrix, box = draw_organ(generator, organ=organ, side=side, spacing_mm=spacing_mm, modality=modality)
        write_image(folder / "images" / f"{name}.nii.gz", volume, matrix)
        entries[name] = {
            "image": f"images/{name}.nii.gz",
            "boxes": [_entry(organ, *box.reshape(2, 3).round(3).tolist(), unit="bbox_mm")],
        }
    return _write(folder, organ, entries, validation, test, generator)


def draw_organ(
    generator: np.random.Generator, *, organ: str = "liver", side: int = 40, spacing_mm: float = 5.0,
    modality: str = "ct",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Draw a volume (X, Y, Z) int16 on a randomly flipped grid along the patient's axes, its matrix, and a box (6,).

    The box is that of the organ's ellipsoid in RAS mm.
    """
    signs = generator.choice([-1.0, 1.0], 3)
    matrix = np.diag([*(signs * spacing_mm), 1.0])
    matrix[:3, 3] = generator.uniform(-50, 50, 3)
    shape = (side,) * 3
    patient = draw_patient(generator, shape=shape, ras_from_voxel=matrix)
    volume = render(patient, generator, shape=shape, ras_from_voxel=matrix, modality=modality)
    middle, radius = patient.position_mm(organ), patient.parts[organ][1] * patient.half_axes_mm
    reach = np.sqrt(((patient.rotation * radius) ** 2).sum(1))  # of a turned ellipsoid along the axes
    return volume, matrix, np.concatenate([middle - reach, middle + reach])


def _entry(category: str, low: Sequence[float], high: Sequence[float], unit: str = "bbox") -> dict[str, object]:
    return {"category": category, unit: [*low, *(round(b - a, 3) for a, b in zip(low, high, strict=True))]}


def _write(
    folder: Path, category: str, entries: dict[str, dict[str, object]], validation: float, test: float,
    generator: np.random.Generator,
) -> Path:  # fmt: skip
    parts = split_cases(list(entries), validation=validation, test=test, generator=generator)
    document = {"name": f"boxes of {category}", "classes": [category]}
    sections = {section: [entries[name] for name in names] for section, names in parts.items()}
    write_json(folder / "dataset.json", json.loads(json.dumps(document | sections)))
    return folder / "dataset.json"
