"""Boxes carried by nudges, and tracks that are refined: worked out with policies that do one thing only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from track_examples import small_phantoms, small_refinement_task

from medrl.data.tracks import Boxes, Video, make_boxes
from medrl.inference.box_refinement import BoxRefiner, carry, greedy, ideal, refined_boxes
from medrl.networks.policy import PolicyOutput
from medrl.tasks.box_refinement import ACTIONS, STOP
from medrl.training.box_refinement import every_object, overlaps, summarise
from medrl.types import InputError

RIGHT = ACTIONS.index("right")


class Nudge(nn.Module):
    """Steps to the right so many times, then stops; keeps what it saw."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.seen = steps, []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, observation):
        self.seen.append(observation["image"])
        done = observation["vector"].unflatten(1, (10, -1))[..., RIGHT].sum(1)
        action = torch.where(done < self.steps, RIGHT, STOP)
        logits = nn.functional.one_hot(action, len(ACTIONS)).float()
        return PolicyOutput(logits, logits[:, 0])


def test_the_oracle_carries_every_object_to_the_end():
    task = small_refinement_task(frames=4, most=30)
    state = every_object(task, 0)
    assert len(state.case) == int(task.cases.count.sum())
    overlap = overlaps(task, state, carry(task, ideal, state))
    assert overlap.shape == (len(state.case), 4)
    assert float(overlap.min()) > 0.75
    still = overlaps(task, state, state.box[:, None].expand(-1, 4, -1))
    assert float(overlap.mean()) > float(still.mean()) + 0.1


def test_boxes_stand_at_the_end_of_their_frames():
    task = small_refinement_task(frames=3, step=0.1)
    state = every_object(task, 1)
    boxes = carry(task, greedy(Nudge(2)), state)
    side = state.box[:, 2] - state.box[:, 0]
    # the history goes on over frames: two steps in the first, none after
    for frame in range(3):
        torch.testing.assert_close(boxes[:, frame, 0], state.box[:, 0] + 2 * (0.1 * side).clamp(min=1))


def test_stopping_sooner():
    task = small_refinement_task(frames=1, step=0.1)
    state = every_object(task, 1)
    for sooner, moved in ((0.5, True), (1.5, False)):  # the nudge's log-odds over all others are 1
        boxes = carry(task, greedy(Nudge(2), sooner=sooner), state)[:, 0]
        assert bool((boxes != state.box).any(1).all()) is moved


def test_figures_by_hand():
    numbers = summarise(torch.tensor([[1.0, 0.5], [0.7, 0.2]]))
    assert numbers == pytest.approx({"iou": 0.6, "success50": 0.75, "success70": 0.5})


@pytest.fixture
def walk():
    """One object for five frames, detected in the first, second and fourth, and its track."""
    rows = [(t, 7, np.array([20.0 + t, 10, 40 + t, 50]), 1.0) for t in range(5)]
    tracks = make_boxes(rows)
    detections = make_boxes([(rows[n][0], -1, *rows[n][2:]) for n in (0, 1, 3)])
    video = Video("walk", 5, (100, 80), detections, None)
    frames = np.random.default_rng(0).integers(0, 255, (5, 80, 100, 3), dtype=np.uint8)
    return video, tracks, frames


def refine(walk, steps=1, **options) -> tuple[np.ndarray, Nudge]:
    video, tracks, frames = walk
    network = Nudge(steps)
    after = BoxRefiner(network, size=8, margin=0.0, template=True, step=0.05, **options)(video, tracks, frames)
    assert isinstance(after, Boxes)
    for name in ("frame", "score", "identity"):
        np.testing.assert_array_equal(getattr(after, name), getattr(tracks, name))
    return after.box - tracks.box, network


def test_gaps_alone_are_refined_and_the_template_is_the_last_detected_box(walk):
    change, network = refine(walk)
    expected = np.zeros((5, 4))
    expected[[2, 4], ::2] = 1
    np.testing.assert_allclose(change, expected, atol=1e-5)
    _, tracks, frames = walk
    for seen, source in ((network.seen[0], 1), (network.seen[2], 3)):
        left, top = tracks.box[source, :2]
        first = frames[source][int(top + 2.5), int(left + 1.25)]
        np.testing.assert_array_equal(seen[0, :3, 0, 0].numpy(), first)


def test_all_boxes_but_the_first_are_refined(walk):
    change, _ = refine(walk, boxes="all")
    expected = np.zeros((5, 4))
    expected[1:, ::2] = 1
    np.testing.assert_allclose(change, expected, atol=1e-5)


def test_a_box_that_walks_off_stays(walk):
    change, _ = refine(walk, steps=9)  # 9 of 20 pixels: overlap 11 / 29 of at least 0.4
    np.testing.assert_array_equal(change, 0)
    change, _ = refine(walk, steps=9, least=0.3)
    assert change[2, 0] == pytest.approx(9, abs=1e-4)


def test_without_pictures_nothing_changes(walk):
    video, tracks, _ = walk
    assert BoxRefiner(Nudge(1), boxes="all")(video, tracks) is tracks


def test_empty_tracks_and_frames_without_detections():
    phantom = small_phantoms(1)[0]
    video = phantom.video
    frames = np.zeros((video.frames, 200, 320, 3), np.uint8)
    none = make_boxes([])
    assert len(BoxRefiner(Nudge(1))(video, none, frames)) == 0
    silent = Video("silent", video.frames, video.size, none, None)
    after = BoxRefiner(Nudge(1), boxes="all")(silent, video.truth, frames)
    np.testing.assert_array_equal(after.box, video.truth.box)  # nobody was ever seen for sure


def test_words_of_the_setting():
    assert [refined_boxes(value) for value in (False, "false", True, "gaps", "All")] == ["", "", "gaps", "gaps", "all"]
    with pytest.raises(InputError, match="refine is 'some'; expected false, gaps or all"):
        refined_boxes("some")
