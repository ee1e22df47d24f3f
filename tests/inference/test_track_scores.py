"""Scores of tracks by hand, and against py-motmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from track_examples import small_phantoms

from medrl.data.tracks import make_boxes
from medrl.geometry.box_motion import MotionNoise
from medrl.inference.track_decisions import Overlap
from medrl.inference.track_scores import accumulate, count_video, intervals, motmetrics_table, summarise
from medrl.inference.tracking import Tracker

BOX = np.array([0.0, 0, 10, 10])


def tracks(*rows):
    """Boxes of (frame, identity, shift to the right)."""
    return make_boxes([(frame, name, BOX + np.array([shift, 0, shift, 0]), 1.0) for frame, name, shift in rows])


def test_by_hand():
    truth = tracks(*[(t, 1, 0) for t in range(6)], *[(t, 2, 100) for t in range(6)])
    answer = tracks(
        (0, 5, 0), (1, 5, 1), (3, 6, 0), (4, 6, 0), (5, 6, 0),  # found, lost, found as another
        *[(t, 7, 102) for t in range(6)], (2, 8, 300),  # followed; and a dream
    )  # fmt: skip
    found = summarise([count_video(truth, answer, 6)])
    assert (found["misses"], found["false"], found["switches"], found["fragments"]) == (1, 1, 1, 1)
    assert found["mota"] == pytest.approx(1 - 3 / 12)
    assert found["idf1"] == pytest.approx(2 * (3 + 6) / (12 + 12))
    assert found["precision"] == pytest.approx(11 / 12)
    nothing = summarise([count_video(truth, tracks(), 6)])
    assert (nothing["mota"], nothing["idf1"], nothing["misses"]) == (0, 0, 12)


def test_an_overlap_of_half_is_the_least():
    truth = tracks((0, 1, 0))
    assert count_video(truth, tracks((0, 1, 10 / 3)), 1)["misses"] == 0  # 20 / 40
    assert count_video(truth, tracks((0, 1, 3.4)), 1)["misses"] == 1


def test_as_motmetrics():
    pytest.importorskip("motmetrics")
    videos = [phantom.video for phantom in small_phantoms(4, seed=3)]
    noise = MotionNoise()
    for tracker in (Tracker(Overlap(coast=3), noise), Tracker(Overlap(overlap=0.6, still=True, coast=1), noise)):
        answers = tracker.track_all(videos)
        table = motmetrics_table(
            {v.name: accumulate(v.truth, answer, v.frames) for v, answer in zip(videos, answers, strict=True)}
        )
        counts = [count_video(v.truth, answer, v.frames) for v, answer in zip(videos, answers, strict=True)]
        for name, count in zip(table, [*map(lambda c: [c], counts), counts], strict=True):
            for key, value in summarise(count).items():
                assert table[name][key] == pytest.approx(value, abs=1e-9), (name, key)
        assert list(table)[-1] == "overall"
        assert table["overall"]["switches"] > 0


def test_no_answer_has_figures_too():
    pytest.importorskip("motmetrics")
    video = small_phantoms(1)[0].video
    table = motmetrics_table({"clip": accumulate(video.truth, tracks(), video.frames)})
    ours = summarise([count_video(video.truth, tracks(), video.frames)])
    assert table["overall"] == pytest.approx(ours)
    assert ours["precision"] == 0


def test_intervals_hold_the_value():
    videos = [phantom.video for phantom in small_phantoms(4)]
    answers = Tracker(Overlap(coast=2), MotionNoise()).track_all(videos)
    counts = [count_video(v.truth, answer, v.frames) for v, answer in zip(videos, answers, strict=True)]
    low, high = intervals(counts, resamples=200)["idf1"]
    assert low < summarise(counts)["idf1"] < high
    assert intervals(counts, resamples=50) == intervals(counts, resamples=50)


def test_pairs_are_compared_video_by_video():
    """Videos differ much more than the two trackers do; the second loses one frame of twenty in each."""
    truth = [tracks(*[(t, 1, 0) for t in range(20)]) for _ in range(8)]
    first = [tracks(*[(t, 1, 0) for t in range(4 + 2 * n)]) for n in range(8)]
    second = [tracks(*[(t, 1, 0) for t in range(3 + 2 * n)]) for n in range(8)]
    better, worse = ([count_video(a, b, 20) for a, b in zip(truth, found, strict=True)] for found in (first, second))
    alone = [intervals(counts)["recall"] for counts in (better, worse)]
    assert alone[0][0] < alone[1][1]  # overlapping
    low, high = intervals(better, against=worse)["recall"]
    assert low == pytest.approx(1 / 20)
    assert high == pytest.approx(1 / 20)
