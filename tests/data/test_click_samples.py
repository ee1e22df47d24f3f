"""Training samples of click networks: the lattice reads the right places of flipped, oblique, anisotropic volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.click_samples import draw_sample, make_volume
from medrl.data.masks import MaskCase
from medrl.data.regions import region_of

SHAPE = (34, 40, 30)


def case(affine, *, ct=False, low=(9, 12, 8), high=(24, 30, 21)):
    """A bright box on a darker ground, with a bright rim on the lower side of the first axis."""
    image = torch.full(SHAPE, 200.0)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask[box] = True
    image[box] = 600.0
    if ct:
        image = image - 1100.0
        image[mask] = 60.0
    matrix = torch.as_tensor(affine)
    return MaskCase("box", "box", MetaTensor(image[None], affine=matrix), MetaTensor(mask[None], affine=matrix))


@pytest.mark.parametrize("ct", [True, False])
def test_volumes_know_their_object_and_get_coarser(affine, ct):
    made = case(affine, ct=ct)
    volume = make_volume(made, "boxes")
    assert (volume.group, volume.ct) == ("boxes", ct)
    extent = (volume.box[1] - volume.box[0] + 1) * volume.spacing
    canonical = np.abs(affine[:3, :3]) @ np.array([15.0, 18.0, 13.0])
    if np.count_nonzero(np.abs(affine[:3, :3]) > 1e-6) == 3:  # not oblique
        np.testing.assert_allclose(extent, canonical, rtol=1e-5)
    assert volume.shape == region_of(made.image).shape
    assert -1000 < volume.bright < (0 if ct else 600)
    previous = volume.levels[0]
    torch.testing.assert_close(previous.values[1].sum(), made.mask.sum().float())
    for level in volume.levels[1:]:
        step = level.voxel * volume.spacing
        assert float(step.max() / step.min()) <= max(2.0, float(volume.spacing.max() / volume.spacing.min()))
        share = level.values[1].mean() / previous.values[1].mean()
        assert 0.8 < float(share) < 1.25  # what does not fill a coarse voxel at the upper ends is cut
        previous = level


@pytest.mark.parametrize("shape", [(32, 40, 24), (40, 40)])
@pytest.mark.parametrize("plain", [0.0, 1.0])
def test_samples_hold_the_object_and_its_grey(affine, shape, plain, generator):
    volume = make_volume(case(affine), "boxes")
    shares = []
    for _ in range(12):
        sample = draw_sample(volume, shape, generator, plain=plain)
        assert sample.image.shape == sample.mask.shape == sample.tissue.shape == shape
        assert (sample.image.dtype, sample.mask.dtype) == (torch.uint8, torch.bool)
        assert len(sample.voxels_per_node) == len(shape)
        inside, outside = sample.mask, ~sample.mask & (sample.image > 0)
        contrast = abs(float(sample.image[inside].float().mean() - sample.image[outside].float().mean()))
        assert contrast > 30  # the mask lies on the box, whatever the turn
        shares.append(float(sample.mask.float().mean()))
    assert max(shares) > (1.2 if plain else 2.0) * min(shares)  # zoomed


def test_a_plain_sample_shows_the_whole_volume_at_its_size(affine, generator):
    made = case(affine)
    volume = make_volume(made, "boxes")
    expected = float(made.mask.float().mean())
    shares = [float(draw_sample(volume, volume.shape, generator, plain=1.0).mask.float().mean()) for _ in range(20)]
    assert np.mean(shares) == pytest.approx(expected, rel=0.2)
    steps = [draw_sample(volume, volume.shape, generator, plain=1.0).voxels_per_node for _ in range(5)]
    assert torch.stack(steps).log().abs().mean() < 0.8


def test_lesions_replace_the_object(affine, generator):
    volume = make_volume(case(affine), "boxes")

    def middles(lesion):
        samples = [draw_sample(volume, (32, 40, 24), generator, plain=1.0, lesion=lesion) for _ in range(12)]
        return torch.stack([sample.mask.nonzero().float().mean(0) for sample in samples])

    places, boxes = middles(1.0), middles(0.0)
    assert places.std(0).mean() > 1.5 * boxes.std(0).mean()


def test_the_same_generator_draws_the_same(affine):
    volume = make_volume(case(affine), "boxes")
    one, two = (draw_sample(volume, (24, 24, 24), np.random.default_rng(5), lesion=0.5) for _ in range(2))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.mask, two.mask)


def test_slices_are_no_training_volumes():
    image = MetaTensor(torch.rand(1, 20, 20, 1), affine=torch.eye(4))
    with pytest.raises(ValueError, match="one slice"):
        make_volume(MaskCase("flat", "flat", image, MetaTensor(image.as_tensor() > 0.5, affine=torch.eye(4))), "flat")
