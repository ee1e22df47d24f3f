"""MONAI dictionary transforms over the readers, for a bundle's ``preprocessing``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from medrl.data.read import read_image
from medrl.data.slices import Policy


class LoadImageStrictd(MapTransform):
    """`read_image` as a dictionary transform; what is a tensor already is kept.

    MONAI's own ``LoadImaged`` falls back to lenient readers, which accept a series with a missing or tilted slice.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, *, policy: Policy = "refuse") -> None:
        super().__init__(keys, allow_missing_keys)
        self.policy = policy

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy with the paths under ``keys`` replaced by volumes."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if not isinstance(loaded[key], Tensor):
                loaded[key] = read_image(loaded[key], policy=self.policy)
        return loaded
