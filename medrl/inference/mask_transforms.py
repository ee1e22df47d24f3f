"""Dictionary transforms round interactive segmentation, for a bundle's preprocessing and postprocessing."""

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

from medrl.data.clicks import BAND, first_clicks
from medrl.data.masks import read_mask, write_mask
from medrl.data.overlays import draw_overlay, write_overlay_page
from medrl.data.planes import finite_quantiles
from medrl.data.read import case_name
from medrl.data.regions import is_ct
from medrl.data.seeds import FOREGROUND, SUFFIX, Seeds, make_seeds, write_seeds
from medrl.inference.transforms import as_switch
from medrl.types import InputError

TISSUE_HU, TISSUE_SHARE = -300.0, 0.03  # what is not air: in HU, and as a share of the bright end of an MR image


class LoadMaskd(MapTransform):
    """Mask files become (1, X, Y, Z) bool; InputError if one is not on the grid of the image under ``image_key``."""

    def __init__(self, keys: KeysCollection, *, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the paths under the keys replaced by masks."""
        done = dict(data)
        for key in self.key_iterator(done):
            if done[key] is None:
                raise InputError("no mask is named in dataset.json; evaluation needs a 'label' a case")
            done[key] = read_mask(done[key], done[self.image_key])
        return done


class SimulateSeedsd(MapTransform):
    """Where there are no clicks yet, one inside and one outside of the true mask, as a user would place them.

    ``variant``: "inner", the innermost voxel; "random", one at least 1.5 voxels inside; "none", no click.  The outer
    click lies 5 to 10 voxels outside of the object, in tissue.  The case id and ``seed`` decide alone.
    """

    def __init__(
        self, keys: KeysCollection = "seeds", *, label_key: str = "label", image_key: str = "image",
        case_key: str = "case", variant: str = "inner", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        if variant not in ("inner", "random", "none"):
            raise InputError(f"clicks are {variant!r}; expected 'inner', 'random' or 'none'")
        self.label_key, self.image_key, self.case_key = label_key, image_key, case_key
        self.variant, self.seed = variant, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with clicks."""
        done = dict(data)
        for key in self.key_iterator(done):
            if self.variant != "none" and not len(done[key].foreground):
                generator = np.random.default_rng([self.seed, zlib.crc32(str(done[self.case_key]).encode())])
                done[key] = simulate_seeds(
                    done[self.image_key], done[self.label_key], variant=self.variant, generator=generator
                )
        return done


def simulate_seeds(image: MetaTensor, mask: MetaTensor, *, variant: str, generator: np.random.Generator) -> Seeds:
    """A user's first two clicks, from an image and its true mask, both (1, X, Y, Z)."""
    voxels = image.as_tensor()[0]
    threshold = TISSUE_HU if is_ct(voxels) else TISSUE_SHARE * finite_quantiles(voxels, 0.995)[0]
    places = mask[0].as_tensor().nonzero()
    lower = (places.amin(0) - int(BAND[1]) - 2).clamp(min=0)
    upper = torch.minimum(places.amax(0) + int(BAND[1]) + 3, torch.tensor(voxels.shape))
    box = tuple(slice(int(low), int(high)) for low, high in zip(lower, upper, strict=True))
    inside, tissue = mask[0].as_tensor()[box].numpy(), (voxels[box] > threshold).numpy()
    spacing_mm = image.affine[:3, :3].double().norm(dim=0)
    clicks = first_clicks(inside, tissue, variant=variant, generator=generator, spacing=spacing_mm.tolist())
    index = torch.tensor(np.stack([np.unravel_index(node, inside.shape) for node, _ in clicks])).double() + lower
    matrix = image.affine.double()
    return make_seeds(index @ matrix[:3, :3].T + matrix[:3, 3], [kind == FOREGROUND for _, kind in clicks])


class SegmentationMaskd(MapTransform):
    """A ``Segmentation`` becomes its mask (1, X, Y, Z) uint8; ``segmentation_key`` keeps the rest."""

    def __init__(self, keys: KeysCollection, *, segmentation_key: str = "segmentation") -> None:
        super().__init__(keys)
        self.segmentation_key = segmentation_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the mask under the key."""
        done = dict(data)
        for key in self.key_iterator(done):
            done[self.segmentation_key] = done[key]
            done[key] = done[key].mask
        return done


class SaveSegmentationd(MapTransform):
    """Writes ``<case>_seg.nii.gz`` and ``<case>_seeds.mrk.json``; with ``pictures`` also ``<case>.png`` and ``.html``.

    The case id is ``data[case_key]``, or the image's file name; pictures show the truth under ``label_key``, if any.
    ``data["files"]`` lists the names written.  Raises InputError at once if pictures are wanted and matplotlib is not
    installed.
    """

    def __init__(
        self, keys: KeysCollection = "segmentation", *, output_dir: Path | str, image_key: str = "image",
        label_key: str = "label", case_key: str = "case", pictures: bool | str = False,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.output_dir, self.image_key = Path(output_dir), image_key
        self.label_key, self.case_key = label_key, case_key
        self.pictures = as_switch(pictures, "pictures")
        if self.pictures and importlib.util.find_spec("matplotlib") is None:
            raise InputError("pictures need matplotlib: pip install 'medrl[viz]'")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return a copy of the data that lists the files."""
        done = dict(data)
        image = done[self.image_key]
        case = done.get(self.case_key) or case_name(image.meta.get("filename_or_obj", "case"))
        for key in self.key_iterator(done):
            result = done[key]
            files = [self.output_dir / f"{case}{suffix}" for suffix in ("_seg.nii.gz", SUFFIX, ".png", ".html")]
            write_mask(files[0], result.mask, image)
            write_seeds(files[1], result.seeds, user_count=result.user_count)
            if self.pictures:
                shown = {"seeds": result.seeds, "title": case}
                draw_overlay(files[2], image, image.affine, result.mask, truth=done.get(self.label_key), **shown)
                write_overlay_page(files[3], image, image.affine, result.mask, user_count=result.user_count, **shown)
            done["files"] = [path.name for path in files[: 4 if self.pictures else 2]]
        return done
