"""Trackers on scenes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from track_examples import small_phantoms

from medrl.data.tracks import Boxes, Video, make_boxes
from medrl.geometry.box_motion import MotionNoise
from medrl.geometry.track_views import A_CANDIDATE, CANDIDATES, LENGTH, OWN
from medrl.inference.track_decisions import Overlap, Policy, assign
from medrl.inference.track_scores import count_video, summarise
from medrl.inference.track_tuning import measure, tune
from medrl.inference.tracking import Tracker
from medrl.tasks.tracking import ACTIONS, BLOCK, DELETE, IGNORE

NOISE = MotionNoise()


def scene(*rows, frames=None):
    """A video of detections (frame, left, top) of 20 by 40 pixels, scored 0.9 unless told."""
    boxes = make_boxes([(r[0], -1, (r[1], r[2], r[1] + 20, r[2] + 40), *(r[3:] or (0.9,))) for r in rows])
    return Video("scene", frames or int(boxes.frame.max()) + 1, (640, 360), boxes)


def ways(tracks: Boxes):
    """Identity -> (frame, left, rounded)."""
    found = {int(name): [] for name in np.unique(tracks.identity)}
    for frame, name, box in zip(tracks.frame, tracks.identity, tracks.box, strict=True):
        found[int(name)].append((int(frame), round(float(box[0]))))
    return found


def test_assignment_is_video_by_video():
    affinity = torch.tensor([[2.0, 1.9], [1.0, 0.0], [0.0, 0.0], [0.5, 3.0]])
    assert assign(affinity, torch.tensor([0, 0, 1, 1])).tolist() == [1, 0, -1, 1]
    assert assign(affinity, torch.tensor([0, 1, 2, 3])).tolist() == [0, 0, -1, 1]
    assert assign(torch.zeros(0, 3), torch.zeros(0)).tolist() == []


def test_iou_tracker_stands_and_velocity_goes_on():
    rows = [(t, 100 + 8 * t, 50) for t in range(8)] + [(t, 100 + 8 * t, 50) for t in range(11, 15)]
    still = Tracker(Overlap(still=True, overlap=0.2, patience=5, coast=3), NOISE).track(scene(*rows))
    assert sorted(ways(still)) == [1, 2]  # 32 pixels further it is another
    assert ways(still)[1][7:11] == [(7, 156), (8, 156), (9, 156), (10, 156)]
    moving = Tracker(Overlap(overlap=0.2, patience=5, coast=3), MotionNoise(speed=0.3)).track(scene(*rows))
    assert sorted(ways(moving)) == [1]
    assert len(ways(moving)[1]) == 15
    assert ways(moving)[1][10][1] == pytest.approx(180, abs=4)


def test_patience_coast_and_confirm():
    rows = [(t, 100, 50) for t in range(4)] + [(t, 100, 50) for t in range(8, 12)] + [(2, 400, 200)]
    frames = [f for f, _ in ways(Tracker(Overlap(patience=5, coast=2), NOISE).track(scene(*rows)))[1]]
    assert frames == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert len(ways(Tracker(Overlap(patience=5), NOISE, confirm=1).track(scene(*rows)))) == 2
    assert sorted(ways(Tracker(Overlap(patience=3), NOISE).track(scene(*rows)))) == [1, 2]


def test_scores_and_crowds():
    rows = [(t, 100, 50) for t in range(5)] + [(t, 300, 50, 0.3) for t in range(5)]
    assert len(ways(Tracker(Overlap(), NOISE, newest=0.5).track(scene(*rows)))) == 1
    assert len(ways(Tracker(Overlap(), NOISE, lowest=0.5).track(scene(*rows)))) == 1
    double = [(t, 100 + d, 50) for t in range(5) for d in (0, 2)]
    assert len(ways(Tracker(Overlap(), NOISE, crowded=0.5).track(scene(*double)))) == 2  # both at once in frame 1
    later = [(t, 100, 50) for t in range(5)] + [(t, 102, 50) for t in range(1, 5)]
    assert len(ways(Tracker(Overlap(), NOISE, crowded=0.5).track(scene(*later)))) == 1


class Scripted(nn.Module):
    """Takes the likeliest detection if it is within so many deviations; else does one thing."""

    def __init__(self, without: int, reach: float = 4.0) -> None:
        super().__init__()
        self.without, self.reach = without, nn.Parameter(torch.tensor(reach))

    def forward(self, vector):
        logits = torch.full((len(vector), len(ACTIONS)), -5.0)
        for n in range(CANDIDATES):
            part = vector[:, OWN + n * A_CANDIDATE : OWN + (n + 1) * A_CANDIDATE]
            logits[:, n] = torch.where(part[:, 0] > 0, self.reach - part[:, -1].expm1(), -5.0)
        logits[:, self.without] = 0.0
        return logits


@pytest.mark.parametrize(("without", "frames"), [(IGNORE, 12), (BLOCK, 8), (DELETE, 4)])
def test_a_policy_decides_what_is_shown(without, frames):
    rows = [(t, 100, 50) for t in range(4)] + [(t, 100, 50) for t in range(8, 12)]
    tracker = Tracker(Policy(NOISE), NOISE)
    found = ways(tracker.track(scene(*rows), Scripted(without)))
    assert len(found[1]) == frames
    assert len(found) == (2 if without == DELETE else 1)


def test_two_who_want_one_detection():
    """They cross; in the middle there is one detection, and it goes to the one that needs it more."""
    rows = [(t, 100 + 5 * t, 50) for t in range(12)] + [(t, 210 - 5 * t, 60) for t in range(12) if t not in (10, 11)]
    found = ways(Tracker(Policy(NOISE), NOISE).track(scene(*rows), Scripted(IGNORE)))
    assert len(found) == 2
    assert all(len(way) == 12 for way in found.values())


def test_the_order_of_detections_does_not_matter():
    video = small_phantoms(1, seed=4)[0].video
    d = video.detections
    order = np.lexsort((np.random.default_rng(0).random(len(d)), d.frame))
    shuffled = Video(video.name, video.frames, video.size, d.kept(order))
    tracker = Tracker(Policy(NOISE), NOISE)
    first, second = (tracker.track(v, Scripted(BLOCK)) for v in (video, shuffled))
    assert summarise([count_video(first, second, video.frames)])["idf1"] == 1


def test_videos_do_not_know_of_each_other_nor_of_the_truth():
    videos = [phantom.video for phantom in small_phantoms(3)]
    tracker, network = Tracker(Policy(NOISE), NOISE), Scripted(IGNORE)
    together = tracker.track_all(videos, network)
    for video, found in zip(videos, together, strict=True):
        d = video.detections
        unknown = Boxes(d.frame, d.box, d.score, np.full(len(d), -1))
        blind = Video(video.name, video.frames, video.size, unknown)
        alone = tracker.track(blind, network)
        np.testing.assert_allclose(alone.box, found.box, atol=1e-3)
        assert (alone.identity == found.identity).all()


def test_frames_without_detections_and_empty_answers():
    empty = Tracker(Overlap(), NOISE).track(scene((0, 10, 10), frames=5))
    assert len(empty) == 0
    gap = Tracker(Overlap(patience=9), NOISE).track(scene((0, 10, 10), (6, 10, 10), (7, 10, 10), frames=9))
    assert ways(gap) == {1: [(0, 10), (6, 10), (7, 10)]}
    with pytest.raises(ValueError, match="needs its network"):
        Tracker(Policy(NOISE), NOISE).track(scene((0, 10, 10), (1, 10, 10)))


def test_an_untrained_network_tracks_something(torch_generator):
    from medrl.networks.policy import PolicyNet

    video = small_phantoms(1)[0].video
    network = PolicyNet(features=LENGTH, actions=len(ACTIONS), hidden=8)
    found = Tracker(Policy(NOISE), NOISE).track(video, network)
    assert (np.diff(found.frame) >= 0).all()
    pairs = set(zip(found.frame.tolist(), found.identity.tolist(), strict=True))
    assert len(pairs) == len(found)  # no identity twice in a frame


def test_tuning_only_improves():
    videos = [phantom.video for phantom in small_phantoms(3)]
    poor = Tracker(Overlap(overlap=0.8, patience=1), NOISE, confirm=4)
    better = tune(poor, videos, {"overlap": (0.2, 0.8), "patience": (1, 5), "confirm": (2, 4)}, passes=1)
    before, after = (measure(t, videos) for t in (poor, better))
    assert after["idf1"] + after["mota"] > before["idf1"] + before["mota"] + 0.1
    assert better.decider.overlap == 0.2


def test_looking_back_fills_gaps_and_ends_with_the_last_detection():
    rows = [(t, 100 + 8 * t, 50) for t in range(8)] + [(t, 100 + 8 * t, 50) for t in range(12, 16)]
    rows += [(t, 400, 250) for t in range(20)]  # so that the video goes on
    rule = Overlap(overlap=0.2, patience=6, coast=1)
    noise = MotionNoise(speed=0.3)
    video = scene(*rows)
    online, back = (
        {int(n): boxes.frame[boxes.identity == n].tolist() for n in (1, 2)}
        for boxes in (Tracker(rule, noise).track(video), Tracker(rule, noise, fill=4, tail=0).track(video))
    )
    assert online[1] == [*range(9), *range(12, 17)]  # coasts for a frame
    assert back[1] == list(range(16))
    assert back[2] == list(range(20))
    short = Tracker(rule, noise, fill=3, tail=1).track(video)
    assert short.frame[short.identity == 1].tolist() == [*range(8), *range(12, 17)]
    gap = Tracker(rule, noise, fill=4, tail=0).track(video)
    middle = gap.box[(gap.identity == 1) & (gap.frame == 10)][0]
    np.testing.assert_allclose(middle, (180, 50, 200, 90), atol=2.5)


def test_looking_back_at_one_who_came_late():
    """Ages are counted from everybody's own first frame; what comes out does not depend on when that was."""
    way = [(t, 100 + 8 * t, 50) for t in range(8)] + [(t, 100 + 8 * t, 50) for t in range(11, 14)]
    other = [(t, 400, 250) for t in range(30)]
    tracker = Tracker(Overlap(overlap=0.2, patience=6), MotionNoise(speed=0.3), fill=4, tail=0)
    boxes = []
    for delay in (0, 9):
        found = tracker.track(scene(*[(t + delay, *place) for t, *place in way], *other))
        mine = found.box[:, 1] < 150
        assert found.frame[mine].tolist() == list(range(delay, delay + 14))
        assert found.frame[~mine].tolist() == list(range(30))
        boxes.append(found.box[mine])
    np.testing.assert_allclose(*boxes, atol=1e-3)


def test_looking_back_is_nearer():
    generator = np.random.default_rng(0)
    truth = np.array([[100 + 3 * t, 60 + t, 130 + 3 * t, 130 + t] for t in range(40)], np.float32)
    shaken = truth + np.tile(generator.normal(0, 4, (40, 2)), 2)
    boxes = make_boxes([(t, -1, shaken[t], 0.9) for t in range(40)])
    video = Video("walk", 40, (640, 360), boxes)
    rule, noise = Overlap(overlap=0.1), MotionNoise(place=0.1, drift=0.002)
    errors = []
    for tracker in (Tracker(rule, noise), Tracker(rule, noise, fill=5)):
        found = tracker.track(video)
        assert len(np.unique(found.identity)) == 1
        errors.append(np.abs(found.box[:, :2] - truth[found.frame, :2]).mean())
    assert errors[1] < 0.75 * errors[0]
    still = [Tracker(Overlap(overlap=0.1, still=True), noise, fill=f).track(video).box for f in (None, 5)]
    np.testing.assert_array_equal(*still)  # what stands is not smoothed


def test_no_more_than_so_many_at_once():
    rows = [(t, 30 + 50 * k, 50) for t in range(6) for k in range(8)]
    assert len(ways(Tracker(Overlap(), NOISE).track(scene(*rows)))) == 8
    assert len(ways(Tracker(Overlap(), NOISE, most=1).track(scene(*rows[::8])))) == 1
    # the limit is looked at when a frame begins: those of the first frame all start
    later = [(t, 30 + 50 * k, 50) for t in range(6) for k in range(1 if t == 0 else 8)]
    assert len(ways(Tracker(Overlap(), NOISE, most=1).track(scene(*later)))) == 1
