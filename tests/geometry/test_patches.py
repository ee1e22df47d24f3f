"""Crops: by slices, by one gather, and by hand."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from probes import smooth_volume

from medrl.geometry.grids import OUTSIDE
from medrl.geometry.patches import Pyramid

FIRST = torch.zeros(1, dtype=torch.int16)


def build(generator: torch.Generator, strides: tuple[int, ...] = (1, 2, 4)) -> Pyramid:
    shapes = [(16, 20, 24), (28, 12, 16), (8, 32, 20)]
    return Pyramid([smooth_volume(s, generator) for s in shapes], spacing_mm=1.5, strides=strides)


def random_places(pyramid: Pyramid, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    case = torch.randint(len(pyramid.shape), (count,), generator=generator)
    place = torch.randn(count, 3, generator=generator) * pyramid.half_size_mm()[case]
    place[: count // 8] *= 50  # far outside
    return case, place


@pytest.mark.parametrize("size", [1, 5, 8, 17])
def test_slices_equal_gather(size, torch_generator):
    pyramid = build(torch_generator)
    case, place = random_places(pyramid, 300, torch_generator)
    voxel = pyramid.nearest_voxel(case, place)
    assert torch.equal(pyramid._crop_slices(case, voxel, size), pyramid._crop_gather(case, voxel, size))


def test_finest_crop_equals_a_padded_volume(torch_generator):
    volume = smooth_volume((9, 11, 10), torch_generator)
    pyramid = Pyramid([volume], spacing_mm=1.0, strides=(1,))
    padded = np.pad(volume.numpy(), 40, constant_values=OUTSIDE)
    for voxel in ([0, 0, 0], [8, 10, 9], [4, 5, 5], [-3, 0, 12], [-30, 4, 4], [4, 36, 4]):
        place = pyramid.voxel_position(FIRST, torch.tensor([voxel]))
        crop = pyramid.crop(FIRST, place, 7)[0, 0].numpy()
        x, y, z = (v + 40 for v in voxel)
        assert np.array_equal(crop, padded[x - 3 : x + 4, y - 3 : y + 4, z - 3 : z + 4])


def test_index_zero_is_reachable(torch_generator):
    """gml16/rl-medical: the bounds test `<= 0` makes index 0 unreachable."""
    volume = smooth_volume((8, 8, 8), torch_generator)
    pyramid = Pyramid([volume], spacing_mm=2.0, strides=(1,))
    corner = -(pyramid.half_size_mm()) + 1.0
    assert pyramid.crop(FIRST, corner, 1).item() == volume[0, 0, 0]
    assert pyramid.crop(FIRST, -corner, 1).item() == volume[-1, -1, -1]
    assert pyramid.crop(FIRST, corner - 2.0, 1).item() == OUTSIDE


def test_positions_and_voxels_undo_each_other(torch_generator):
    pyramid = build(torch_generator)
    case = torch.tensor([0, 1, 2]).repeat(20)
    voxel = torch.randint(-5, 30, (60, 3), generator=torch_generator)
    assert torch.equal(pyramid.nearest_voxel(case, pyramid.voxel_position(case, voxel)), voxel)
    nudged = pyramid.voxel_position(case, voxel) + 0.49 * 1.5
    assert torch.equal(pyramid.nearest_voxel(case, nudged), voxel)


def test_levels_share_their_centre():
    """A blob at the crop's centre stays at the centre of every level, to within a quarter of the level's voxel."""
    axes = torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij")
    for centre in ((32, 32, 32), (31, 30, 33), (29, 35, 28)):
        distance = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
        volume = (1 + 254 * torch.exp(-distance / 72)).round().to(torch.uint8)
        pyramid = Pyramid([volume], spacing_mm=1.0, strides=(1, 2, 4, 8))
        place = pyramid.voxel_position(FIRST, torch.tensor([centre]))
        crop = (pyramid.crop(FIRST, place, 9)[0].double() - 1).clamp(min=0)
        weight = crop / crop.sum((1, 2, 3), keepdim=True)
        reach = torch.arange(9.0).double() - 4
        offset = torch.stack([(weight.sum(axes) * reach).sum(-1) for axes in [(2, 3), (1, 3), (1, 2)]], -1)
        assert float(offset.abs().max()) < 0.25


def test_fine_patterns_vanish_at_coarse_levels(torch_generator):
    """gml16/rl-medical takes every third voxel without a low-pass."""
    checkers = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij")).sum(0) % 2
    volume = torch.where(checkers.bool(), 255, 1).to(torch.uint8)
    pyramid = Pyramid([volume], spacing_mm=1.0)
    fine, middle, coarse = pyramid.crop(FIRST, torch.zeros(1, 3), 5)[0]
    assert int(fine.max()) - int(fine.min()) == 254
    assert set(middle.unique().tolist()) | set(coarse.unique().tolist()) <= {127, 128, 129}


def test_replace_changes_one_volume_only(torch_generator):
    pyramid = build(torch_generator)
    case, place = random_places(pyramid, 90, torch_generator)
    before = pyramid.crop(case, place, 5)
    other = smooth_volume((28, 12, 16), torch_generator)
    pyramid.replace(1, other)
    after = pyramid.crop(case, place, 5)
    assert torch.equal(before[case != 1], after[case != 1])
    fresh = Pyramid([other], spacing_mm=1.5).crop(FIRST.expand(int((case == 1).sum())), place[case == 1], 5)
    assert torch.equal(after[case == 1], fresh)
    with pytest.raises(ValueError, match="successor"):
        pyramid.replace(1, other.transpose(0, 1))


def test_copies_look_at_their_own_volumes(torch_generator):
    pyramid = build(torch_generator)
    other = smooth_volume((16, 20, 24), torch_generator)
    for twin in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid))):
        before = pyramid.crop(FIRST, torch.zeros(1, 3), 9)
        twin.replace(0, other)
        assert torch.equal(pyramid.crop(FIRST, torch.zeros(1, 3), 9), before)
        assert not torch.equal(twin.crop(FIRST, torch.zeros(1, 3), 9), before)


def test_wrong_strides_and_sides_are_refused(torch_generator):
    volume = smooth_volume((8, 8, 10), torch_generator)
    with pytest.raises(ValueError, match="powers of two"):
        Pyramid([volume], spacing_mm=1.0, strides=(1, 3))
    with pytest.raises(ValueError, match="multiples of 4"):
        Pyramid([volume], spacing_mm=1.0, strides=(1, 8))
