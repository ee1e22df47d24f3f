"""Synthetic videos whose masks are known exactly: a textured deforming blob, a distractor like it, an occlusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medrl.data.video_cases import Video, VideoCases

WAVES = 5  # of a texture
LOBES = 3  # of an outline


def video_phantom(
    generator: np.random.Generator, *, frames: int = 20, size: tuple[int, int] = (64, 64), name: str = "phantom"
) -> Video:  # fmt: skip
    """Draw one video (T, 3, H, W).

    The object turns, swells and changes its outline on a smooth path; so does a distractor, of colours of its own that
    are as near to the object's as chance has it, and which may pass in front or behind.  For some frames in the middle
    a bar moves across the object's path.  A mask holds what is seen of the object.
    """
    height, width = size
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5, indexing="xy"))  # x, y
    side = min(size)
    time = np.arange(frames)
    drift = generator.normal(0, 0.004 * side, 2)[None] * time[:, None]  # of the camera
    image = _texture(generator, grid[None] + drift[:, :, None, None], side, contrast=0.16)
    object_path, *others = (_path(generator, frames, size) for _ in range(4))
    other_path = max(others, key=lambda path: np.linalg.norm(path[0] - object_path[0]))  # apart at first
    layers = []
    for path in (object_path, other_path):
        radius = side * generator.uniform(0.11, 0.2)
        place = grid[None] - path[:, :, None, None]
        angle = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.06) * time
        cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        own = np.stack([cosine * place[:, 0] + sine * place[:, 1], cosine * place[:, 1] - sine * place[:, 0]], 1)
        inside = _outline(generator, own, radius, time)
        layers.append((inside, _texture(generator, own, side, contrast=0.22)))
    (mine, colour), (theirs, other) = layers
    bar, bar_colour = _bar(generator, grid, object_path, time, side)
    front = generator.random() < 0.5  # the distractor passes in front
    for inside, paint in ((mine, colour), (theirs, other)) if front else ((theirs, other), (mine, colour)):
        image = np.where(inside[:, None], paint, image)
    visible = mine & ~theirs if front else mine
    image = np.where(bar[:, None], bar_colour, image)
    visible = visible & ~bar
    image = image * (1 + generator.normal(0, 0.03, (frames, 1, 1, 1)))  # the light flickers
    image = image + generator.normal(0, 0.02, image.shape)
    pixels = (255 * image.clip(0, 1)).round().astype(np.uint8)
    return Video(name, torch.from_numpy(pixels), torch.from_numpy(visible))


def phantom_cases(count: int, *, seed: int = 0, frames: int = 20, size: tuple[int, int] = (64, 64)) -> VideoCases:
    """Cases of ``count`` phantoms; those of other seeds are others."""
    generators = [np.random.default_rng([seed, n]) for n in range(count)]
    videos = [video_phantom(g, frames=frames, size=size, name=f"phantom_{n}") for n, g in enumerate(generators)]
    return VideoCases.from_videos(videos, canvas=size)


def write_video_phantoms(
    folder: Path | str, count: int, *, seed: int = 0, frames: int = 20, size: tuple[int, int] = (64, 64)
) -> Path:
    """Write phantoms as ``<folder>/<name>/<frame>.png`` and ``<name>/masks/<frame>.png`` with a dataset.json."""
    from medrl.data.videos import write_dataset_of_videos, write_video

    names = []
    for number in range(count):
        name = f"phantom_{number:03d}"
        video = video_phantom(np.random.default_rng([seed, number]), frames=frames, size=size, name=name)
        write_video(Path(folder) / name, video)
        names.append(name)
    return write_dataset_of_videos(folder, names)


def _path(generator: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Centres (T, 2) in x, y: a smooth walk that turns back before the border."""
    side = min(size)
    limit = np.array([size[1], size[0]], np.float64)
    place = limit * generator.uniform(0.3, 0.7, 2)
    speed = generator.normal(0, 1, 2)
    speed *= side * generator.uniform(0.02, 0.05) / np.linalg.norm(speed)
    path = np.zeros((frames, 2))
    for t in range(frames):
        path[t] = place
        speed = speed + generator.normal(0, 0.008 * side, 2)
        away = (place < 0.2 * limit).astype(float) - (place > 0.8 * limit)
        speed = np.where(away != 0, away * np.abs(speed), speed)
        place = place + speed
    return path


def _outline(generator: np.random.Generator, own: np.ndarray, radius: float, time: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: inside a wavy ellipse whose waves travel, in the object's own coordinates (T, 2, H, W)."""
    stretch = np.exp(generator.normal(0, 0.2))
    x, y = own[:, 0] / stretch, own[:, 1] * stretch
    swell = 1 + generator.uniform(0.0, 0.18) * np.sin(generator.uniform(0.15, 0.45) * time + generator.uniform(0, 6.3))
    edge = np.ones_like(x)
    around = np.arctan2(y, x)
    for k in range(2, 2 + LOBES):
        phase = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.12) * time
        edge += generator.normal(0, 0.24 / k) * np.cos(k * around + phase[:, None, None])
    return np.hypot(x, y) < radius * swell[:, None, None] * edge.clip(0.4, 1.7)


def _texture(generator: np.random.Generator, place: np.ndarray, side: float, *, contrast: float) -> np.ndarray:
    """Colours (T, 3, H, W) of random waves at places (T, 2, H, W)."""
    colour = generator.uniform(0.2, 0.8, 3)
    total = np.zeros((len(place), 3, *place.shape[2:]))
    for _ in range(WAVES):
        length = side * generator.uniform(0.06, 0.5)
        angle, phase = generator.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi / length * (np.cos(angle) * place[:, 0] + np.sin(angle) * place[:, 1]) + phase)
        total += generator.normal(0, 1, 3)[:, None, None] * wave[:, None]
    return colour[:, None, None] + contrast / np.sqrt(WAVES) * total


def _bar(
    generator: np.random.Generator, grid: np.ndarray, path: np.ndarray, time: np.ndarray, side: float
) -> tuple[np.ndarray, np.ndarray]:
    """A bar (T, H, W) bool that sweeps over the object once, and its colour (3, 1, 1)."""
    middle = int(generator.integers(len(time) // 3, max(len(time) // 3 + 1, 2 * len(time) // 3)))
    angle = generator.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)])
    speed, half = side * generator.uniform(0.05, 0.09), side * generator.uniform(0.05, 0.1)
    where = path[middle] @ normal + speed * (time - middle)
    across = np.tensordot(normal, grid, 1)[None] - where[:, None, None]
    return np.abs(across) < half, generator.uniform(0.1, 0.9, 3)[:, None, None]
