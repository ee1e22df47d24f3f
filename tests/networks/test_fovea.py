"""The foveal network: its lattice of places and its votes."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.patches import Pyramid
from medrl.networks.fovea import FoveaNet


def build(size: int = 9, strides: tuple[int, ...] = (1, 2, 4)) -> FoveaNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FoveaNet(landmarks=2, strides=strides, spacing_mm=2.0, size=size, width=4, hidden=16).eval()


@pytest.mark.parametrize("size", [9, 17, 25])
def test_sizes_whose_levels_nest_work(size):
    image = torch.zeros(2, 2, size, size, size, dtype=torch.uint8)
    assert build(size, (1, 2))(image).shape == (2, 2, 26)


@pytest.mark.parametrize(("size", "strides"), [(8, (1, 2)), (11, (1, 2)), (5, (1, 2)), (13, (1, 2)), (9, (1, 4))])
def test_other_sizes_and_strides_are_refused(size, strides):
    with pytest.raises(ValueError, match="FoveaNet needs"):
        build(size, strides)


def test_votes_are_a_distribution_over_all_places(torch_generator):
    network = build()
    image = torch.randint(256, (3, 3, 9, 9, 9), generator=torch_generator, dtype=torch.uint8)
    _, place = network.locate(image)
    assert place.shape == (3, 2, 3 * 5**3 + 1)
    torch.testing.assert_close(place.exp().sum(-1), torch.ones(3, 2))


def test_offset_is_the_expected_place():
    network = build()
    with torch.no_grad():
        for heat in network.heat:
            heat.weight.zero_()
            heat.bias.zero_()
        network.place_head.weight.zero_()
        network.place_head.bias.zero_()
        network.heat[2].bias[0] = 50.0  # landmark 0: evenly somewhere on the finest lattice
        second = network.place_head.bias.reshape(2, -1)[1]
        second[-1] = 50.0  # landmark 1: elsewhere, at a regressed place
        second[:3] = torch.tensor([1.0, -2.0, 0.5])
        offset = network.split(network(torch.zeros(1, 3, 9, 9, 9, dtype=torch.uint8))).offset_mm[0]
    torch.testing.assert_close(offset[0], torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(offset[1], torch.tensor([1.0, -2.0, 0.5]) * network.unit_mm)


def test_lattice_places_are_where_the_crop_is_read():
    """A single bright voxel at a lattice place of the finest level, read through a real pyramid."""
    network = build()
    count = 5**3
    finest = network.places_mm[2 * count : 3 * count]
    volume = torch.ones(33, 33, 33, dtype=torch.uint8)
    pyramid = Pyramid([volume], spacing_mm=2.0, strides=(1,))
    case = torch.zeros(1, dtype=torch.int64)
    for n in (0, 31, 62, 124):
        bright = volume.clone()
        voxel = pyramid.nearest_voxel(case, finest[n][None])[0]
        bright[tuple(voxel)] = 255
        pyramid.replace(0, bright)
        crop = pyramid.crop(case, torch.zeros(1, 3), 9)[0, 0]
        index = (crop == 255).nonzero()[0]
        torch.testing.assert_close((index - 4) * 2.0, finest[n])
        # the stem of stride 2 puts its output voxel n over input voxel 2 n
        assert bool((index % 2 == 0).all())


def test_place_loss_by_hand():
    network = build()
    count = 5**3
    place = torch.full((1, 1, 3 * count + 1), -9.0)
    on_a_place, middle, beyond = (torch.tensor([[[x, 0.0, 0.0]]]) for x in (4.0, 2.0, 500.0))
    finest = network.places_mm[2 * count : 3 * count]
    first = 2 * count + int((finest - on_a_place[0, 0]).norm(dim=1).argmin())
    second = 2 * count + int(finest.norm(dim=1).argmin())
    place[0, 0, first], place[0, 0, second], place[0, 0, -1] = -1.0, -3.0, -0.5
    assert network.place_loss(place, on_a_place).item() == pytest.approx(1.0)
    assert network.place_loss(place, middle).item() == pytest.approx(2.0)  # half of each
    assert network.place_loss(place, beyond).item() == pytest.approx(0.5)
    coarse = torch.tensor([[[24.0, 0.0, 0.0]]])  # beyond the finest (8 mm) and the middle level (16 mm)
    widest = network.places_mm[:count]
    # cells of 16 mm: between the places at 16 and 32 mm
    near, far = (int((widest - torch.tensor([x, 0.0, 0.0])).norm(dim=1).argmin()) for x in (16.0, 32.0))
    place[0, 0, near], place[0, 0, far] = -2.0, -4.0
    assert network.place_loss(place, coarse).item() == pytest.approx(3.0)
