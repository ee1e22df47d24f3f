"""Dictionary transforms round a registration inferer, for a bundle's preprocessing and postprocessing."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medrl.data.itk_transforms import write_transform
from medrl.data.misalignment import body_lattice, draw_misalignment, image_centre, regrid
from medrl.data.pair_page import write_pair_page
from medrl.data.pair_pictures import draw_pair
from medrl.data.pairs import ROLES, pair_files, read_pair
from medrl.data.slices import Policy
from medrl.data.write import write_image
from medrl.geometry.transforms import resample
from medrl.inference.transforms import as_switch
from medrl.types import CONVERGED, InputError

WHOLE = np.iinfo(np.int16)


class LoadPaird(MapTransform):
    """The paths of a fixed and a moving image become volumes (1, X, Y, Z), with the checks of `read_pair`.

    The two keys are those of the fixed and the moving image.  Where they are absent, ``data[folder_key]`` is the
    folder that holds them.  What are MetaTensors already is checked only.
    """

    def __init__(self, keys: KeysCollection = ROLES, *, folder_key: str = "folder", policy: Policy = "refuse") -> None:
        super().__init__(keys)
        if len(self.keys) != 2:
            raise ValueError(f"keys {self.keys}: expected two, of the fixed and of the moving image")
        self.folder_key = folder_key
        self.policy: Policy = policy

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with volumes under the keys."""
        done = dict(data)
        fixed, moving = self.keys
        if fixed not in done and moving not in done and self.folder_key in done:
            done[fixed], done[moving] = pair_files(done[self.folder_key])
        done[fixed], done[moving] = read_pair(done[fixed], done[moving], policy=self.policy)
        return done


class Misalignd(MapTransform):
    """The moving image of an aligned pair becomes a copy that was moved by a known transform, on a grid of its own.

    ``data[level_key]`` is a level of ``medrl.data.misalignment.LEVELS``; the case id and ``seed`` decide the draw
    alone.  Adds ``truth``, the transform (4, 4) that a registration should answer (moving from fixed, RAS mm), and
    ``points`` (N, 3), where its error is measured.  ``ball``: a control that keeps only a ball of the moving image.
    """

    def __init__(
        self, keys: KeysCollection = "moving", *, fixed_key: str = "fixed", case_key: str = "case",
        level_key: str = "level", pair_key: str = "pair", ball: bool | str = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.fixed_key, self.case_key, self.level_key, self.pair_key = fixed_key, case_key, level_key, pair_key
        self.ball, self.seed = as_switch(ball, "ball"), seed
        self._lattice: tuple[Any, Tensor] | None = None  # of the last pair: its cases follow each other

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the moved image, the truth and the points."""
        done = dict(data)
        fixed = done[self.fixed_key]
        for key in self.key_iterator(done):
            generator = np.random.default_rng([self.seed, zlib.crc32(str(done[self.case_key]).encode())])
            pair = done.get(self.pair_key)
            if self._lattice is None or pair is None or self._lattice[0] != pair:
                self._lattice = pair, body_lattice(fixed, done[key])
            drawn = draw_misalignment(done[self.level_key], image_centre(fixed), generator)
            done[key] = regrid(done[key], drawn.matrix, generator, ball=self.ball)
            done |= {"truth": drawn.matrix, "points": self._lattice[1]}
        return done


class SaveRegistrationd(MapTransform):
    """Writes ``<case>.tfm`` and ``<case>_moved.nii.gz``; with ``pictures`` also ``<case>.png`` and ``<case>.html``.

    The first is an ITK transform (fixed point to moving point, LPS mm), the second the moving image on the grid of the
    fixed one, int16 if its values are whole numbers of that range and float32 otherwise.  Nothing is written of a
    registration that did not converge, unless ``keep_unconverged``.  ``data["files"]`` lists the names written.

    Raises InputError at once if pictures are wanted and matplotlib is not installed.
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, output_dir: Path | str, fixed_key: str = "fixed",
        moving_key: str = "moving", case_key: str = "case", pictures: bool | str = False,
        keep_unconverged: bool | str = False,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.case_key = Path(output_dir), case_key
        self.fixed_key, self.moving_key = fixed_key, moving_key
        self.pictures = as_switch(pictures, "pictures")
        self.keep_unconverged = as_switch(keep_unconverged, "keep_unconverged")
        if self.pictures and importlib.util.find_spec("matplotlib") is None:
            raise InputError("pictures need matplotlib: pip install 'medrl[viz]'")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        fixed, moving, case = done[self.fixed_key], done[self.moving_key], done[self.case_key]
        for key in self.key_iterator(done):
            answer, done["files"] = done[key], []
            if answer.status != CONVERGED and not self.keep_unconverged:
                continue
            files = [self.output_dir / f"{case}{suffix}" for suffix in (".tfm", "_moved.nii.gz", ".png", ".html")]
            write_transform(files[0], answer.moving_from_fixed)
            voxels = move_image(moving, fixed, answer.moving_from_fixed)[0].numpy()
            write_image(files[1], _as_stored(voxels, moving), np.asarray(fixed.affine, np.float64))
            if self.pictures:
                draw_pair(files[2], fixed, moving, answer, title=case)
                write_pair_page(files[3], fixed, moving, answer, title=case)
            done["files"] = [path.name for path in files[: 4 if self.pictures else 2]]
        return done


def move_image(moving: MetaTensor, fixed: MetaTensor, moving_from_fixed: Tensor) -> MetaTensor:
    """The moving image (1, X, Y, Z) on the grid of the fixed one, float32; its minimum where it was not measured."""
    volume, shape = moving.as_tensor()[0], tuple(fixed.shape[1:])
    affines = [torch.as_tensor(image.affine).double() for image in (moving, fixed)]
    values = resample(volume, affines[0], moving_from_fixed, shape, affines[1], outside=float(volume.min()))
    return MetaTensor(values[None], affine=affines[1])


def _as_stored(voxels: np.ndarray, moving: MetaTensor) -> np.ndarray:
    """Round to int16 where the image before resampling held whole numbers of its range."""
    before = moving.as_tensor()
    if float(before.min()) < WHOLE.min or float(before.max()) > WHOLE.max or not torch.equal(before, before.round()):
        return voxels
    return np.round(voxels).astype(np.int16)
