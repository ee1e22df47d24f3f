"""The rollout: advantages by hand and by brute force, what it selects, what it costs, and that it never waits."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from probes import Counting, CountState, NoHostSync, Probe, small_landmark_task

from medrl.environment import Environment
from medrl.returns import gae
from medrl.rollout import Rollout
from medrl.types import Step


def counting(max_steps: int = 3) -> Counting:
    task = Counting()
    task.max_steps = max_steps
    return task


def states(*numbers: int) -> CountState:
    return CountState(torch.zeros(len(numbers), dtype=torch.int16), torch.tensor(numbers, dtype=torch.int32))


def step(reward, terminated=(0, 0), truncated=(0, 0), final=(0, 0), active=(1, 1)) -> Step:
    flags = (torch.tensor(x).bool() for x in (terminated, truncated))
    metrics = {"active": torch.tensor(active).bool()}
    return Step(None, torch.tensor(reward), *flags, states(*final), metrics)


def filled() -> Rollout:
    """Row 0 is cut after its second step, row 1 terminates at its first; both go on to the end of the rollout."""
    rollout = Rollout(counting(), length=4, num_envs=2)
    steps = [
        step([1.0, 1.0], terminated=[0, 1], final=[11, 12]),
        step([2.0, 1.0], truncated=[1, 0], final=[21, 22]),
        step([4.0, 1.0], final=[31, 32]),
        step([8.0, 1.0], final=[41, 42]),
    ]
    for t, taken in enumerate(steps):
        before, after = (torch.full((2, 3), 10.0 * n) + torch.arange(2.0)[:, None] for n in (t, t + 1))
        rollout.add(
            states(10 * t, 10 * t + 1), taken, memory=before, next_memory=after,
            value=torch.tensor([10.0 * (t + 1), 0.0]), action=torch.tensor([t, t + 10]),
        )  # fmt: skip
    return rollout


def test_advantages_by_hand():
    rollout = filled()
    state, memory = rollout.successors()
    assert state.number.tolist() == [21, 1, 41, 42]  # the cut of row 0, an unused slot, the ends of both rows
    assert memory[[0, 2, 3], 0].tolist() == [20.0, 40.0, 41.0]  # what was known then, before any reset
    advantage = rollout.advantage(torch.tensor([100.0, 999.0, 200.0, 4.0]), gamma=0.5, decay=0.5)
    # row 0: 8 + 0.5 * 200 - 40 = 68; 4 + 0.5 * 40 - 30 + 0.25 * 68 = 11; cut, so it has no part in
    # 2 + 0.5 * 100 - 20 = 32; 1 + 0.5 * 20 - 10 + 0.25 * 32 = 9
    assert advantage[:, 0].tolist() == [9.0, 32.0, 11.0, 68.0]
    # row 1, of value 0: 1 + 0.5 * 4 = 3; 1 + 0.25 * 3; 1 + 0.25 * 1.75; terminated: 1 alone
    assert advantage[:, 1].tolist() == [1.0, 1.4375, 1.75, 3.0]


@pytest.mark.parametrize("length", [1, 2, 5, 9, 16])
@pytest.mark.parametrize("options", [{"length": 1}, {"length": 2}, {"length": 3}, {"length": 3, "group_size": 2}])
def test_advantages_equal_those_of_every_successor_valued(length, options, torch_generator):
    group_size = options.pop("group_size", 1)
    task = Probe(lambda task, s, a, n: s.sign * n.age, endless=True, **options)
    task.terminated = lambda state: (state.sign > 0) & (state.age == 2)

    def value(state):
        return state.sign * 3 + state.age.float() ** 2

    environment = Environment(task, num_envs=6, group_size=group_size)
    environment.reset()
    environment.clock = (torch.arange(6) % task.max_steps).int()  # some are cut in the very first step
    rollout = Rollout(task, length=length, num_envs=6)
    for _ in range(3):
        rollout.clear()
        taken, valued = [], []
        for _ in range(length):
            state, action = environment.state, torch.zeros(6, dtype=torch.int64)
            taken.append(environment.step(action))
            rollout.add(state, taken[-1], value=value(state), action=action)
            valued.append(value(state))
        parts = (torch.stack([getattr(t, n) for t in taken]) for n in ("reward", "terminated", "truncated"))
        reward, terminated, truncated = parts
        after = torch.stack([value(t.final_state) for t in taken])
        expected = gae(
            reward, torch.stack(valued), after, terminated, terminated | truncated, gamma=0.9, decay=0.8
        )  # fmt: skip
        ours = rollout.advantage(value(rollout.successors()[0]), gamma=0.9, decay=0.8)
        active = torch.stack([t.metrics["active"] for t in taken])
        torch.testing.assert_close(ours[active], expected[active])


def test_sequences_and_transitions():
    rollout = filled()
    rollout.put("advantage", torch.arange(8.0).reshape(4, 2))
    some = rollout.sequences(torch.tensor([1]))
    assert some.observation[:, 0].tolist() == [1, 11, 21, 31]
    assert some.memory.tolist() == [[1.0] * 3]
    assert some.reset[:, 0].tolist() == [True, False, False, False]
    assert some.values["action"][:, 0].tolist() == [10, 11, 12, 13]
    assert some.values["advantage"][:, 0].tolist() == [1.0, 3.0, 5.0, 7.0]
    some = rollout.transitions(torch.tensor([2, 7, 0]))
    assert some.memory is None
    assert some.observation.tolist() == [[10, 31, 0]]
    assert some.reset.tolist() == [[True, False, False]]
    assert some.values["advantage"].tolist() == [[2.0, 7.0, 0.0]]


def test_rows_that_wait_are_inactive_and_reset():
    rollout = Rollout(counting(), length=1, num_envs=2)
    rollout.add(states(0, 1), step([1.0, 0.0], active=[1, 0]), value=torch.zeros(2))
    some = rollout.sequences(torch.arange(2))
    assert some.active.tolist() == [[True, False]]
    assert some.reset.tolist() == [[False, True]]


@pytest.mark.parametrize("keep", [False, True])
def test_observations_are_those_that_were_seen(keep):
    task = small_landmark_task()
    environment = Environment(task, num_envs=4)
    rollout = Rollout(task, length=3, num_envs=4, keep_observation=keep)
    seen = [environment.reset()]
    for _ in range(3):
        state, action = environment.state, task.expert(environment.state)
        taken = environment.step(action)
        rollout.add(state, taken, observation=seen[-1], value=torch.zeros(4), action=action)
        seen.append(taken.observation)
    assert ("observation.image" in rollout.store) == keep
    if keep:
        task.observe = None
    some = rollout.sequences(torch.tensor([2, 0]))
    for name in ("image", "scale", "head"):
        assert torch.equal(some.observation[name], torch.stack([s[name][[2, 0]] for s in seen[:3]]))
    assert torch.equal(rollout.transitions(torch.tensor([6])).observation["image"][0, 0], seen[1]["image"][2])
    assert rollout.bytes_per_transition() == 18


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="holds nothing"):
        Rollout(counting(), length=0, num_envs=2)
    rollout = filled()
    with pytest.raises(RuntimeError, match="holds its 4 steps"):
        rollout.add(states(0, 1), step([0.0, 0.0]), value=torch.zeros(2))
    with pytest.raises(ValueError, match="num_envs 3"):
        Rollout(counting(), length=2, num_envs=3).add(states(0, 1), step([0.0, 0.0]), value=torch.zeros(2))


def test_state_dict_round_trip_in_the_middle():
    task = counting()
    task.initial = lambda case, generator: states(*case.tolist())
    one, two = (Rollout(task, length=4, num_envs=2) for _ in range(2))
    steps = [step([1.0, 2.0], truncated=[1, 0], final=[5, 6]), step([3.0, 4.0], final=[7, 8])] * 2
    for t, taken in enumerate(steps):
        if t == 2:
            file = io.BytesIO()
            torch.save(one.state_dict(), file)
            file.seek(0)
            two.load_state_dict(torch.load(file, weights_only=True))
        for rollout in (one, two)[: 1 if t < 2 else 2]:
            memory = torch.full((2, 1), float(t))
            rollout.add(states(t, t), taken, memory=memory, next_memory=memory + 1, value=torch.full((2,), float(t)))
    assert one.full
    assert two.full
    after = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(*(r.advantage(after, gamma=0.9, decay=0.9) for r in (one, two)))
    assert all(torch.equal(a, b) for a, b in zip(one.successors()[0], two.successors()[0], strict=True))
    assert all(torch.equal(r.sequences(torch.arange(2)).memory, torch.zeros(2, 1)) for r in (one, two))
    one.clear()
    assert one.state_dict() == {"time": 0}
    with pytest.raises(ValueError, match="another length"):
        Rollout(task, length=4, num_envs=3).load_state_dict(two.state_dict())


def test_never_makes_the_host_wait():
    task = SimpleNamespace(max_steps=1, cases=Counting.cases, observe=lambda state: state.number)
    rollout = Rollout(task, length=3, num_envs=2)
    taken = step([1.0, 2.0], truncated=[1, 0], final=[5, 6])
    action, state, index = torch.zeros(2, dtype=torch.int64), states(3, 4), torch.tensor([1, 0])
    memory = torch.zeros(2, 4)
    with NoHostSync():
        for _ in range(3):
            rollout.add(state, taken, memory=memory, next_memory=memory, value=memory[:, 0], action=action)
        rollout.successors()
        rollout.advantage(torch.zeros(2 * rollout.slots), gamma=0.9, decay=0.9)
        rollout.sequences(index)
        rollout.transitions(index)
        rollout.clear()
