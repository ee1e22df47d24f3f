"""Training volumes of a ``dataset.json`` as a pool of varied cases that is renewed while training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from medrl.data.anatomy import learn_anatomy
from medrl.data.cases import Source
from medrl.data.dataset import dataset_labels, read_dataset
from medrl.data.landmarks import check_landmarks_inside, read_landmarks
from medrl.data.read import read_image
from medrl.data.variations import Variations
from medrl.geometry.grids import spacing_of
from medrl.types import InputError


def read_sources(dataset_dir: Path | str, section: str, *, labels: Sequence[str] | None = None) -> list[Source]:
    """Read the volumes and landmarks of one section of ``dataset.json``; InputError for a wrong one, by case id."""
    labels = dataset_labels(dataset_dir) if labels is None else list(labels)
    sources = []
    for entry in read_dataset(dataset_dir, section):
        image = read_image(entry["image"])
        ras_from_voxel = torch.as_tensor(image.affine).double()
        points = {} if entry["landmarks"] is None else read_landmarks(entry["landmarks"])
        if points and not set(points) & set(labels):
            raise InputError(
                f"{entry['case']}: its landmark file names none of dataset.json's landmarks; another set's file?"
            )
        check_landmarks_inside(points, ras_from_voxel.numpy(), tuple(image.shape[1:]), entry["case"])
        places = torch.full((len(labels), 3), torch.nan, dtype=torch.float64)
        for n, label in enumerate(labels):
            if label in points:
                places[n] = torch.as_tensor(points[label])
        sources.append(Source(entry["case"], image[0].as_tensor(), ras_from_voxel, places))
    return sources


class Pool:
    """``count`` varied cases of the training section, their anatomy, and the generator that renews them.

    Everything a training needs from a dataset folder: ``cases`` for the task, ``anatomy`` for inference.  Options of
    the variations (``rotation_degrees``, ``cut``, ...) go to :class:`medrl.data.variations.Variations`.  Lengths not
    given follow from the training volumes: a spacing that puts 128 voxels along the median longest side, but never
    finer than the files' own, and a margin of a quarter of that side.
    """

    def __init__(
        self, dataset_dir: Path | str, *, spacing_mm: float | None = None, margin_mm: float | None = None,
        strides: Sequence[int] = (1, 2, 4), size: int = 17, count: int = 48, turned: bool = False,
        window: Sequence[float] | None = None, seed: int = 0,
        section: str = "training", device: torch.device | str = "cpu", **variations: Any,
    ) -> None:  # fmt: skip
        labels = dataset_labels(dataset_dir)
        self.sources = read_sources(dataset_dir, section, labels=labels)
        window = None if window is None else [float(w) for w in window]
        sides, voxels = zip(*(_side_and_voxel_mm(source) for source in self.sources), strict=True)
        spacing_mm = max(median(voxels), median(sides) / 128) if spacing_mm is None else spacing_mm
        margin_mm = median(sides) / 4 if margin_mm is None else margin_mm
        self.anatomy, frames = learn_anatomy(
            self.sources, labels=labels, spacing_mm=spacing_mm, margin_mm=margin_mm, turned=turned,
            strides=list(strides),
            size=size, window=window,
        )  # fmt: skip
        self.variations = Variations(
            self.sources, frames, box_mm=self.anatomy.box_mm(), spacing_mm=spacing_mm, window=window,
            multiple=max(2, max(strides) // 2), **variations,
        )  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self.cases = self.variations.cases(count, self.generator, labels=labels, strides=tuple(strides)).to(device)

    def refresh(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` random cases anew; returns their indices."""
        generator = self.generator if generator is None else generator
        indices = torch.randperm(len(self.cases), generator=generator)[:count]
        self.variations.refresh(self.cases, indices.tolist(), generator)
        return indices


def _side_and_voxel_mm(source: Source) -> tuple[float, float]:
    """Longest side of a volume, and the side of a cube of one voxel's volume."""
    spacing = spacing_of(source.ras_from_voxel)
    return float((spacing * torch.tensor(source.volume.shape)).max()), float(spacing.prod()) ** (1 / 3)
