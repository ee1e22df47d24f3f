"""Training samples: both images show the same tissue where the sample says so, whatever was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from probes import stored_image

from medrl.data.pair_images import SPACING_MM, prepare
from medrl.data.pair_samples import FEWEST, AlignedPair, PairSampler, Variety
from medrl.geometry.feature_tables import FeatureTable
from medrl.types import InputError

SLOPE_HU = 12.0  # a mm


def coded(axis: int, generator: np.random.Generator, radius_mm: float = 50.0) -> AlignedPair:
    """Two CTs of one ball whose HU tell the place along an axis, stored differently."""

    def ball(place):
        return torch.where(place.norm(dim=1) < radius_mm, 400 + SLOPE_HU * place[:, axis], -1000.0)

    images = [prepare(stored_image(ball, generator, spacing)) for spacing in ((3.0, 3.0, 3.0), (2.0, 3.5, 4.5))]
    return AlignedPair("coded", "coded", *images)


def read(image: torch.Tensor, place_mm: torch.Tensor) -> torch.Tensor:
    """HU at places of a CT as a network sees it."""
    table = FeatureTable([(image[1:] + 1) * 1000], SPACING_MM)
    return table.sample(torch.zeros(1), place_mm[None])[0][0, :, 0] - 1000


def there(matrix: torch.Tensor, place_mm: torch.Tensor) -> torch.Tensor:
    return place_mm @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shared_places_are_the_same_tissue(axis, generator):
    variety = Variety(own=0.0, same=1.0, any_moving=1.0, any_fixed=1.0, voxels=36)
    sampler = PairSampler([coded(axis, generator)], variety=variety, seed=axis)
    right, wrong = [], []
    for _ in range(4):
        sample = sampler.draw()
        assert sample.modalities == ("ct", "ct")
        assert sample.fixed.shape[1:] == sample.tissue.shape
        assert all(side % 12 == 0 and 24 <= side <= 36 for side in (*sample.fixed.shape[1:], *sample.moving.shape[1:]))
        assert sample.shared_mm.shape == (variety.lattice, 3)
        matrix = sample.moving_from_fixed
        assert 1 / 1.26 < float(torch.linalg.det(matrix[:3, :3])) ** (1 / 3) < 1.26
        fixed = read(sample.fixed, sample.shared_mm)
        right.append((read(sample.moving, there(matrix, sample.shared_mm)) - fixed).abs().median())
        wrong.append((read(sample.moving, there(torch.linalg.inv(matrix), sample.shared_mm)) - fixed).abs().median())
    # noise and offsets are up to 40 HU, 3 mm
    assert max(right) < 60
    assert max(wrong) > 150


def test_one_seed_one_sequence(generator):
    pair = coded(0, generator)
    first, second = (PairSampler([pair], seed=3) for _ in range(2))
    for _ in range(2):
        for a, b in zip(first.draw(), second.draw(), strict=True):
            assert a == b if isinstance(a, tuple) else torch.equal(a, b)
    other = PairSampler([pair], seed=4).draw()
    assert not torch.equal(other.moving_from_fixed, second.draw().moving_from_fixed)


def test_one_image_in_two_contrasts(generator):
    """Samples of one image have the second contrast made up, as MR, and sometimes the first."""
    sampler = PairSampler([coded(0, generator)], variety=Variety(own=1.0, voxels=24), seed=0)
    samples = [sampler.draw() for _ in range(8)]
    assert {sample.modalities for sample in samples} == {("ct", "mr"), ("mr", "mr")}
    assert not any(torch.equal(sample.fixed, sample.moving) for sample in samples)


def test_mixed_pairs_come_as_they_are(generator):
    ct = coded(0, generator).fixed
    mr = prepare(stored_image(lambda place: 700.0 * (place.norm(dim=1) < 45), generator, (4.0, 3.0, 4.0)))
    sampler = PairSampler([AlignedPair("a", "a", ct, mr)], variety=Variety(own=0.0, same=0.5, voxels=24), seed=0)
    assert {sampler.draw().modalities for _ in range(3)} == {("ct", "mr")}


def test_images_that_share_no_tissue_are_refused(generator):
    pair = coded(0, generator, radius_mm=9.0)  # less than FEWEST voxels
    assert 4 / 3 * 3.15 * (9 / SPACING_MM) ** 3 < FEWEST
    with pytest.raises(InputError, match="shared tissue"):
        PairSampler([pair], variety=Variety(voxels=24), seed=0).draw()
