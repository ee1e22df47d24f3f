"""Masked volumes as a pool of varied seeding cases that is renewed while training, and as fixed cases to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medrl.data.click_samples import TISSUE_HU, TISSUE_MR, draw_sample, make_volumes
from medrl.data.clicks import first_clicks
from medrl.data.masks import MaskCase, read_mask_cases
from medrl.data.planes import finite_quantiles
from medrl.data.regions import grey_levels, is_ct, region_of, sample_image, sample_mask
from medrl.data.seed_cases import SeedCases

VARIANTS = ("inner", "random")  # of the user's clicks
Drawn = tuple[Tensor, Tensor, Tensor]  # image (*S) uint8, truth (*S) bool, clicks (P, 2)


class SeedPool:
    """``count`` cases cut at random from the volumes of some dataset folders.

    ``shape`` of two sides gives slices, of three gives boxes; ``shares`` says how often each folder is drawn from
    (default: evenly).  ``plain`` of the cases show the whole image as inference sees it, the others are varied freely:
    see ``medrl.data.click_samples.draw_sample``, also for ``upright``.  A case has a pair of clicks of each variant.
    """

    def __init__(
        self, dataset_dirs: Sequence[Path | str], *, shape: Sequence[int] = (84, 84), grid: Sequence[int] = (20, 20),
        count: int = 240, shares: Sequence[float] | None = None, plain: float = 0.6, upright: float = 0.7,
        section: str = "training", seed: int = 0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.shape, self.plain, self.upright = tuple(shape), plain, upright
        chances = np.ones(len(dataset_dirs)) if shares is None else np.asarray(shares, dtype=float)
        self.chances = chances / chances.sum()
        self.volumes = [make_volumes(read_mask_cases(folder, section), Path(folder).name) for folder in dataset_dirs]
        self.generator = torch.Generator().manual_seed(seed)
        drawn = [self._draw(_numpy_generator(self.generator)) for _ in range(count)]
        self.cases = stack_cases(drawn, grid=grid, device=device)

    def refresh(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` random cases anew; returns their indices."""
        generator = self.generator if generator is None else generator
        indices = torch.randperm(len(self.cases), generator=generator)[:count]
        for index in indices.tolist():
            self.cases.replace(index, *self._draw(_numpy_generator(generator)))
        return indices

    def _draw(self, generator: np.random.Generator) -> Drawn:
        for _ in range(20):
            group = self.volumes[int(generator.choice(len(self.volumes), p=self.chances))]
            volume = group[int(generator.integers(len(group)))]
            try:
                sample = draw_sample(volume, self.shape, generator, upright=self.upright, plain=self.plain)
            except ValueError:
                continue  # nothing of the object fell on the lattice
            return sample.image, sample.mask, _clicks(sample.mask, sample.tissue, generator)
        raise ValueError("20 draws in turn held no object: check the masks of the dataset")


def fixed_cases(
    cases: Sequence[MaskCase], *, shape: Sequence[int], grid: Sequence[int], seed: int = 0,
    device: torch.device | str = "cpu",
) -> SeedCases:  # fmt: skip
    """Each volume once and unvaried: in 2D its axial slice with most of the object, in 3D all of it."""
    drawn = []
    for case in cases:
        region = largest_slice(case, shape) if len(shape) == 2 else region_of(case.image, size=shape)
        values = sample_image(case.image, region)
        ct = is_ct(case.image)
        bright = TISSUE_HU if ct else TISSUE_MR * float(finite_quantiles(values, 0.0, 0.995)[1])
        mask = sample_mask(case.mask, region)
        clicks = _clicks(mask, values > bright, np.random.default_rng([seed, len(drawn)]))
        drawn.append((grey_levels(values, ct=ct), mask, clicks))
    return stack_cases(drawn, grid=grid, names=[case.name for case in cases], device=device)


def largest_slice(case: MaskCase, shape: Sequence[int]):
    """The region of a volume's axial slice with most of the object, on ``shape`` nodes."""
    axis = int(case.image.affine[2, :3].abs().argmax())  # the storage axis nearest to superior
    others = [n for n in range(3) if n != axis]
    index = int(case.mask[0].sum(others).argmax())
    return region_of(case.image, plane=(axis, index), size=shape)


def stack_cases(
    drawn: Sequence[Drawn], *, grid: Sequence[int], names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> SeedCases:  # fmt: skip
    """Seeding cases of drawn images, truths and clicks."""
    images, truths, clicks = (torch.stack(list(part)) for part in zip(*drawn, strict=True))
    return SeedCases(images, truths, clicks, grid=grid, names=names, device=device)


def _clicks(mask: Tensor, tissue: Tensor, generator: np.random.Generator) -> Tensor:
    """A pair of clicks (P, 2) of each variant."""
    pairs = [first_clicks(mask.numpy(), tissue.numpy(), variant=v, generator=generator) for v in VARIANTS]
    return torch.tensor([[node for node, _ in pair] for pair in pairs])


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
