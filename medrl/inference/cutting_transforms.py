"""Videos in and masks out, round a cutting inferer: cases, transforms, and what a report says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medrl.data.video_pictures import painted, write_animation, write_sheet
from medrl.data.videos import find_sequences, read_dataset_of_videos, read_sequence, read_truth, write_labels
from medrl.geometry.boxes import from_middle_and_size, middle_and_size
from medrl.inference.transforms import as_switch
from medrl.tasks.cutting import CONTEXTS


def list_videos(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The sequences of a folder as ``{"case": name, "folder": path}``; InputError if there is none."""
    return [{"case": name, "folder": folder} for name, folder in find_sequences(dataset_dir).items()]


def list_true_videos(dataset_dir: Path | str, section: str) -> list[dict[str, Any]]:
    """The sequences of one section of dataset.json, or of a folder without one, whose masks are all known."""
    return [
        {"case": folder.name, "folder": folder, "true": True} for folder in read_dataset_of_videos(dataset_dir, section)
    ]


class LoadVideod(MapTransform):
    """``data["folder"]`` becomes frames (T, 3, H, W) uint8 under the key, and ``given``, what is known of the objects.

    A case with ``true`` gets ``truth``, too, the masks (K, T, H, W) bool of the same objects in all frames.
    """

    def __init__(self, keys: KeysCollection = "image", *, folder_key: str = "folder") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.folder_key = folder_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the video."""
        done = dict(data)
        given = read_sequence(done[self.folder_key])
        done |= {self.keys[0]: given.frames, "given": given}
        if done.get("true"):
            labels = read_truth(done[self.folder_key])
            done["truth"] = torch.stack([labels == value for value in given.objects])
        return done


class SaveMasksd(MapTransform):
    """Writes ``<sequence>/<frame>.png``, palette masks at the size of the video, in the layout of DAVIS.

    With ``pictures`` also ``<sequence>.png``, eight frames with boxes and masks, and ``<sequence>.gif``, all of them.
    The folder of masks appears whole or not at all.  ``data["files"]`` lists the names written.
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, output_dir: Path | str, image_key: str = "image",
        case_key: str = "case", pictures: bool | str = False,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.image_key, self.case_key = Path(output_dir), image_key, case_key
        self.pictures = as_switch(pictures, "pictures")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        case, names = done[self.case_key], [f"{path.stem}.png" for path in done["given"].files]
        for key in self.key_iterator(done):
            cut = done[key]
            folder, part = self.output_dir / case, self.output_dir / f".part-{os.getpid()}-{case}"
            try:
                for name, labels in zip(names, cut.labels, strict=True):
                    write_labels(part / name, labels.numpy())
                shutil.rmtree(folder, ignore_errors=True)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            done["files"] = [f"{case}/{name}" for name in names]
            if self.pictures:
                pictures = painted(done[self.image_key], cut.labels, cut.box, context_boxes(cut), cut.objects)
                write_sheet(self.output_dir / f"{case}.png", pictures)
                write_animation(self.output_dir / f"{case}.gif", pictures)
                done["files"] += [f"{case}.png", f"{case}.gif"]
        return done


class VideoAnswers:
    """Objects, frames and moves of every video, for the report of a ``CasePredictor``."""

    def clear(self) -> None:
        """Forget an earlier run; nothing is kept."""

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Describe what was cut out of a video."""
        cut = data["pred"]
        seen = torch.stack([(cut.labels == value).flatten(1).any(1) for value in cut.objects])
        entry = {
            "frames": len(cut.labels), "objects": cut.objects,
            "frames_without_object": [int(n) for n in (~seen).sum(1)],
            "moves_per_frame": round(float(cut.moves[:, 1:].float().mean()), 2),
        }  # fmt: skip
        return entry, f"{len(cut.labels)} frames, {len(cut.objects)} objects, {entry['moves_per_frame']} moves a frame"

    def write(self, output_dir: Path) -> None:
        """Nothing: the report says it all."""


def context_boxes(cut: Any) -> torch.Tensor:
    """Context boxes (K, T, 4) of a cut video."""
    middle, side = middle_and_size(cut.box)
    return from_middle_and_size(middle, side * (1 + torch.tensor(CONTEXTS)[cut.context.long()])[..., None])
