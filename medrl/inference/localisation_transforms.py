"""Dictionary transforms round a localisation inferer, and what a report says of its answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medrl.data.box_files import (
    SmallImage,
    find_images,
    is_picture,
    read_box_dataset,
    read_small,
    reduce_picture,
    reduce_volume,
)
from medrl.data.box_pictures import draw_detections
from medrl.data.detections import write_detections, write_rois
from medrl.inference.transforms import as_switch
from medrl.types import Detection, InputError


def list_image_cases(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The pictures or volumes of a folder (or one file) as ``{"case", "image", "file_name"}``."""
    return [{"case": case, "image": path, "file_name": path.name} for case, path in find_images(dataset_dir).items()]


def list_boxed_cases(dataset_dir: Path | str, section: str, category: str | None = None) -> list[dict[str, Any]]:
    """The cases of a section of dataset.json, with their boxes under ``boxes``."""
    entries = read_box_dataset(dataset_dir, section, category=category)
    return [entry | {"file_name": entry["image"].name} for entry in entries]


class LoadSmallImaged(MapTransform):
    """Paths become small images, MetaTensors (C, *S) uint8 with ``affine``, file from small image (4, 4).

    Of a picture the affine scales pixels, of a volume it gives RAS mm; box corners, not pixel middles, are meant.
    ``data[original_key]`` keeps the image as it was read.  Arrays (Y, X, C) and MetaTensors (1, X, Y, Z) are taken,
    too.
    """

    def __init__(
        self, keys: KeysCollection = "image", *, longest: int, channels: int = 1, dims: int = 2,
        window: Sequence[float] | None = None, original_key: str = "original",
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.longest, self.channels, self.dims = longest, channels, dims
        self.window, self.original_key = window, original_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with small images under the keys."""
        done = dict(data)
        for key in self.key_iterator(done):
            small, done[self.original_key] = self._read(done[key])
            matrix = torch.eye(4, dtype=torch.float64)
            axes = torch.arange(len(small.scale))
            matrix[axes, axes], matrix[axes, 3] = small.scale, small.origin
            done[key] = MetaTensor(small.image, affine=matrix)
        return done

    def _read(self, image: Any) -> tuple[SmallImage, Any]:
        if isinstance(image, str | Path):
            if is_picture(image) != (self.dims == 2):
                kinds = ("pictures", "a volume") if self.dims == 2 else ("volumes", "a picture")
                raise InputError(
                    f"{Path(image).name}: is {kinds[1]}, but these weights are for {kinds[0]}; choose others by "
                    "--weights"
                )
            return read_small(image, longest=self.longest, channels=self.channels, window=self.window)
        if isinstance(image, MetaTensor):
            matrix = torch.as_tensor(image.affine)
            volume = image.as_subclass(Tensor)[0]
            return reduce_volume(volume, matrix, longest=self.longest, window=self.window), image
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or pixels.dtype != np.uint8:
            raise InputError(f"the array {pixels.shape} of {pixels.dtype} is no picture; expected (Y, X, 3) bytes")
        return reduce_picture(pixels, longest=self.longest, channels=self.channels), pixels


class SaveDetectionsd(MapTransform):
    """Writes, of volumes, ``<case>_roi.mrk.json`` and, with ``pictures``, ``<case>.png`` with the agent's path.

    ``detections.json`` of all cases is written by `DetectionAnswers`.  ``data["files"]`` lists the names.
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, output_dir: Path | str, category: str, pictures: bool | str = False,
        original_key: str = "original", truth_key: str = "boxes",
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.category = Path(output_dir), category
        self.pictures = as_switch(pictures, "pictures")
        self.original_key, self.truth_key = original_key, truth_key
        if self.pictures and importlib.util.find_spec("matplotlib") is None:
            raise InputError("pictures need matplotlib: pip install 'medrl[viz]'")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        files = []
        for key in self.key_iterator(done):
            if not isinstance(done[self.original_key], np.ndarray):
                files.append(f"{done['case']}_roi.mrk.json")
                write_rois(self.output_dir / files[-1], done[key], self.category)
            if self.pictures:
                files.append(f"{done['case']}.png")
                truth = done.get(self.truth_key)
                draw_detections(
                    self.output_dir / files[-1], done[self.original_key], done[key], title=str(done["case"]),
                    truth=() if truth is None else np.asarray(truth).reshape(len(truth), -1),
                )  # fmt: skip
        done["files"] = [*files, "detections.json"]
        return done


class DetectionAnswers:
    """Detections of all cases, and ``detections.json``."""

    def __init__(self, category: str) -> None:
        self.category = category
        self.detections: dict[str, list[Detection]] = {}

    def clear(self) -> None:
        """Forget an earlier run."""
        self.detections = {}

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Count the boxes of a case."""
        found = self.detections[str(data.get("file_name", case))] = data["pred"]
        scores = [round(one.score, 3) for one in found]
        entry = {"detections": len(found), "scores": scores, "steps": [one.steps for one in found]}
        return entry, f"{len(found)} x {self.category}" if found else f"no {self.category}"

    def write(self, output_dir: Path) -> None:
        """Write all boxes."""
        write_detections(output_dir / "detections.json", self.detections, self.category)
