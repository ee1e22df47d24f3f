"""Procedural videos: rates as promised, and tensors of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from track_examples import SMALL, small_phantoms

from medrl.data.track_cases import NOBODY, TrackCases, with_owners
from medrl.data.track_phantoms import draw_video, draw_videos, render
from medrl.data.tracks import Video
from medrl.geometry.boxes import iou
from medrl.types import InputError


def test_rates():
    phantoms = draw_videos(12, 0)
    # of those in full sight one in five is missed, of those half hidden one in two
    seen = [0.8 * (p.visible > 0.6).sum() + 0.5 * ((p.visible > 0.35) & (p.visible <= 0.6)).sum() for p in phantoms]
    found = [(p.video.detections.identity != NOBODY).sum() for p in phantoms]
    false = [(p.video.detections.identity == NOBODY).sum() for p in phantoms]
    assert sum(found) / sum(seen) == pytest.approx(1.0, abs=0.04)
    assert sum(false) / sum(found) == pytest.approx(0.1, abs=0.04)
    assert 0.08 < np.mean(np.concatenate([p.visible for p in phantoms]) < 0.35) < 0.3  # many are hidden for a while
    assert all(30 <= p.video.frames <= 60 for p in phantoms)
    wrong = []
    for p in phantoms:
        at = {(t, k): n for n, (t, k) in enumerate(zip(p.video.truth.frame, p.video.truth.identity, strict=True))}
        d = p.video.detections
        for n in np.flatnonzero(d.identity != NOBODY):
            truth = p.video.truth.box[at[d.frame[n], d.identity[n]]]
            shift = (d.box[n, :2] + d.box[n, 2:] - truth[:2] - truth[2:]) / 2
            wrong.append(shift / (truth[2:] - truth[:2]))
    assert np.std(wrong) == pytest.approx(0.105, abs=0.015)


def test_seeds():
    first, second = (draw_video(np.random.default_rng(3), **SMALL) for _ in range(2))
    np.testing.assert_array_equal(first.video.detections.box, second.video.detections.box)
    longer = draw_videos(3, 5, **SMALL)
    np.testing.assert_array_equal(longer[1].appearance, draw_videos(2, 5, **SMALL)[1].appearance)


def test_frames_show_the_colours():
    phantom = next(p for p in small_phantoms(4) if (p.visible > 0.99).any())
    n = int(np.flatnonzero(phantom.visible > 0.99)[0])
    left, top, right, bottom = phantom.video.truth.box[n]
    frame = render(phantom)[phantom.video.truth.frame[n]]
    assert frame.shape == (200, 320, 3)
    middle = frame[int((top + bottom) / 2), int((left + right) / 2)] / 255
    colour = phantom.colours[phantom.video.truth.identity[n]][3:6]
    np.testing.assert_allclose(middle, colour, atol=0.01)


def test_cases_hold_what_videos_hold():
    phantoms = small_phantoms(4)
    cases = TrackCases.from_phantoms(phantoms)
    clip = cases.clip
    assert clip.known.tolist() == [False, True, False, True]
    for n, phantom in enumerate(phantoms):
        video = phantom.video
        assert int(clip.exists[n].sum()) == len(video.detections)
        assert int(clip.present[n].sum()) == len(video.truth)
        names = np.unique(video.truth.identity)
        for k, name in enumerate(names):
            early = (video.detections.identity == name) & (video.detections.frame < video.frames - 1)
            assert int(cases.found_count[n, k]) == early.sum()
            place = cases.found[n, k, : int(cases.found_count[n, k])]
            assert (clip.owner[n].flatten()[place] == k).all()
            assert (place.diff() > 0).all()
        assert (clip.owner[n].flatten()[cases.false[n, : int(cases.false_count[n])]] == NOBODY).all()
    expected = iou(cases.neighbours.box, clip.truth)[cases.neighbours.there & clip.present]
    assert float(expected.median()) > 0.6  # a filter with its own detections mostly knows where to look


def test_owners_are_found_by_overlap():
    phantom = small_phantoms(1)[0]
    video = phantom.video
    same = with_owners(video).detections.identity == video.detections.identity
    assert same.mean() > 0.85
    with pytest.raises(InputError, match="no truth"):
        with_owners(Video(video.name, video.frames, video.size, video.detections))
    with pytest.raises(InputError, match="no videos"):
        TrackCases.from_phantoms([])


def test_cases_move_between_devices():
    cases = TrackCases.from_phantoms(small_phantoms(2)).to(torch.device("cpu"))
    assert cases.device.type == "cpu"
    assert len(cases) == 2
