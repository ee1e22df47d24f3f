"""Simulated clicks lie where a user would click, and their channels say where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from medrl.data.clicks import Clicks, click_input, error_clicks, first_clicks, stack_clicks
from medrl.data.seeds import BACKGROUND, FOREGROUND


def ball(shape, centre, radius, scale=None):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    scale = np.ones(len(shape)) if scale is None else np.asarray(scale)
    return np.linalg.norm((index - centre) * scale, axis=-1) <= radius


@pytest.mark.parametrize(("shape", "centre"), [((40, 44), (15, 20)), ((26, 30, 28), (12, 14, 13))])
@pytest.mark.parametrize("variant", ["inner", "random"])
def test_the_first_clicks_keep_their_distance_from_the_boundary(shape, centre, variant, generator):
    mask = ball(shape, centre, 6.0)
    tissue = np.ones_like(mask)
    tissue[: shape[0] // 3] = False
    inside, outside = distance_transform_edt(mask).reshape(-1), distance_transform_edt(~mask).reshape(-1)
    seen = set()
    for _ in range(30):
        (fore, first), (back, second) = first_clicks(mask, tissue, variant=variant, generator=generator)
        assert (first, second) == (FOREGROUND, BACKGROUND)
        assert inside[fore] > 1.5
        assert 5 <= outside[back] <= 10
        assert tissue.reshape(-1)[back]
        seen.add(fore)
        if variant == "inner":
            assert fore == np.ravel_multi_index(centre, shape)
    assert (len(seen) > 10) == (variant == "random")


def test_distances_are_in_voxels_of_the_image(generator):
    mask = ball((40, 40), (20, 20), 5.0)
    distance = distance_transform_edt(~mask, sampling=(2.0, 0.5)).reshape(-1)
    places = [
        first_clicks(mask, ~mask, variant="inner", generator=generator, voxels_per_node=(2.0, 0.5))[1][0]
        for _ in range(40)
    ]
    assert distance[places].min() >= 5
    assert distance[places].max() <= 10
    assert np.abs(np.array(places) // 40 - 20).max() <= 10  # 10 voxels are five nodes of the first axis


def test_clicks_of_objects_without_room(generator):
    thin = np.zeros((20, 20), dtype=bool)
    thin[10, 3:9] = True  # no node lies 1.5 voxels inside
    assert thin.reshape(-1)[first_clicks(thin, ~thin, variant="random", generator=generator)[0][0]]
    large = np.ones((12, 12), dtype=bool)
    large[0, 0] = False  # nothing is five voxels outside: the farthest node there is
    assert first_clicks(large, large, variant="inner", generator=generator)[1] == (0, BACKGROUND)
    assert len(first_clicks(np.ones((8, 8), dtype=bool), large, variant="inner", generator=generator)) == 1
    nowhere = first_clicks(thin, np.zeros_like(thin), variant="inner", generator=generator)  # no tissue in the band
    assert 5 <= distance_transform_edt(~thin).reshape(-1)[nowhere[1][0]] <= 10
    with pytest.raises(ValueError, match="empty"):
        first_clicks(np.zeros((4, 4), dtype=bool), thin, variant="inner", generator=generator)
    with pytest.raises(ValueError, match="'outer'"):
        first_clicks(thin, thin, variant="outer", generator=generator)


def test_corrections_meet_the_largest_errors_first():
    mask, predicted = ball((40, 40), (12, 12), 8.0), ball((40, 40), (12, 12), 8.0)
    predicted[10:15, 10:15] = False  # a hole of 25
    predicted |= ball((40, 40), (32, 30), 4.0)  # an island of 49
    predicted[38, 2] = True
    assert error_clicks(mask, predicted, 2) == [(32 * 40 + 30, BACKGROUND), (12 * 40 + 12, FOREGROUND)]
    assert error_clicks(mask, predicted, 9)[2:] == [(38 * 40 + 2, BACKGROUND)]
    assert error_clicks(mask, mask, 3) == []


def test_channels_of_clicks():
    image = torch.full((2, 9, 7), 51, dtype=torch.uint8)
    image[:, 5:] = 204
    clicks = stack_clicks([[(2 * 7 + 3, FOREGROUND), (6 * 7 + 3, BACKGROUND), (0, FOREGROUND)], []])
    assert clicks.node.tolist()[1] == [-1, -1, -1]
    values = click_input(image, clicks, near=2.0, wide=10.0)
    assert values.shape == (2, 7, 9, 7)
    assert values[0, 0, 0, 0] == pytest.approx(2 * 51 / 255 - 1)
    for at, distance in (((2, 3), 0.0), ((2, 5), 2.0), ((5, 3), 3.0), ((1, 0), 1.0)):  # the nearest of two
        assert values[0, 1][at] == pytest.approx(np.exp(-(distance**2) / 8), abs=1e-6)
        assert values[0, 2][at] == pytest.approx(np.exp(-distance / 10), abs=1e-6)
    assert values[0, 4, 2, 3] == pytest.approx(np.exp(-16 / 8), abs=1e-6)
    assert values[0, 3, 0, 0] == pytest.approx(0.0, abs=1e-6)  # as grey as the click inside
    assert values[0, 3, 8, 0] == pytest.approx(0.6, abs=1e-6)
    assert values[0, 6, 8, 0] == pytest.approx(0.0, abs=1e-6)
    assert values[1, 1:].flatten(1).amax(1).tolist() == [0, 0, 1, 0, 0, 1]  # no click


def test_channels_in_3d_do_not_depend_on_the_other_rows(torch_generator):
    image = torch.randint(0, 256, (3, 6, 5, 7), dtype=torch.uint8, generator=torch_generator)
    rows = [[(17, FOREGROUND), (190, BACKGROUND)], [(3, BACKGROUND)], [(44, FOREGROUND), (45, FOREGROUND), (9, 1)]]
    together = click_input(image, stack_clicks(rows))
    for n, row in enumerate(rows):
        torch.testing.assert_close(click_input(image[n : n + 1], stack_clicks([row]))[0], together[n])
    index = np.unravel_index(17, (6, 5, 7))
    assert together[0, 1].argmax() == 17
    assert together[0, 2][index[0], index[1], 0] == pytest.approx(np.exp(-index[2] / 12), abs=1e-6)


def test_no_clicks_at_all():
    none = Clicks(torch.zeros((1, 0), dtype=torch.int64), torch.zeros((1, 0), dtype=torch.int8))
    values = click_input(torch.zeros((1, 5, 5), dtype=torch.uint8), none)
    assert values[0].flatten(1).amax(1).tolist() == [-1, 0, 0, 1, 0, 0, 1]
