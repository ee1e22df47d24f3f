"""Walls and coats of procedural pictures."""

from __future__ import annotations

import numpy as np
from track_examples import small_phantoms

from medrl.data.frame_cases import FrameCases
from medrl.data.textures import CELLS, draw_coat, draw_wall, put
from medrl.data.track_phantoms import render


def test_walls_have_the_size_of_the_picture_and_differ():
    walls = [draw_wall(np.random.default_rng(seed), (50, 30)) for seed in (0, 0, 1)]
    assert walls[0].shape == (30, 50, 3)
    np.testing.assert_array_equal(walls[0], walls[1])
    assert np.abs(walls[0] - walls[2]).mean() > 5


def test_coats_are_of_their_colours_and_some_leave_the_corners():
    colours = np.array([1.0, 0, 0, 1, 0, 0, 1, 0, 0])
    drawn = [draw_coat(np.random.default_rng(seed), colours) for seed in range(40)]
    corners = [bool(opaque[0, 0]) for _, opaque in drawn]
    assert 0.2 < np.mean(corners) < 0.7
    for coat, opaque in drawn:
        assert coat.shape == (CELLS, CELLS, 3)
        assert opaque[CELLS // 2, CELLS // 2]
        red, green, _ = coat[opaque].mean(0)
        assert red > green + 200


def test_a_coat_fills_its_box_and_nothing_else():
    coat = np.stack([np.full((CELLS, CELLS), value) for value in (10.0, 20.0, 30.0)], -1)
    coat[: CELLS // 2] += 100
    opaque = np.ones((CELLS, CELLS), bool)
    picture = np.zeros((20, 30, 3))
    put(picture, coat, opaque, np.array([4.2, 6.0, 9.9, 14.0]))
    assert (picture[6:10, 4:10] == [110, 120, 130]).all()
    assert (picture[10:14, 4:10] == [10, 20, 30]).all()
    assert np.count_nonzero(picture[..., 0]) == 8 * 6
    outside = np.zeros((20, 30, 3))
    put(outside, coat, opaque, np.array([-5.0, -4.0, 5.0, 4.0]))  # a quarter is in sight: its lower right
    assert (outside[:4, :5] == [10, 20, 30]).all()
    assert np.count_nonzero(outside[..., 0]) == 4 * 5
    put(outside, coat, opaque, np.array([40.0, 2.0, 50.0, 9.0]))
    assert np.count_nonzero(outside[..., 0]) == 4 * 5


def test_varied_pictures_are_seeded_and_of_their_own_kind():
    phantom = small_phantoms(1)[0]
    first, again, other, plain = (render(phantom, *a, **k) for a, k in (
        ((3,), {"varied": True}), ((3,), {"varied": True}), ((4,), {"varied": True}), ((3,), {})
    ))  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert first.shape == plain.shape
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - other).mean() > 10
    assert np.abs(first.astype(int) - plain).mean() > 10
    clips = FrameCases.from_phantoms([phantom], length=5, visible=0.2, stride=1, varied=True, seed=3)
    start = (phantom.video.frames - 5) // 2
    np.testing.assert_array_equal(clips.images[0].numpy().transpose(0, 2, 3, 1), first[start : start + 5])
