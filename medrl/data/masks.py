"""Masks: files <-> boolean volumes on the grid of their images, and data sets of images with masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.dataset import SECTIONS, read_dataset, relative_path
from medrl.data.read import read_image, read_label_map
from medrl.data.write import write_image, write_json
from medrl.types import InputError

GRID_TOLERANCE_MM = 0.1  # between the corners of two grids that count as one: headers are rounded


class MaskCase(NamedTuple):
    """An image and the object in it."""

    name: str
    subject: str  # images of one patient have one subject
    image: MetaTensor  # (1, X, Y, Z) float32
    mask: MetaTensor  # (1, X, Y, Z) bool, on the same grid


class MaskFiles(NamedTuple):
    """The files of a case."""

    image: Path
    label: Path
    subject: str


def read_mask(path: Path | str, like: MetaTensor | None = None) -> MetaTensor:
    """Read a mask, (1, X, Y, Z) bool: every label above 0 is the object.  A file of one slice is read too.

    Raises:
        InputError: as `read_label_map` (an empty mask is refused), or another grid than that of the image ``like``.
    """
    labels = read_label_map(path, one_slice=True)
    if like is not None:
        check_same_grid(labels, like, Path(path).name)
    return labels > 0


def read_mask_cases(dataset_dir: Path | str, section: str) -> Iterator[MaskCase]:
    """Read the cases of one section of ``dataset.json``, entries ``{"image": path, "label": path}``, one by one.

    Raises:
        InputError: as `read_dataset`, `read_image` and `read_mask`, or a case without a label file.
    """
    for entry in read_dataset(dataset_dir, section, answer="label"):
        if entry["label"] is None:
            raise InputError(f"dataset.json: {entry['image'].name} has no 'label'; expected the path of its mask")
        image = read_image(entry["image"], one_slice=True)
        yield MaskCase(entry["case"], entry["subject"], image, read_mask(entry["label"], image))


def write_mask(path: Path | str, mask: Tensor | np.ndarray, like: MetaTensor) -> None:
    """Write a mask, (1, X, Y, Z) or (X, Y, Z), as uint8 0 and 1 on the grid of the image ``like``.

    Raises:
        InputError: another shape than that of the image.
    """
    voxels = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if voxels.shape not in (tuple(like.shape), tuple(like.shape[1:])):
        shapes = [" x ".join(map(str, shape[-3:])) for shape in (voxels.shape, like.shape)]
        raise InputError(
            f"{Path(path).name}: the mask has {shapes[0]} voxels and the image {shapes[1]}; expected one grid"
        )
    write_image(path, (voxels.reshape(like.shape[1:]) > 0).astype(np.uint8), np.asarray(like.affine, np.float64))


def check_same_grid(labels: MetaTensor, image: MetaTensor, where: str) -> None:
    """Check that two volumes (1, X, Y, Z) have one size and one affine, to a tenth of a millimetre at the corners.

    Raises:
        InputError: names ``where`` and what differs.
    """
    sizes = [tuple(volume.shape[-3:]) for volume in (labels, image)]
    if sizes[0] != sizes[1]:
        ours, theirs = (" x ".join(map(str, size)) for size in sizes)
        raise InputError(f"{where}: has {ours} voxels and its image {theirs}; expected one grid, resample the mask")
    ends = [torch.tensor([0.0, size - 1.0], dtype=torch.float64) for size in sizes[0]]
    difference = (labels.affine - image.affine).double()
    gap_mm = float((torch.cartesian_prod(*ends) @ difference[:3, :3].T + difference[:3, 3]).norm(dim=1).max())
    if not gap_mm <= GRID_TOLERANCE_MM:
        raise InputError(
            f"{where}: lies {gap_mm:.1f} mm off its image; expected one grid, resample the mask or repair its header"
        )


def crop_to_mask(image: MetaTensor, mask: MetaTensor, margin_mm: float) -> tuple[MetaTensor, MetaTensor]:
    """Cut image and mask to the box of the object and ``margin_mm`` round it, along the voxel axes."""
    places = mask[0].as_tensor().nonzero()
    margin = (margin_mm / image.affine[:3, :3].norm(dim=0)).ceil().long()
    lower = (places.amin(0) - margin).clamp(min=0)
    upper = torch.minimum(places.amax(0) + margin + 1, torch.tensor(mask.shape[1:]))
    box = (slice(None), *(slice(int(low), int(high)) for low, high in zip(lower, upper, strict=True)))
    affine = image.affine.clone().double()
    affine[:3, 3] += affine[:3, :3] @ lower.double()
    return MetaTensor(image.as_tensor()[box], affine=affine), MetaTensor(mask.as_tensor()[box], affine=affine)


def write_mask_dataset(
    dataset_dir: Path | str, name: str, object_name: str, sections: Mapping[str, Sequence[MaskFiles]]
) -> Path:
    """Write ``dataset.json`` for images with masks, paths relative to its folder; returns its path."""
    folder = Path(dataset_dir)
    document: dict[str, object] = {"name": name, "labels": {"0": "background", "1": object_name}}
    for section in SECTIONS:
        document[section] = [
            {
                "image": relative_path(files.image, folder),
                "label": relative_path(files.label, folder),
                "subject": files.subject,
            }
            for files in sections.get(section, ())
        ]
    path = folder / "dataset.json"
    write_json(path, document)
    return path
