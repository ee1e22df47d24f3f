"""Cutting out of videos: moves, contexts, masks that stay in their box, frames, rewards, expert."""

from __future__ import annotations

import pytest
import torch
from cutting_examples import BrightCutter, moving_squares, small_cutting_task
from torch import nn

from medrl.environment import Environment
from medrl.geometry.boxes import iou
from medrl.inference.cutting_walk import agreements, cut_along, decay, given_first, mask_box, static_box, true_box
from medrl.rewards.cutting import CuttingBand
from medrl.tasks.cutting import IMAGE, OBJECT_ACTIONS, STOP, CuttingTask


class Everything(nn.Module):
    """All of the context box is object."""

    def forward(self, pair):
        return torch.ones_like(pair[:, :1])


def act(name: str, context: int = 1, rows: int = 1) -> torch.Tensor:
    return torch.tensor([[OBJECT_ACTIONS.index(name), context]]).expand(rows, 2)


def after(task, state, *names, context=1):
    for name in names:
        state = task.advance(state, act(name, context, len(state.case)))
    return state


def first(task, case: int = 0):
    return type(given_first(task))(*(value[case : case + 1] for value in given_first(task)))


def test_moves_by_hand():
    task = small_cutting_task(jitter=0.0, moves=9)
    state = after(task, first(task), "stop")
    assert state.box.tolist() == [[3, 4, 9, 10]]
    for name, box in {
        "right": [3.6, 4, 9.6, 10], "left": [2.4, 4, 8.4, 10], "down": [3, 4.6, 9, 10.6], "up": [3, 3.4, 9, 9.4],
        "larger": [2.7, 3.7, 9.3, 10.3], "smaller": [3.3, 4.3, 8.7, 9.7], "wider": [2.7, 4, 9.3, 10],
        "taller": [3, 3.7, 9, 10.3],
    }.items():  # fmt: skip
        assert task.advance(state, act(name)).box[0].tolist() == pytest.approx(box, abs=1e-5), name
    thin = after(task, state, *["smaller"] * 9)
    assert (thin.box[0, 2:] - thin.box[0, :2]).min() >= 3


def test_a_box_stays_with_its_middle_in_the_video():
    task = small_cutting_task(jitter=0.0, moves=100)
    state = after(task, after(task, first(task, 2), "stop"), *["right"] * 40, *["larger"] * 30)
    low, high = state.box[0, :2], state.box[0, 2:]
    assert ((low + high) / 2 <= task.cases.extent[2]).all()
    assert (high - low <= task.cases.extent[2] + 1e-4).all()


@pytest.mark.parametrize(("context", "margin"), [(0, 0.2), (1, 0.4), (2, 0.6)])
def test_a_mask_is_only_inside_its_context_box(context, margin):
    cases = moving_squares()
    task = CuttingTask(cases, cutter=Everything(), jitter=0.0)
    state = after(task, first(task), "stop", context=context)
    low, high = 6 - 3 * (1 + margin), 6 + 3 * (1 + margin)
    centre = torch.arange(24) + 0.5
    inside = (centre >= low) & (centre < high)
    rows = (torch.arange(20) + 0.5 >= low + 1) & (torch.arange(20) + 0.5 < high + 1)
    assert torch.equal(cases.unpacked(state.mask)[0], rows[:, None] & inside)


def test_frames_go_by_stops_and_by_spent_moves():
    task = small_cutting_task(jitter=0.0, random_start=False, moves=2)
    state = first(task)
    assert (int(state.frame), int(state.step)) == (0, 2)
    assert task.score(state) == 1
    state = after(task, state, "right")  # the frame is given: whatever comes first is a stop
    assert (int(state.frame), int(state.step)) == (1, 0)
    assert state.box.tolist() == [[3, 4, 9, 10]]
    state = after(task, state, "right", "right")
    assert (int(state.frame), int(state.step)) == (1, 2)
    box = state.box.clone()
    state = after(task, state, "right")
    assert (int(state.frame), int(state.step)) == (2, 0)
    assert torch.equal(state.box, box)
    for _ in range(3):
        assert not task.terminated(state)
        state = after(task, state, "stop")
    assert int(state.frame) == 5
    state = after(task, state, "stop")
    assert task.terminated(state)
    assert int(state.frame) == 5


def test_the_last_frame_is_that_of_the_video():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task, 2), *["stop"] * 4)
    assert int(state.frame) == 4
    assert not task.terminated(state)
    assert task.terminated(after(task, state, "stop"))


def test_time_limits_truncate():
    task = small_cutting_task(max_steps=3, random_start=False)
    environment = Environment(task, num_envs=2)
    environment.reset()
    steps = [environment.step(act("stop", rows=2)) for _ in range(3)]
    assert steps[-1].truncated.all()
    assert not steps[-1].terminated.any()


def test_scores_and_gains_by_hand():
    task = small_cutting_task(jitter=0.0, random_start=False, moves=9)
    state = after(task, first(task), "stop", context=0)
    # the square has moved by two columns; the context box ends at 9.6: columns 5 to 8 and, its centre at 9.5, 9
    assert task.score(state).item() == pytest.approx(5 / 6)
    assert state.start.item() == pytest.approx(5 / 6)
    assert task.reward(state, act("stop"), after(task, state, "stop")).item() == 0.0  # nothing done
    state = after(task, state, "right", context=0)  # it ends at 10.2: the same
    better = after(task, state, "right", context=0)
    assert task.gain(state, act("right"), better).item() == pytest.approx(1 / 6, abs=1e-6)
    assert task.gain(better, act("stop"), after(task, better, "stop")).item() == pytest.approx(1 / 6, abs=1e-6)
    assert task.reward(state, act("right"), better).item() == 1.0
    assert task.reward(better, act("stop"), after(task, better, "stop")).item() == 3.0
    worse = after(task, better, *["left"] * 6, context=0)
    assert task.reward(worse, act("stop"), after(task, worse, "stop")).item() == -3.0
    idle = CuttingBand()(task, better, act("larger"), after(task, better, "larger"))
    assert idle.item() == 0.0  # nothing gained


def test_the_expert_goes_to_the_true_box_and_stops():
    task = small_cutting_task(jitter=0.0, moves=9, expert_context=1)
    state = after(task, first(task), "stop")
    for _ in range(9):
        action = task.expert(state)
        if int(action[0, 0]) == STOP:
            break
        state = task.advance(state, action)
    assert iou(state.box, task.cases.box[:1, 1]).item() > 0.85
    assert int(action[0, 0]) == STOP
    hidden = after(task, first(task, 1), "stop", "stop")
    assert int(hidden.frame) == 2
    assert int(task.expert(hidden)[0, 0]) == STOP  # nothing to be seen


def test_the_expert_takes_the_context_of_the_best_mask():
    cases = moving_squares()
    task = CuttingTask(cases, cutter=Everything(), jitter=0.0, size=12)
    for names, best in ((("stop", "right", "right"), 0), (("stop", "smaller", "smaller", "smaller"), 2)):
        state = after(task, first(task), *names)
        moved = task.expert(state)[:, 0]
        scores = [task.score(task.advance(state, torch.stack([moved, torch.full_like(moved, n)], 1))) for n in range(3)]
        assert int(torch.stack(scores).argmax()) == best, scores
        assert task.expert(state)[0, 1] == best


def test_gains_of_boxes_and_contexts_by_hand():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task), "stop")
    gains = task.action_gains(state)
    assert gains.shape == (1, 9 + 3)
    # [3, 4, 9, 10] and the truth [5, 4, 11, 10] share 24 of 48; after a shift of 0.6 to the right 27.6 of 44.4
    assert gains[0, 0].item() == pytest.approx(27.6 / 44.4 - 0.5, abs=1e-5)
    assert gains[0, STOP].item() == pytest.approx(0.01)
    # after that move the context box ends at 10.2, 10.8 and 11.4: a column more of six, under the last one
    assert gains[0, 9:].tolist() == pytest.approx([-1 / 6, 0, 0], abs=1e-5)
    always = small_cutting_task(jitter=0.0, expert_context=2).action_gains(state)
    assert always[0, 9:].tolist() == [-1, -1, 0]


def test_the_expert_comes_back_from_elsewhere():
    task = small_cutting_task(jitter=0.0, moves=99, expert_context=1)
    state = after(task, first(task), "stop")._replace(box=torch.tensor([[16.0, 12.0, 22.0, 18.0]]))
    # 11 to the right of and 8 below the square: a move of 0.6 to the left is 0.1 of a side of a way of 13.6 / 6
    gain = (121 + 64) ** 0.5 / 6 - (10.4**2 + 64) ** 0.5 / 6
    assert task.action_gains(state)[0, 1].item() == pytest.approx(0.5 * gain, abs=1e-5)
    for _ in range(60):
        state = task.advance(state, task.expert(state))
    assert iou(state.box, task.cases.box[:1, int(state.frame)]).item() > 0.7


def test_lost_episodes_start_anywhere():
    task = small_cutting_task(lost=0.5, jitter=0.0)
    case = torch.zeros(400, dtype=torch.int64)
    state = task.initial(case, torch.Generator().manual_seed(0))
    lost = ~task.cases.unpacked(state.mask).flatten(1).any(1)
    assert 0.4 < float(lost.float().mean()) < 0.6
    truth = task.cases.box[0, state.frame.long()]
    assert torch.equal(state.box[~lost], truth[~lost])
    assert (iou(state.box, truth)[lost] == 0).float().mean() > 0.4
    assert torch.equal(state.known, task.cases.truth[0, state.frame.long()])


def test_two_empty_masks_agree():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task, 1), "stop", "stop")
    assert not task.cases.unpacked(state.mask).any()
    assert task.score(state) == 1


def test_the_history_is_latest_first():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task), "stop", "right", "up")
    assert state.history[0].tolist() == [[3, 1], [0, 1], [8, 1]]


def test_starts_show_the_object():
    task = small_cutting_task()
    state = task.initial(torch.ones(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert set(state.frame.tolist()) == {0, 1, 3, 4}
    assert (state.step == task.moves).all()
    assert (task.score(state) == 1).all()


def test_the_policy_sees_where_the_mask_lies():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task), "stop", context=2)
    seen = task.observe(state)
    # the mask's box is [5, 4, 11, 10] as far as the context reaches (10.8), the object box [3, 4, 9, 10]; times 4
    assert seen["vector"][0, :4].tolist() == pytest.approx([4 / 3, 0, 4 / 3, 0], abs=1e-5)
    assert seen["image"].shape == (1, len(IMAGE), 8, 8)
    assert seen["image"][0, IMAGE.index("mask")].amax() == 255
    # the sides of the box are those of what was given, and so is the area of the mask
    assert seen["vector"][0, 12:15].tolist() == pytest.approx([0, 0, 0], abs=0.1)


def test_the_policy_sees_the_given_colours_far_away():
    task = small_cutting_task(jitter=0.0, moves=99)
    state = after(task, first(task), *["stop"] * 5, *["left"] * 5)
    assert float(iou(state.box, task.cases.box[:1, 5])) == 0  # the box is where the object was
    seen = task.observe(state)["image"][0].float()
    far, mask = (seen[IMAGE.index(name)] for name in ("wide chance", "wide mask"))
    # the object begins 10 to the right of where the box does, whose middle is that of the 8 cells of 30 pixels
    assert far[3:5, :4].amax() < 20
    assert far[3:5, 5:7].amax() > 50
    assert mask.amax() == 0


def test_what_was_given_is_remembered():
    task = small_cutting_task(jitter=0.0)
    state = after(task, first(task), *["stop"] * 3)
    assert (int(state.given), int(state.frame)) == (0, 3)
    assert torch.equal(state.known, task.cases.truth[:1, 0])
    pair = task.pair(state)
    assert pair.shape == (1, 10, 12, 12)
    bright = pair[0, 0] > 0.75
    assert pair[0, 9][bright].amin() > 0.9
    assert pair[0, 9][pair[0, 0] < 0.1].amax() < 0.05


def test_rules_of_boxes_and_decay():
    task = small_cutting_task(jitter=0.0)
    start = given_first(task)
    values = {
        rule.__name__: agreements(task, cut_along(task, rule, start, context=1))
        for rule in (static_box, mask_box, true_box)
    }
    assert values["true_box"][0].isnan().tolist() == [True, *[False] * 5]
    assert values["true_box"][2].isnan().tolist() == [True, *[False] * 4, True]
    assert values["true_box"][0, 1:].tolist() == [1.0] * 5
    assert values["static_box"][0, 1:].mean() < 0.5
    assert values["mask_box"][0, 1:].mean() > values["static_box"][0, 1:].mean()
    lost = decay(torch.tensor([[torch.nan, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.1, 0.1]]))
    assert lost.item() == pytest.approx(0.9 - 0.1)
    assert decay(values["static_box"])[0] > 0.5


def test_states_are_small():
    state = given_first(small_cutting_task())
    size = sum(value[0].nelement() * value.element_size() for value in state)
    assert size == 29 + 2 * 3 + 3 * 20 * 24 // 8


def test_a_cutter_is_frozen():
    network = nn.Conv2d(10, 1, 1)
    CuttingTask(moving_squares(), cutter=network)
    assert not any(p.requires_grad for p in network.parameters())
    assert isinstance(BrightCutter(), nn.Module)
