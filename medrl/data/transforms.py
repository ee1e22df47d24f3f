"""MONAI dictionary transforms over the readers, for a bundle's ``preprocessing``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from medrl.data.read import read_image
from medrl.data.seeds import Seeds, check_seeds, make_seeds, read_seeds
from medrl.data.slices import Policy


class LoadImageStrictd(MapTransform):
    """`read_image` as a dictionary transform; what is a tensor already is kept.  ``one_slice``: read single slices too.

    MONAI's own ``LoadImaged`` falls back to lenient readers, which accept a series with a missing or tilted slice.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        *,
        policy: Policy = "refuse",
        one_slice: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.policy, self.one_slice = policy, one_slice

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy with the paths under ``keys`` replaced by volumes."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if not isinstance(loaded[key], Tensor):
                loaded[key] = read_image(loaded[key], policy=self.policy, one_slice=self.one_slice)
        return loaded


class LoadSeedsd(MapTransform):
    """`read_seeds` as a dictionary transform, checked against the image under ``image_key``.

    A key that is absent, or None, becomes no seeds; what are seeds already are checked only.
    """

    def __init__(self, keys: KeysCollection, *, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy with the paths under ``keys`` replaced by seeds; InputError names the file of wrong ones."""
        loaded = dict(data)
        for key in self.keys:
            given = loaded.get(key)
            if given is None:
                loaded[key] = make_seeds()
                continue
            seeds = given if isinstance(given, Seeds) else read_seeds(given)
            check_seeds(seeds, loaded[self.image_key], "seeds" if seeds is given else Path(given).name)
            loaded[key] = seeds
        return loaded
