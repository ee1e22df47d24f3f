"""Interactive segmentation as a MONAI inferer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from medrl.data.seeds import Seeds, check_seeds, make_seeds
from medrl.inference.segmentation import LATTICE, Rules, Segmentation
from medrl.inference.session import Session
from medrl.inference.slicewise import segment_slices
from medrl.types import InputError


class SeedingInferer(Inferer):
    """A whole session on every image: the first click of each kind starts it, further ones correct its mask.

    ``mode`` is "volume", "slices" (slice by slice, by the agent for slices), or "auto", which is "volume".  A volume of
    one slice is always the agent's for slices.  ``counts``: for assessments, keep the masks after so many of the
    agent's seeds, and those without an agent.  Other options are those of `Rules`.
    """

    def __init__(self, *, mode: str = "auto", counts: Sequence[int] = (), **rules: Any) -> None:
        super().__init__()
        if mode not in ("auto", "volume", "slices"):
            raise InputError(f"mode is {mode!r}; expected 'auto', 'volume' or 'slices'")
        self.mode, self.counts = mode, tuple(counts)
        rules["lattice"] = {int(axes): tuple(size) for axes, size in rules.get("lattice", LATTICE).items()}
        self.rules = Rules(**rules)

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, seeds: Sequence[Seeds | None] | None = None, **kwargs: Any
    ) -> list[Segmentation]:
        """Segment a batch (B, 1, X, Y, Z) of MetaTensors, with the user's clicks on each; ``affine`` in RAS mm."""
        affines = inputs.affine if inputs.affine.ndim == 3 else inputs.affine[None].expand(len(inputs), 4, 4)
        seeds = [None] * len(inputs) if seeds is None else seeds
        volumes = torch.as_tensor(inputs).as_subclass(Tensor)
        images = [MetaTensor(volume, affine=affine) for volume, affine in zip(volumes, affines, strict=True)]
        return [self.segment(*case, network) for case in zip(images, seeds, strict=True)]

    def segment(self, image: MetaTensor, seeds: Seeds | None, network: nn.Module) -> Segmentation:
        """Segment one image (1, X, Y, Z).

        Raises:
            InputError: clicks outside the image or of both kinds in one voxel, or no object is found.
        """
        seeds = make_seeds() if seeds is None else seeds
        check_seeds(seeds, image, "seeds")
        if self.mode == "slices" and 1 not in image.shape[1:]:
            result = segment_slices(image, seeds, network, self.rules)
        else:
            result = self._segment_at_once(image, seeds, network)
        if not bool(result.mask.any()):
            raise InputError("no object was found; click inside of it, and run again")
        return result

    def _segment_at_once(self, image: MetaTensor, seeds: Seeds, network: nn.Module) -> Segmentation:
        first, later = split_clicks(seeds)
        session = Session(image, network, self.rules)
        session.start(first)
        session.run()
        masks = session.masks(self.counts) if self.counts else {}
        for position, foreground in zip(later.position_ras, later.foreground.tolist(), strict=True):
            session.click(position, foreground)
        return replace(session.result(), masks=masks)


def split_clicks(seeds: Seeds) -> tuple[Seeds, Seeds]:
    """The first click of each kind, and all others, both in order."""
    kinds = seeds.foreground.tolist()
    first = torch.tensor([kind not in kinds[:n] for n, kind in enumerate(kinds)], dtype=torch.bool)
    return Seeds(*(part[first] for part in seeds)), Seeds(*(part[~first] for part in seeds))
