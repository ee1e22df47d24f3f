"""The landmark task: moves, settling, ends, rewards and the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from probes import small_cases, small_landmark_task

from medrl.data.cases import Cases, Source
from medrl.data.phantoms import LABELS, phantom
from medrl.environment import Environment
from medrl.rewards.scores import AtStop, Gain
from medrl.tasks.landmark import MOVES, SETTLE, LandmarkTask

CASE = torch.zeros(1, dtype=torch.int16)


def at(task: LandmarkTask, *offset_mm: float, scale: int = 0):
    """One walker at an offset from the first landmark of the first case."""
    return task.state(CASE, CASE, task.cases.points_mm[:1, 0] + torch.tensor([offset_mm]), scale)


def test_moves_are_as_long_as_the_step_of_the_scale():
    task = small_landmark_task(step_mm=(8.0, 3.0, 1.0), strides=(1, 2, 4))
    for scale, length in enumerate((8.0, 3.0, 1.0)):
        state = at(task, 0, 0, 0, scale=scale)
        for action in range(6):
            moved = task.advance(state, torch.tensor([action]))
            torch.testing.assert_close(moved.position - state.position, length * MOVES[action][None])
            assert int(moved.scale) == scale
            assert not moved.settled


def test_settle_goes_on_with_the_finer_step_and_then_ends():
    task = small_landmark_task(step_mm=(8.0, 3.0, 1.0), strides=(1, 2, 4))
    state, settle = at(task, 0, 0, 0), torch.tensor([SETTLE])
    for scale in (1, 2):
        state = task.advance(state, settle)
        assert int(state.scale) == scale
        assert not task.terminated(state)
    end = task.advance(state, settle)
    assert int(end.scale) == 2
    assert bool(task.terminated(end))
    assert torch.equal(end.position, state.position)


def test_success_is_not_one_step_late():
    """gml16/rl-medical ends, and pays, one step after the landmark is reached."""
    task = small_landmark_task(step_mm=(2.0,), reward=Gain() + AtStop(threshold=-1.0, eta=5.0))
    start = at(task, -2.0, 0, 0)
    reached = task.advance(start, torch.tensor([0]))
    assert task.score(reached).item() == pytest.approx(0.0, abs=1e-5)
    assert task.reward(start, torch.tensor([0]), reached).item() == pytest.approx(1.0)  # not the end yet
    settled = task.advance(reached, torch.tensor([SETTLE]))
    assert bool(task.terminated(settled))
    assert task.reward(reached, torch.tensor([SETTLE]), settled).item() == pytest.approx(5.0)


def test_a_walker_far_outside_has_ended():
    task = small_landmark_task(leave_mm=10.0)
    half = task.half_size_mm[0]
    for axis in range(3):
        for sign in (-1, 1):
            place = torch.zeros(1, 3)
            place[0, axis] = sign * (half[axis] + 9.9)
            assert not task.terminated(task.state(CASE, CASE, place))
            place[0, axis] = sign * (half[axis] + 10.1)
            assert bool(task.terminated(task.state(CASE, CASE, place)))


def test_score_is_minus_the_distance_in_mm_and_zero_where_unknown():
    task = small_landmark_task()
    assert task.score(at(task, 3, 4, 12)).item() == pytest.approx(-13.0, abs=1e-4)
    unknown = task.state(torch.tensor([2]), torch.tensor([1]), torch.zeros(1, 3))
    assert task.score(unknown).item() == 0.0


def test_expert_takes_the_best_move_and_settles_where_none_gains():
    task = small_landmark_task(step_mm=(4.0, 2.0))
    assert task.expert(at(task, -9, 2, 1)).item() == 0
    assert task.expert(at(task, 1, 2, 30)).item() == 5
    assert task.expert(at(task, 1, 1, 1)).item() == SETTLE
    assert task.expert(at(task, 2.0, 0, 0)).item() == SETTLE  # half a step: the move gains nothing
    assert task.expert(at(task, 1.9, 0, 0, scale=1)).item() == 1


def test_expert_walks_to_within_half_a_step_of_every_landmark(torch_generator):
    task = small_landmark_task(max_steps=80, near_mm=(10.0,), near_share=(1.0,))
    state = task.initial(torch.arange(60) % 2, torch_generator)
    for _ in range(80):
        state = task.advance(state, task.expert(state))
    assert bool(state.settled.all())
    offset = task.cases.points_mm[state.case.long(), state.head.long()] - state.position
    # no single move of 2 mm gains: along each axis |d| <= 1 mm where the others are 0, sqrt(3) at most together
    assert float(offset.norm(dim=1).max()) <= math.sqrt(3) + 1e-3


@pytest.mark.parametrize("axis", [0, 2])
def test_without_settle_oscillation_refines_the_step(axis):
    task = small_landmark_task(settle=False, step_mm=(4.0, 2.0))
    assert task.action_space.n == 6
    state = at(task, 0.5, 0.3, 0.2)
    there, back = 2 * axis, 2 * axis + 1
    scales = []
    for action in (there, back, there, back):
        state = task.advance(state, torch.tensor([action]))
        scales.append(int(state.scale))
    assert scales == [0, 1, 1, 1]
    assert bool(state.settled)  # the second return, at the finest step
    assert task.expert(state).item() < 6


def test_without_settle_a_straight_walk_goes_on():
    task = small_landmark_task(settle=False, step_mm=(4.0, 2.0))
    state = at(task, -40, 0, 0)
    for _ in range(8):
        state = task.advance(state, torch.tensor([0]))
    assert int(state.scale) == 0
    round_trip = at(task, 0, 0, 0)
    for action in (0, 2, 1, 3):  # a square: the fourth move comes back
        round_trip = task.advance(round_trip, torch.tensor([action]))
    assert int(round_trip.scale) == 1


def test_without_settle_the_expert_stays_in_its_action_space(torch_generator):
    task = small_landmark_task(settle=False, max_steps=60)
    environment = Environment(task, num_envs=40)
    environment.reset()
    scores = []
    for _ in range(60):
        action = task.expert(environment.state)
        assert int(action.max()) < 6
        step = environment.step(action)
        scores.append(step.metrics["score"][step.terminated & task.cases.present[step.final_state.case.long(), 0]])
    assert len(torch.cat(scores)) > 20
    assert float(torch.cat(scores).median()) > -4.0


def test_stack_at_episode_start_repeats_the_first_crop():
    """gml16/rl-medical leaves frames of the last episode in the first stack of the next."""
    task = small_landmark_task(observation="frames", frames=3, step_mm=(4.0, 2.0))
    environment = Environment(task, num_envs=6)
    first = environment.reset()["image"]
    for _ in range(30):
        assert first.shape == (6, 3, 5, 5, 5)
        step = environment.step(torch.randint(6, (6,)))
        started = environment.clock == 0
        image = step.observation["image"][started]
        assert torch.equal(image, image[:, :1].expand_as(image))


def test_frames_show_the_last_places_at_the_own_scale():
    task = small_landmark_task(observation="frames", frames=3, step_mm=(4.0, 2.0), settle=True)
    places = [at(task, 0, 0, 0)]
    for action in (0, 2, 5):
        places.append(task.advance(places[-1], torch.tensor([action])))
    image = task.observe(places[-1])["image"][0]
    for age in range(3):  # latest first
        alone = task.cases.pyramid.crop(CASE, places[-1 - age].position, 5)[0]
        assert torch.equal(image[age], alone[1])  # scale 0 reads the coarser of the two levels
    finer = task.advance(places[-1], torch.tensor([SETTLE]))
    assert torch.equal(task.observe(finer)["image"][0, 0], task.cases.pyramid.crop(CASE, finer.position, 5)[0, 0])


def test_observation_is_in_its_space(torch_generator):
    for options in ({}, {"observation": "frames", "frames": 4}, {"settle": False}):
        task = small_landmark_task(**options)
        seen = task.observe(task.initial(torch.arange(6) % 3, torch_generator))
        for row in range(6):
            assert task.observation_space.contains({name: value.numpy()[row] for name, value in seen.items()})


@pytest.mark.parametrize("start", ["near", "anywhere", "mixed"])
def test_walkers_start_inside_and_look_for_known_landmarks(start, torch_generator):
    task = small_landmark_task(start=start)
    state = task.initial(torch.arange(3000) % 3, torch_generator)
    assert bool(task.cases.known[state.case.long(), state.head.long()].all())
    assert bool((state.position.abs() <= task.half_size_mm[state.case.long()]).all())
    assert not task.terminated(state).any()
    assert set(state.head[state.case == 0].tolist()) == {0, 1}
    if start == "anywhere":
        spread = state.position[state.case == 0].std(0) / task.half_size_mm[0]
        assert spread.tolist() == pytest.approx([3**-0.5] * 3, rel=0.08)  # uniform


def test_near_starts_follow_their_shares(torch_generator):
    volume = torch.full((200, 200, 200), 9, dtype=torch.uint8)
    cases = Cases([volume], torch.zeros(1, 1, 3), labels=["a"], spacing_mm=2.0, strides=(1,))
    task = LandmarkTask(cases, start="near", near_mm=(0.5, 20.0), near_share=(1.0, 3.0))
    distance = task.initial(torch.zeros(4000, dtype=torch.int64), torch_generator).position.norm(dim=1)
    assert float((distance < 2.5).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_case_without_truth_walks_for_no_reward(torch_generator):
    volume, unknown = torch.full((16, 16, 16), 9, dtype=torch.uint8), torch.full((1, 2, 3), torch.nan)
    cases = Cases([volume], unknown, labels=["a", "b"], spacing_mm=2.0, strides=(1,))
    task = LandmarkTask(cases, size=5)
    state = task.initial(torch.zeros(50, dtype=torch.int64), torch_generator)
    action = torch.randint(7, (50,), generator=torch_generator)
    assert set(state.head.tolist()) == {0, 1}
    assert not task.reward(state, action, task.advance(state, action)).any()


def test_gains_are_what_every_action_earns(torch_generator):
    task = small_landmark_task()
    state = task.initial(torch.arange(50) % 2, torch_generator)
    targets = task.targets(state)
    assert targets["gains"].shape == (50, 2, 2, 7)
    assert targets["offset_mm"].shape == (50, 2, 3)
    own = targets["gains"][torch.arange(50), state.head.long()]
    for scale in range(2):
        here = state._replace(scale=torch.full((50,), scale, dtype=torch.int8))
        for action in range(7):
            earned = Gain()(task, here, torch.full((50,), action), task.advance(here, torch.full((50,), action)))
            torch.testing.assert_close(own[:, scale, action], earned, atol=1e-4, rtol=0)


def test_offset_counts_from_the_voxel_that_the_crop_is_centred_on():
    cases = small_cases(1)
    task = LandmarkTask(cases, size=5, step_mm=(2.0,))
    state = task.state(CASE, CASE, cases.points_mm[:1, 0] + torch.tensor([[0.7, -0.7, 0.2]]))
    voxel = cases.pyramid.nearest_voxel(CASE, state.position)
    offset = task.targets(state)["offset_mm"][0, 0]
    torch.testing.assert_close(cases.pyramid.voxel_position(CASE, voxel)[0] + offset, cases.points_mm[0, 0])
    assert task.targets(state)["present"].tolist() == cases.present.tolist()


def test_each_head_repeats_every_walker(torch_generator):
    task = small_landmark_task()
    state = task.initial(torch.tensor([0, 1]), torch_generator)
    every = task.each_head(state)
    assert every.case.tolist() == [0, 0, 1, 1]
    assert every.head.tolist() == [0, 1, 0, 1]
    assert torch.equal(every.position, state.position.repeat_interleave(2, 0))


def test_supervised_states_cover_all_scales(torch_generator):
    task = small_landmark_task()
    state = task.sample(600, torch_generator)
    assert set(state.scale.tolist()) == {0, 1}
    assert set(state.case.tolist()) == {0, 1, 2}
    assert bool(task.cases.known[state.case.long(), state.head.long()].all())


def test_outputs_are_in_patient_space_whatever_the_storage(generator):
    """The oracle walks to the organs of oblique, flipped, anisotropic phantoms: its end is right in RAS mm."""
    sources, truth = [], []
    for number in range(3):
        volume, affine, points = phantom(generator, shape=(32, 36, 28), spacing_mm=(6, 5, 7), affine="random")
        truth.append(torch.from_numpy(np.stack(list(points.values()))))
        sources.append(Source(str(number), torch.from_numpy(volume), torch.from_numpy(affine), truth[-1]))
    cases = Cases.from_sources(sources, labels=LABELS, spacing_mm=4.0, strides=(1, 2))
    task = LandmarkTask(cases, size=5, step_mm=(8.0, 2.0, 0.5), observation="concentric")
    case = torch.arange(3).repeat_interleave(6)
    state = task.state(case, torch.arange(6).repeat(3), torch.zeros(18, 3))
    for _ in range(200):
        state = task.advance(state, task.expert(state))
    out = task.outputs(state)
    error = (out["position_ras_mm"] - torch.cat(truth)).norm(dim=1)
    assert float(error.max()) < 0.5
    assert out["case"] == [str(n) for n in case.tolist()]
    assert out["label"] == list(LABELS) * 3


def test_wrong_options_are_refused():
    for options, words in [
        ({"observation": "planes"}, "unknown observation"),
        ({"start": "far"}, "start 'far'"),
        ({"step_mm": (1.0, 2.0)}, "coarse to fine"),
        ({"observation": "frames", "step_mm": (4.0, 2.0, 1.0)}, "a level for every step"),
    ]:
        with pytest.raises(ValueError, match=words):
            small_landmark_task(**options)


def test_a_default_row_costs_18_bytes():
    state = small_landmark_task().initial(torch.zeros(10, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert sum(value.nelement() * value.element_size() for value in state) == 180
