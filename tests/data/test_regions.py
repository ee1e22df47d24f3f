"""Working grids of every kind of volume: flipped, permuted, oblique, anisotropic, of one slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.regions import (
    grey_levels,
    is_ct,
    region_of,
    restore_mask,
    restore_probability,
    sample_image,
    sample_mask,
    seed_map,
)
from medrl.data.seeds import make_seeds
from medrl.types import InputError

SHAPE = (14, 18, 11)
SLOPE = torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)


def voxels_ras(affine, shape=SHAPE):
    index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"), -1).double()
    matrix = torch.as_tensor(affine)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def ramp(affine, shape=SHAPE):
    """An image (1, X, Y, Z) that is linear in RAS mm, so that its value tells where a node lies."""
    return MetaTensor((voxels_ras(affine, shape) @ SLOPE).float()[None], affine=torch.as_tensor(affine))


def nodes(region):
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in region.shape), indexing="ij"), -1)
    return region.position_ras(index.reshape(-1, len(region.shape))).reshape(*region.shape, 3)


def ball(affine, centre, radius_mm, shape=SHAPE):
    return MetaTensor(
        ((voxels_ras(affine, shape) - centre).norm(dim=-1) < radius_mm)[None], affine=torch.as_tensor(affine)
    )


def test_a_small_volume_is_its_own_lattice(affine):
    image = ramp(affine)
    region = region_of(image)
    assert sorted(region.shape) == sorted(SHAPE)
    values = sample_image(image, region)
    assert torch.equal(values.flatten().sort()[0], image.as_tensor().flatten().sort()[0])  # no value is changed
    torch.testing.assert_close(values.double(), nodes(region) @ SLOPE, rtol=0, atol=1e-3)
    torch.testing.assert_close(restore_probability(values, region, image), image.as_tensor()[0], rtol=0, atol=0)
    # the axes are those nearest to right, anterior, superior
    axes = region.ras_from_index[:3, :3]
    assert (axes.abs().argmax(0) == torch.arange(3)).all()
    assert (axes.diagonal() > 0).all()
    np.testing.assert_allclose(region.spacing_mm, axes.norm(dim=0))


def test_flipped_and_permuted_copies_give_one_lattice(affine):
    image = ramp(affine)
    region = region_of(image, size=(8, 7, 6))
    flips = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])).double()
    flips[:3, 3] = torch.tensor([SHAPE[0] - 1.0, 0.0, SHAPE[2] - 1.0])
    order = [2, 0, 1]
    permuted = torch.eye(4).double()[:, [*order, 3]]
    copy = MetaTensor(
        image.as_tensor().flip(1, 3).permute(0, *(axis + 1 for axis in order)),
        affine=torch.as_tensor(affine) @ flips @ permuted,
    )
    twin = region_of(copy, size=(8, 7, 6))
    torch.testing.assert_close(twin.ras_from_index, region.ras_from_index)
    torch.testing.assert_close(sample_image(copy, twin), sample_image(image, region))


def test_large_volumes_are_thinned_in_place(affine):
    image = ramp(affine)
    region = region_of(image, largest=500)
    assert 250 < np.prod(region.shape) <= 500
    values = sample_image(image, region).double()
    inner = (slice(1, -1),) * 3  # at the border the low-pass sees one side only
    torch.testing.assert_close(values[inner], (nodes(region) @ SLOPE)[inner], rtol=0, atol=0.02)
    restored = restore_probability((nodes(region) @ SLOPE).float(), region, image)
    inner = (slice(3, -3),) * 3
    torch.testing.assert_close(restored[inner], image.as_tensor()[0][inner], rtol=0, atol=0.02)
    # the finest axes are thinned first, so that the nodes become isotropic
    if max(region.shape) > 1:
        spacing = torch.as_tensor(affine)[:3, :3].norm(dim=0)
        assert max(region.spacing_mm) / min(region.spacing_mm) < max(float(spacing.max() / spacing.min()), 1.6) + 1e-6
    assert min(region_of(image, spacing_mm=4.0).spacing_mm) >= 4.0 - 1e-9


def test_anisotropic_volumes_keep_their_thick_slices():
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    region = region_of(ramp(affine, (60, 60, 12)), largest=6000)
    assert region.shape[2] == 12
    np.testing.assert_allclose(region.spacing_mm[2], 5.0)
    assert region.spacing_mm[0] == pytest.approx(30 / region.shape[0])


def test_a_size_is_met_exactly(affine):
    image = ramp(affine)
    region = region_of(image, size=(10, 10, 10))
    assert region.shape == (10, 10, 10)
    assert sample_image(image, region).isfinite().all()
    region = region_of(image, size=(10, 10, 10), isotropic=True)
    assert max(region.spacing_mm) == pytest.approx(min(region.spacing_mm))
    values = sample_image(image, region)
    assert values.isnan().any()  # the shorter axes reach beyond the image
    assert (grey_levels(values, ct=False)[values.isnan()] == 0).all()
    centre = torch.tensor([[(n - 1) / 2 for n in region.shape]])
    middle = (torch.as_tensor(affine) @ torch.tensor([*((n - 1) / 2 for n in SHAPE), 1.0]).double())[:3]
    torch.testing.assert_close(region.position_ras(centre)[0], middle)
    with pytest.raises(InputError, match="expected 3 sides"):
        region_of(image, size=(10, 10))


def test_clicks_bound_the_region(affine):
    shape = (60, 50, 40)
    image = ramp(affine, shape)
    spacing = image.affine[:3, :3].norm(dim=0)
    click = (torch.as_tensor(affine) @ torch.tensor([20.0, 22.0, 18.0, 1.0]).double())[:3]
    margin = 8.0
    region = region_of(image, around=click[None], margin_mm=margin)
    sides = sorted((torch.tensor(region.shape) * torch.tensor(region.spacing_mm)).tolist())
    assert sides[-1] <= 2 * margin + 2 * float(spacing.max()) + 1e-6
    assert sides[0] >= 2 * margin - 2 * float(spacing.max())
    values = sample_image(image, region)
    torch.testing.assert_close(values.double(), nodes(region) @ SLOPE, rtol=0, atol=1e-2)
    assert (region.node(click[None]) >= 0).all()
    assert region_of(image, around=click[None], margin_mm=500.0).shape == region_of(image).shape
    restored = restore_mask(torch.ones(region.shape), region, image)
    assert int(restored.sum()) == np.prod(region.shape)  # nothing outside the box
    assert restored[20, 22, 18]


def test_masks_go_there_and_back(affine):
    centre = voxels_ras(affine)[7, 9, 5]
    mask = ball(affine, centre, 5.0)
    region = region_of(mask)
    assert torch.equal(restore_mask(sample_mask(mask, region).float(), region, mask), mask.as_tensor()[0])
    fine = region_of(mask, size=(40, 40, 40))
    back = restore_mask(sample_mask(mask, fine).float(), fine, mask)
    overlap = (back & mask[0].as_tensor()).sum() / (back | mask[0].as_tensor()).sum()
    assert overlap > 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_of_a_volume(affine, axis):
    image = ramp(affine)
    region = region_of(image, plane=(axis, 4))
    assert len(region.shape) == 2
    expected = image.as_tensor()[0].select(axis, 4)
    values = sample_image(image, region)
    assert torch.equal(values.flatten().sort()[0], expected.flatten().sort()[0])
    torch.testing.assert_close(values.double(), nodes(region) @ SLOPE, rtol=0, atol=1e-3)
    restored = restore_probability(values, region, image)
    assert torch.equal(restored.select(axis, 4), expected)
    assert int((restored != 0).any(dim=tuple({0, 1, 2} - {axis})).sum()) == 1
    on, off = voxels_ras(affine)[[4, 5], [4, 5], [4, 5]]
    assert (region.node(torch.stack([on, off])) >= 0).tolist() == [True, False]
    with pytest.raises(InputError, match=f"slice {SHAPE[axis]} of axis {axis}: expected 0 to {SHAPE[axis] - 1}"):
        region_of(image, plane=(axis, SHAPE[axis]))


@pytest.mark.parametrize("shape", [(20, 16, 1), (20, 1, 16), (1, 20, 16)])
def test_a_volume_of_one_slice_gives_a_slice(affine, shape):
    image = ramp(affine, shape)
    region = region_of(image)
    assert sorted(region.shape) == [16, 20]
    values = sample_image(image, region)
    torch.testing.assert_close(values.double(), nodes(region) @ SLOPE, rtol=0, atol=1e-3)
    assert torch.equal(restore_probability(values, region, image), image.as_tensor()[0])
    region = region_of(image, size=(84, 84))
    assert sample_image(image, region).isfinite().all()
    assert restore_mask(torch.ones(84, 84), region, image).all()


def test_nodes_and_indices_agree(affine):
    region = region_of(ramp(affine), size=(6, 5, 4))
    places = nodes(region).reshape(-1, 3)
    assert region.node(places).tolist() == list(range(120))
    torch.testing.assert_close(region.position_ras(region.index(places)), places)
    assert region.node(places[:1] + 1000).tolist() == [-1]


def test_seeds_are_painted(affine):
    image = ramp(affine)
    region = region_of(image)
    places = nodes(region)
    seeds = make_seeds(
        torch.stack([places[1, 2, 3], places[4, 4, 4], places[1, 2, 3], places[0, 0, 0] - 500]), [1, 0, 0, 1]
    )
    painted = seed_map(seeds, region)
    assert painted.dtype == torch.int8
    assert painted[1, 2, 3] == 2  # the later of two
    assert painted[4, 4, 4] == 2
    assert int((painted > 0).sum()) == 2
    assert not seed_map(make_seeds(), region).any()


def test_grey_levels():
    hu = torch.tensor([[-1000.0, -200.0, 50.0], [300.0, 2000.0, float("nan")]])
    assert grey_levels(hu, ct=True).tolist() == [[1, 1, 128], [255, 255, 0]]
    ramp_values = torch.arange(101.0)
    levels = grey_levels(ramp_values, ct=False)
    assert (levels[0], levels[1], levels[50], levels[99], levels[100]) == (1, 1, 128, 255, 255)
    assert grey_levels(torch.full((3, 3), 7.0), ct=False).tolist() == [[128] * 3] * 3
    few = torch.zeros(1000)
    few[3] = 9.0  # the quantiles are equal, the values are not
    assert grey_levels(few, ct=False)[[2, 3]].tolist() == [1, 255]
    assert not grey_levels(torch.full((4,), float("nan")), ct=False).any()
    assert is_ct(torch.tensor([-1000.0, 40.0]))
    assert not is_ct(torch.tensor([0.0, 900.0]))


def test_a_region_of_another_image_is_refused():
    tilted = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with pytest.raises(ValueError, match="lay the region over this image"):
        sample_image(ramp(tilted), region_of(ramp(np.eye(4))))
