"""Nudges of a box between frames, by hand."""

from __future__ import annotations

import pytest
import torch
from track_examples import small_refinement_task

from medrl.geometry.boxes import iou
from medrl.tasks.box_refinement import ACTIONS, STOP, THINNEST


def start(task, count=1):
    return task.initial(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(0))


def test_moves():
    task = small_refinement_task(step=0.1)
    state = start(task, 8)._replace(box=torch.tensor([[10.0, 20.0, 50.0, 100.0]]).expand(8, 4))
    after = task.advance(state, torch.arange(8)).box
    expected = [
        [14, 20, 54, 100], [6, 20, 46, 100], [10, 12, 50, 92], [10, 28, 50, 108], [8, 16, 52, 104], [12, 24, 48, 96],
        [8, 20, 52, 100], [10, 16, 50, 104],
    ]  # fmt: skip
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float32))


def test_a_step_is_a_pixel_at_least_and_no_box_gets_thin():
    task = small_refinement_task()  # ADNet's 0.03
    state = start(task, 2)._replace(box=torch.tensor([[10.0, 20.0, 20.0, 40.0], [10.0, 20.0, 14.5, 40.0]]))
    after = task.advance(state, torch.tensor([ACTIONS.index("right"), ACTIONS.index("smaller")])).box
    torch.testing.assert_close(after[0], torch.tensor([11.0, 20.0, 21.0, 40.0]))
    torch.testing.assert_close(after[1], state.box[1])
    assert THINNEST == 4


def test_a_frame_ends_by_stop_or_after_so_many():
    task = small_refinement_task(most=3)
    state = start(task)
    assert task.terminated(task.advance(state, torch.tensor([STOP]))).tolist() == [True]
    for number in range(3):
        assert not task.terminated(state)
        state = task.advance(state, torch.tensor([number]))
    assert task.terminated(state)
    assert state.history[0, :4].tolist() == [2, 1, 0, -1]
    after = task.advance(state, torch.tensor([0]))
    torch.testing.assert_close(after.box, state.box)


def test_a_whole_clip_has_one_label():
    task = small_refinement_task(frames=3, most=5)
    state, rewards = start(task), []
    for number in range(3):
        frame = int(state.frame)
        while True:
            action = task.expert(state)
            after = task.advance(state, action)
            rewards.append(float(task.reward(state, action, after)))
            before, state = state, after
            if int(state.left) < int(before.left):
                break
        if number < 2:
            assert int(state.frame) == frame + 1
            torch.testing.assert_close(state.last, state.box)
    assert task.terminated(state)
    truth = task.cases.truth[0, int(state.frame), int(state.slot)]
    assert rewards[-1] == (1.0 if float(iou(state.box[0], truth)) >= 0.7 else -1.0)
    assert not any(rewards[:-1])


def test_observation_shows_both_frames():
    task = small_refinement_task(size=6, margin=0.0)
    state = start(task)
    seen = task.observe(state)
    assert seen["image"].shape == (1, 6, 6, 6)
    images, case, frame = task.cases.images, 0, int(state.frame)
    left, top, right, bottom = state.box[0].tolist()
    x, y = int(left + (right - left) * 2.5 / 6), int(top + (bottom - top) * 3.5 / 6)
    assert seen["image"][0, 3:, 3, 2].tolist() == images[case, frame, :, y, x].tolist()
    assert seen["image"][0, :3, 3, 2].tolist() == images[case, frame - 1, :, y, x].tolist()
    after = task.observe(task.advance(state, torch.tensor([4])))
    assert after["vector"][0, 4] == 1
    assert after["vector"].sum() == 1
    away = task.observe(state._replace(box=state.box + 1e4))["image"][0, 3:]
    assert not away.any()


def test_wrong_settings():
    with pytest.raises(ValueError, match="frames 9 must be 1 to 4"):
        small_refinement_task(frames=9)


def test_the_template_is_of_a_frame_before():
    task = small_refinement_task(size=6, margin=0.0, template=True, shaken=0.0)
    seen, sources = [], set()
    for seed in range(30):
        state = task.initial(torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(seed))
        assert bool((state.source < state.frame).all())
        sources |= set((state.frame - state.source).tolist())
        where = task.cases.truth[0, state.source.long(), state.slot.long()]
        torch.testing.assert_close(state.template, where)
        seen.append(state)
    assert sources >= {1, 2, 3}
    image = task.observe(seen[0])["image"]
    assert image.shape == (4, 6, 6, 6)
    expected = task.cases.crop(torch.zeros(4, dtype=torch.int64), seen[0].source.long(), seen[0].template, 6)
    assert torch.equal(image[:, :3], expected)
    moved = task.advance(seen[0], torch.zeros(4, dtype=torch.int64))
    assert torch.equal(task.observe(moved)["image"][:, :3], expected)


def test_a_guess_is_apart_from_the_last_box():
    still = small_refinement_task(shaken=0.05)
    state = start(still, 64)
    torch.testing.assert_close(state.box, state.last)
    task = small_refinement_task(shaken=0.05, apart=0.1)
    state = start(task, 64)
    side = (state.last[:, 2:] - state.last[:, :2]).repeat(1, 2)
    spread = ((state.box - state.last) / side).std()
    assert 0.07 < float(spread) < 0.13
