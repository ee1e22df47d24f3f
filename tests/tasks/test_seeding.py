"""Seeding: exact random walker, exact gains, regions, and what a replay keeps."""

from __future__ import annotations

import pytest
import torch
from probes import small_seed_cases, small_seeding_task

from medrl.data.seed_cases import cell_centres, count_bits, pack, unpack
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.geometry.random_walker import edge_weights, walk
from medrl.rewards.scores import Gain, Progress, Score
from medrl.rewards.seeding import SeedRegions
from medrl.tasks.seeding import CHANNELS, SeedingTask

SHAPES = [(18, 15), (9, 8, 10)]


def played(task: SeedingTask, steps: int, seed: int = 0):
    """A state of three rows after some random actions, without stops."""
    generator = torch.Generator().manual_seed(seed)
    state = task.start(torch.arange(3), torch.tensor([0, 1, 0]))
    for _ in range(steps):
        state = task.advance(state, torch.randint(2 * task.count, (3,), generator=generator))
    return state


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_potential_is_the_random_walkers(shape, steps):
    task = small_seeding_task(shape=shape)
    state = played(task, steps)
    seeds = task.seed_map(state, 1).to(torch.int8) + 2 * task.seed_map(state, -1).to(torch.int8)
    assert (seeds <= 2).all()
    image = task.cases.image[state.case.long()].float() / 255
    wanted = walk(edge_weights(image, floor=task.cases.floor), seeds.reshape(3, *shape), tolerance=1e-7)
    torch.testing.assert_close(task.potential(state), wanted.flatten(1), atol=2e-3, rtol=0)
    assert torch.equal(unpack(state.mask, wanted[0].numel()), task.potential(state) > 0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharpness", [None, 10.0])
def test_gains_are_what_the_actions_gain(shape, sharpness):
    task = small_seeding_task(shape=shape, sharpness=sharpness)
    state = played(task, 2)
    gains, now = task.gains(state)
    assert gains.shape == (3, 2 * task.count + 1)
    truth = task.cases.masks(state.case.long()).float()
    torch.testing.assert_close(now, task._iou(task.potential(state)[:, None], truth)[:, 0])
    if sharpness is None:
        torch.testing.assert_close(now, task.score(state))
    for action in range(0, 2 * task.count + 1, 3):
        after = task.advance(state, torch.full((3,), action))
        gain = task._iou(task.potential(after)[:, None], truth)[:, 0] - now
        taken = (state.seeds.abs().long() - 1 == action % task.count).any(1) & (action < 2 * task.count)
        torch.testing.assert_close(gains[:, action][~taken], gain[~taken], atol=2e-3, rtol=0)
        assert (gains[:, action][taken] == 0).all()


def test_targets_hold_what_was_asked_for():
    task = small_seeding_task()
    state = played(task, 1)
    targets = task.targets(state)
    assert torch.equal(targets["mask"], task.cases.masks(torch.arange(3)))
    assert torch.equal(targets["quality"], task.score(state))
    assert torch.equal(targets["gains"][:, 0, 0], task.gains(state)[0])
    assert "gains" not in small_seeding_task(gains_stride=0).targets(state)


def test_the_expert_is_the_best_single_seed_or_a_stop():
    task = small_seeding_task()
    state = task.start(torch.arange(3), 0)
    best = task.expert(state)
    score = task.score(task.advance(state, best))
    for action in range(2 * task.count):
        assert (task.score(task.advance(state, torch.full((3,), action))) <= score + 1e-6).all()
    for _ in range(task.max_steps):
        gain = task.gains(state)[0].amax(1)
        after = task.advance(state, task.expert(state))
        assert torch.equal(after.stopped, state.stopped | (gain <= 0))
        torch.testing.assert_close(task.score(after) - task.score(state), torch.where(after.stopped, 0.0, gain))
        state = after
    assert state.stopped.any()


def test_a_stop_ends_and_changes_nothing():
    task = small_seeding_task()
    state = task.start(torch.arange(3), 0)
    after = task.advance(state, torch.tensor([2 * task.count, 0, 2 * task.count]))
    assert task.terminated(after).tolist() == [True, False, True]
    assert torch.equal(after.seeds[[0, 2]], state.seeds[[0, 2]])
    assert task.score(after)[0] == task.score(state)[0]
    assert task.placed(after).tolist() == [2, 3, 2]


def test_seeds_beyond_the_capacity_and_on_a_taken_cell():
    task = small_seeding_task(max_steps=2)
    state = task.start(torch.arange(3), 0)
    for action in (4, 4, task.count + 4, 5, 6):
        state = task.advance(state, torch.full((3,), action))
    assert state.seeds[:, 2:].tolist() == [[5, 6]] * 3


def test_regions_by_hand():
    cases = small_seed_cases(1, shape=(21, 21), cells=3)
    truth = torch.zeros(21, 21, dtype=torch.bool)
    truth[6:15, 6:15] = True  # strong inside 8..12, weak background 4..16
    cases.truth[0] = pack(truth.reshape(1, -1))[0]
    task = SeedingTask(cases)
    row, column = cases.cells // 21, cases.cells % 21
    state = task.start(torch.zeros(len(cases.cells), dtype=torch.long), 0)
    cells = torch.arange(len(cases.cells))
    far = torch.maximum((row - 10).abs(), (column - 10).abs())
    assert torch.equal(task.region(state, cells), torch.where(far <= 2, 0, torch.where(far <= 4, 1, 2)))
    background = torch.where(far <= 4, 2, torch.where(far <= 6, 1, 0))
    assert torch.equal(task.region(state, cells + task.count), background)
    assert {0, 1, 2} == set(background.tolist())
    assert (task.region(state, torch.full_like(cells, 2 * task.count)) == 0).all()


def test_rewards_of_the_paper():
    task = small_seeding_task()
    state = task.start(torch.arange(3), 0)
    action = torch.tensor([3, 3 + task.count, 7])
    after = task.advance(state, action)
    iou, before = task.score(after), task.score(state)
    torch.testing.assert_close(Score()(task, state, action, after), iou)
    exponential = torch.expm1(5 * iou) / torch.expm1(torch.tensor(5.0))
    region = task.region(state, action)
    wanted = torch.where(region == 2, -1.0, exponential - (region == 1).float())
    torch.testing.assert_close(SeedRegions()(task, state, action, after), wanted)
    gain = iou - before
    torch.testing.assert_close(Gain(per_step_length=False)(task, state, action, after), gain)
    torch.testing.assert_close(Progress(2.0)(task, state, action, after), torch.where(gain < 0, 3 * gain, gain))


def test_observations_show_what_they_say():
    task = small_seeding_task()
    state = task.advance(task.start(torch.arange(3), 0), torch.tensor([0, 1, task.count + 2]))
    seen = dict(zip(CHANNELS, task.observe(state).unbind(1), strict=True))
    assert torch.equal(seen["image"], task.cases.image)
    assert torch.equal(seen["mask"].flatten(1) == 255, unpack(state.mask, 18 * 15))
    assert (seen["potential"].float() / 255 - task.potential(state).reshape(3, 18, 15)).abs().max() <= 0.5 / 255 + 1e-6
    assert (seen["seeds left"] == 255 * 5 // 6).all()
    centre = task.cases.cells[0]
    grown = seen["foreground seeds"][0] == 255
    assert all(grown.flatten()[centre + d] for d in (0, 1, -1, 15, -15))
    assert not grown.flatten()[centre + 16]
    assert (seen["background seeds"][2].flatten()[task.cases.cells[2]]) == 255


@pytest.mark.parametrize("size", [7, 8, 9, 270])
def test_packed_bits(size):
    mask = torch.rand(5, size, generator=torch.Generator().manual_seed(0)) < 0.4
    packed = pack(mask)
    assert packed.shape == (5, -(-size // 8))
    assert torch.equal(unpack(packed, size), mask)
    assert torch.equal(count_bits(packed), mask.sum(1))


def test_cell_centres_of_the_paper():
    cells = cell_centres((84, 84), (20, 20))
    assert len(cells) == 400
    assert (cells[0].item(), cells[1].item(), cells[20].item()) == (2 * 84 + 2, 2 * 84 + 6, 6 * 84 + 2)


def test_a_replay_keeps_64_bytes_and_one_mask():
    task = small_seeding_task(max_steps=10)
    environment = Environment(task, num_envs=4, seed=0)
    replay = Replay(task, capacity=80, num_envs=4, n=2, alpha=0.6)
    environment.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        state, action = environment.state, torch.randint(2 * task.count + 1, (4,), generator=generator)
        step = environment.advance(action)
        ended = step.terminated | step.truncated
        replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
    mask = -(-18 * 15 // 8)
    exact = sum(v.element_size() * v[0, 0].numel() for v in replay.store.values()) + 4
    assert exact <= 64 + mask
    batch = replay.sample(16)
    assert torch.equal(batch.next_state.mask, task.complete(batch.next_state).mask)
    assert batch.reward.isfinite().all()
