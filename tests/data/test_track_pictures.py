"""Pictures of tracks hold boxes in their own colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medrl.data.track_phantoms import draw_video, write_phantoms
from medrl.data.track_pictures import CANVAS, appearances, colour_of, draw_frame, write_pictures
from medrl.data.tracks import Boxes, Video, make_boxes, read_video

BOX = (20.0, 30.0, 60.0, 90.0)


@pytest.fixture
def video():
    return Video("clip", 5, (160, 120), make_boxes([(0, -1, BOX, 1.0)]))


def test_boxes_and_blank_canvas(video):
    tracks = make_boxes([(t, 3, np.add(BOX, 5 * t), 1.0) for t in range(3)])
    picture = np.asarray(draw_frame(video, tracks, 2))
    assert picture.shape == (120, 160, 3)
    assert tuple(picture[100, 50]) == colour_of(3)  # the lower edge, from 30 to 70 across, at 100
    assert tuple(picture[5, 150]) == CANVAS
    assert colour_of(1) != colour_of(2)
    assert not (np.asarray(draw_frame(video, tracks, 4)) == colour_of(3)).all(-1).any()


def test_large_frames_get_smaller(video):
    large = Video("clip", 5, (1600, 1200), video.detections)
    assert draw_frame(large, make_boxes([]), 0, width=400).size == (400, 300)


def test_film(video, tmp_path):
    tracks = make_boxes([(t, 3, BOX, 1.0) for t in range(5)])
    assert write_pictures(tmp_path, "clip", video, tracks) == ["clip.png", "clip.gif"]
    with Image.open(tmp_path / "clip.png") as sheet:
        assert sheet.size == (480, 120)  # first, middle and last
    with Image.open(tmp_path / "clip.gif") as film:
        assert film.is_animated
        assert film.size == (160, 120)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.gif", "clip.png"]


def test_appearances_are_mean_colours(tmp_path):
    assert appearances(Video("clip", 1, (9, 9), make_boxes([(0, -1, (0, 0, 5, 5), 1.0)]))) is None
    options = {"frames": (12, 12), "objects": (3, 3), "size": (240, 160)}
    write_phantoms(tmp_path, 1, seed=2, pictures=True, **options)
    phantom = draw_video(np.random.default_rng([2, 0]), **options)
    read = read_video(tmp_path / "phantom_000", truth=True)
    n = int(phantom.visible.argmax())
    truth = phantom.video.truth
    boxes = Boxes(truth.frame, truth.box, truth.score, truth.identity)
    whole = Video("clip", read.frames, read.size, boxes, pictures=read.pictures)
    found = appearances(whole)[n]
    np.testing.assert_allclose(found, phantom.colours[truth.identity[n]], atol=0.06)
