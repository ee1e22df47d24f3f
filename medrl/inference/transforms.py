"""Dictionary transforms round a landmark inferer, for a bundle's preprocessing and postprocessing."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medrl.data.landmarks import check_landmarks_inside, read_landmarks
from medrl.data.page import write_page
from medrl.data.pictures import draw_landmarks
from medrl.data.read import case_name
from medrl.data.write import write_markups
from medrl.types import MISSING, InputError

NOWHERE = (torch.nan,) * 3


class EnsureVolumed(MapTransform):
    """Volumes (X, Y, Z) become (1, X, Y, Z); what has a channel is kept."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with channels first."""
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = done[key][None] if done[key].ndim == 3 else done[key]
        return done


class LoadTruthd(MapTransform):
    """Landmark files become (L, 3) RAS mm in the order of ``labels``; NaN where the file lacks a landmark.

    Raises InputError if the file is not of this image (``image_key``, read before): points outside, or none of the
    labels in it.
    """

    def __init__(self, keys: KeysCollection, *, labels: Sequence[str], image_key: str = "image") -> None:
        super().__init__(keys)
        self.labels, self.image_key = list(labels), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the paths under the keys replaced by points."""
        done = dict(data)
        image = done[self.image_key]
        for key in self.key_iterator(done):
            if done[key] is None:
                raise InputError("no landmark file is named in dataset.json; evaluation needs one a case")
            name = Path(done[key]).name
            points = read_landmarks(done[key])
            if not set(points) & set(self.labels):
                raise InputError(
                    f"{name}: names none of the bundle's landmarks; expected {', '.join(self.labels[:3])} ..."
                )
            check_landmarks_inside(points, image.affine.numpy(), tuple(image.shape[1:]), name)
            places = [points[label].tolist() if label in points else NOWHERE for label in self.labels]
            done[key] = torch.tensor(places, dtype=torch.float64)
        return done


class LandmarkPointsd(MapTransform):
    """A list of landmarks becomes its points (L, 3) in RAS mm, NaN where missing; ``landmarks_key`` keeps the list."""

    def __init__(self, keys: KeysCollection, *, landmarks_key: str = "landmarks") -> None:
        super().__init__(keys)
        self.landmarks_key = landmarks_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with points under the key."""
        done = dict(data)
        for key in self.key_iterator(done):
            done[self.landmarks_key] = done[key]
            places = [NOWHERE if mark.status == MISSING else mark.position_mm for mark in done[key]]
            done[key] = torch.tensor(places, dtype=torch.float64)
        return done


class SaveLandmarksd(MapTransform):
    """Writes ``<case>.mrk.json`` and, with ``pictures``, ``<case>.png`` and ``<case>.html`` into ``output_dir``.

    The case id is ``data[case_key]``, or the image's file name.  ``data["files"]`` lists the names written.
    Raises InputError at once if pictures are wanted and matplotlib is not installed.
    """

    def __init__(
        self, keys: KeysCollection = "landmarks", *, output_dir: Path | str, image_key: str = "image",
        case_key: str = "case", pictures: bool | str = False,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.image_key, self.case_key = Path(output_dir), image_key, case_key
        self.pictures = as_switch(pictures, "pictures")
        if self.pictures and importlib.util.find_spec("matplotlib") is None:
            raise InputError("pictures need matplotlib: pip install 'medrl[viz]'")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        image = done[self.image_key]
        case = done.get(self.case_key) or case_name(image.meta.get("filename_or_obj", "case"))
        for key in self.key_iterator(done):
            files = {suffix: self.output_dir / f"{case}{suffix}" for suffix in (".mrk.json", ".png", ".html")}
            write_markups(files[".mrk.json"], done[key])
            if self.pictures:
                draw_landmarks(files[".png"], image, image.affine, done[key], title=case)
                write_page(files[".html"], image, image.affine, done[key], title=case)
            done["files"] = [path.name for path in files.values() if path.suffix == ".json" or self.pictures]
        return done


def as_switch(value: bool | str, name: str) -> bool:
    """True or False; a command line hands over ``true`` as a word.  InputError for anything else."""
    if str(value).lower() not in ("true", "false"):
        raise InputError(f"{name} is {value!r}; expected true or false")
    return str(value).lower() == "true"
