"""The replay of states: what may be drawn, how often, and what it costs."""

from __future__ import annotations

import io

import pytest
import torch
from probes import Counting, CountState, NoHostSync, Probe, small_landmark_task

from medrl.environment import Environment
from medrl.experience import BUCKET, Replay


class Record:
    """All that was ever added, by (time, row), and what may be drawn according to the definition."""

    def __init__(self, replay: Replay, generator: torch.Generator) -> None:
        self.replay, self.generator = replay, generator
        self.steps: dict[tuple[int, int], dict] = {}
        self.finished = torch.zeros(replay.num_envs, dtype=torch.bool)

    def add(self, ended: torch.Tensor, terminated: torch.Tensor, active: torch.Tensor) -> None:
        rows, time = self.replay.num_envs, self.replay.time
        number = time * rows + torch.arange(rows, dtype=torch.int32) + 1
        case = torch.randint(4, (rows,), generator=self.generator).to(torch.int16)
        state = CountState(case, number)
        after = CountState(case, -number)  # as after a reset: not the next step's state
        action = torch.randint(800, (rows,), generator=self.generator)
        self.replay.add(state, action, after, terminated, ended, active)
        for row in range(rows):
            self.steps[time, row] = {
                "number": int(number[row]),
                "case": int(case[row]),
                "action": int(action[row]),
                "ended": bool(ended[row]),
                "terminated": bool(terminated[row]),
                "drawable": bool(active[row]),
            }

    def add_random(self) -> None:
        rows = self.replay.num_envs
        ended = torch.rand(rows, generator=self.generator) < 0.3
        terminated = ended & (torch.rand(rows, generator=self.generator) < 0.5)
        active = torch.rand(rows, generator=self.generator) < 0.8
        self.add(ended, terminated, active)

    def window(self, time: int, row: int) -> list[dict] | None:
        """The steps from one on, up to n of them, or None where the last is not written yet."""
        steps = []
        for k in range(self.replay.n):
            if (time + k, row) not in self.steps:
                return None
            steps.append(self.steps[time + k, row])
            if steps[-1]["ended"]:
                return steps
        return steps

    def drawable(self) -> dict[int, list[dict]]:
        """Index in the ring -> window."""
        replay, found = self.replay, {}
        for time in range(max(0, replay.time - replay.length), replay.time):
            for row in range(replay.num_envs):
                window = self.window(time, row)
                if window is not None and self.steps[time, row]["drawable"]:
                    found[time % replay.length * replay.num_envs + row] = window
        return found

    def discard(self, case: int) -> None:
        self.replay.discard(torch.tensor([case]))
        oldest = self.replay.time - self.replay.length
        for (time, _), step in self.steps.items():
            if time >= oldest and step["case"] == case:
                step["drawable"] = False


def check_sums(replay: Replay) -> None:
    torch.testing.assert_close(replay.partial, replay.priority.reshape(-1, BUCKET).sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 7, 20])
def test_drawable_are_exactly_the_complete_windows(n, length, torch_generator):
    replay = Replay(Counting(), capacity=length * 3, num_envs=3, n=n, gamma=0.5)
    record = Record(replay, torch_generator)
    for time in range(3 * length):
        record.add_random()
        if time % 4 == 3:
            record.discard(time % 3)
        expected = record.drawable()
        assert set(replay.priority.nonzero()[:, 0].tolist()) == set(expected)
        check_sums(replay)
        if not expected or len(replay) == 0:
            continue
        batch = replay.sample(32)
        for k, index in enumerate(batch.index.tolist()):
            window = expected[index]
            assert batch.state.number[k] == window[0]["number"]
            assert batch.action[k] == window[0]["action"]
            assert batch.next_state.number[k] == -window[-1]["number"]  # the true successor of the window's last step
            assert batch.terminated[k, 0] == window[-1]["terminated"]
            assert batch.reward[k, 0] == pytest.approx(sum(w["number"] * 0.5**j for j, w in enumerate(window)))
            assert batch.discount[k, 0] == pytest.approx(0.5 ** len(window))


def test_windows_never_cross_the_ring_head():
    """gml16/rl-medical mixes its newest and oldest frames once the ring is full."""
    replay = Replay(Counting(), capacity=20, num_envs=1, n=4, gamma=1.0)
    never, always = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    for time in range(53):
        state = CountState(torch.zeros(1, dtype=torch.int16), torch.full((1,), time, dtype=torch.int32))
        replay.add(state, torch.zeros(1, dtype=torch.int64), state, never, never, always)
    batch = replay.sample(500)
    first = batch.state.number
    assert sorted(first.unique().tolist()) == list(range(33, 50))  # 20 slots less the 3 newest, whose windows are open
    assert torch.equal(batch.reward[:, 0], 4.0 * first + 6)  # t + (t + 1) + (t + 2) + (t + 3)
    assert torch.equal(batch.next_state.number, first + 3)


def test_truncation_is_not_termination():
    """gml16/rl-medical stores no mark at the step cap, so its last next state is the first crop of the next volume."""
    task = Probe(lambda s, *_: s.age.float(), length=5, endless=True)
    task.reward = lambda state, action, after: torch.ones(len(action))
    environment = Environment(task, num_envs=4)
    replay = Replay(task, capacity=400, num_envs=4, n=3, gamma=0.5)
    environment.reset()
    for _ in range(50):
        state = environment.state
        step = environment.step(torch.zeros(4, dtype=torch.int64))
        ended = step.terminated | step.truncated
        replay.add(state, torch.zeros(4), step.final_state, step.terminated, ended, step.metrics["active"])
    batch = replay.sample(200)
    assert not batch.terminated.any()
    assert torch.equal(batch.next_state.age, (batch.state.age + 3).clamp(max=5))
    assert torch.equal(batch.next_state.sign, batch.state.sign)  # the same episode
    steps = (5 - batch.state.age).clamp(max=3)
    torch.testing.assert_close(batch.discount[:, 0], 0.5 ** steps.float())


def test_an_ended_step_is_drawable_at_once(torch_generator):
    replay = Replay(Counting(), capacity=30, num_envs=1, n=3)
    record = Record(replay, torch_generator)
    no, yes = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    record.add(no, no, yes)
    assert float(replay.priority.sum()) == 0
    record.add(yes, yes, yes)
    assert replay.priority[:2].tolist() == [1.0, 1.0]


def test_inactive_rows_are_never_drawn():
    task = Probe(lambda task, s, a, n: s.sign, length=1)
    task.length = 3
    environment = Environment(task, num_envs=4, group_size=2)
    replay = Replay(task, capacity=400, num_envs=4, n=2)
    environment.reset()
    environment.state = environment.state._replace(age=torch.tensor([0, 2, 1, 0], dtype=torch.int16))
    inactive = 0
    for _ in range(30):
        state, action = environment.state, torch.zeros(4, dtype=torch.int64)
        step = environment.step(action)
        ended = step.terminated | step.truncated
        inactive += int((~step.metrics["active"]).sum())
        replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
    assert inactive > 0
    assert int(replay.sample(500).state.age.max()) < 3  # an ended row stands still at age 3


def test_learning_before_acting_says_so(torch_generator):
    replay = Replay(Counting(), capacity=30, num_envs=3, n=2)
    with pytest.raises(RuntimeError, match="act before learning"):
        replay.sample(4)
    record = Record(replay, torch_generator)
    record.add_random()
    assert len(replay) == 0
    record.add_random()
    assert len(replay) == 3
    for _ in range(20):
        record.add_random()
    assert len(replay) == 27


def filled(priorities: torch.Tensor, **options) -> Replay:
    """A replay of one row whose transitions have these priorities."""
    replay = Replay(Counting(), capacity=len(priorities), num_envs=1, alpha=1.0, seed=3, **options)
    flag = torch.ones(1, dtype=torch.bool)
    for time in range(len(priorities)):
        state = CountState(torch.zeros(1, dtype=torch.int16), torch.full((1,), time, dtype=torch.int32))
        replay.add(state, torch.zeros(1), state, flag, flag, flag)
    replay.update_priority(torch.arange(len(priorities)), priorities - 1e-3)
    return replay


def test_sampling_frequency_follows_priority(torch_generator):
    priorities = torch.rand(3000, generator=torch_generator) * 3 + 1e-3
    replay = filled(priorities)
    replay.discard(torch.tensor([7]))  # no such case: nothing changes
    replay.priority[::5] = 0
    replay.partial = replay.priority.reshape(-1, BUCKET).sum(1)
    counts, draws = torch.zeros(3000), 0
    for _ in range(400):
        index = replay.sample(256).index
        counts += torch.bincount(index, minlength=3000)
        draws += 256
    alive = replay.priority[:3000] > 0
    expected = replay.priority[:3000] / replay.priority.sum() * draws
    assert counts[~alive].sum() == 0
    keep = expected > 5
    chi2 = ((counts - expected)[keep].square() / expected[keep]).sum() / keep.sum()
    assert 0.3 < float(chi2) < 1.15


def test_alpha_zero_draws_evenly():
    replay = Replay(Counting(), capacity=64, num_envs=1, alpha=0.0)
    flag = torch.ones(1, dtype=torch.bool)
    for time in range(64):
        state = CountState(torch.zeros(1, dtype=torch.int16), torch.full((1,), time, dtype=torch.int32))
        replay.add(state, torch.zeros(1), state, flag, flag, flag)
    batch = replay.sample(64)
    replay.update_priority(batch.index, torch.full((64,), 9.0))
    assert torch.equal(replay.priority[:64], torch.ones(64))
    assert torch.equal(batch.index, torch.arange(64))  # one from each of 64 equal shares
    assert torch.equal(batch.weight, torch.ones(64))


def test_importance_weights_undo_the_preference():
    replay = filled(torch.tensor([1.0, 2.0, 4.0, 8.0]), beta=1.0)
    batch = replay.sample(400)
    weight = {int(i): float(w) for i, w in zip(batch.index, batch.weight, strict=True)}
    assert weight == pytest.approx({0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125}, rel=1e-4)


def test_sums_stay_consistent_over_many_updates(torch_generator):
    replay = filled(torch.ones(2500))
    for _ in range(2000):
        index = torch.randint(2500, (64,), generator=torch_generator)
        index[::2] = index[0]  # often the same one twice
        replay.update_priority(index, 10 ** (6 * torch.rand(64, generator=torch_generator) - 3))
    check_sums(replay)


def test_new_transitions_get_the_highest_priority():
    replay = filled(torch.tensor([1.0, 7.0, 2.0]))
    flag = torch.ones(1, dtype=torch.bool)
    state = CountState(torch.zeros(1, dtype=torch.int16), torch.zeros(1, dtype=torch.int32))
    replay.add(state, torch.zeros(1), state, flag, flag, flag)
    assert replay.priority[:3].tolist() == pytest.approx([7.0, 7.0, 2.0])
    check_sums(replay)


def test_discarded_transitions_stay_discarded(torch_generator):
    replay = Replay(Counting(), capacity=60, num_envs=3, n=2, alpha=1.0)
    record = Record(replay, torch_generator)
    for _ in range(15):
        record.add_random()
    batch = replay.sample(64)
    record.discard(1)
    replay.update_priority(batch.index, torch.ones(64))
    gone = replay.store["state.0"].reshape(-1) == 1
    assert gone[batch.index].any()
    assert float(replay.priority[: len(gone)][gone].sum()) == 0
    assert not (replay.sample(200).state.case == 1).any()


def test_state_dict_round_trip_is_exact(torch_generator):
    def build() -> Replay:
        return Replay(Counting(), capacity=45, num_envs=3, n=3, alpha=0.7, seed=5)

    first = build()
    record = Record(first, torch_generator)
    for _ in range(22):  # the ring is full and windows are open
        record.add_random()
    first.update_priority(first.sample(16).index, torch.rand(16, generator=torch_generator))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build()
    second.load_state_dict(torch.load(file, weights_only=True))
    other = Record(second, torch.Generator().manual_seed(1))
    record.generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        record.add_random()
        other.add_random()
        one, two = first.sample(8), second.sample(8)
        assert torch.equal(one.index, two.index)
        assert torch.equal(one.state.number, two.state.number)
        assert torch.equal(one.reward, two.reward)
        assert torch.equal(one.weight, two.weight)
    assert torch.equal(first.priority, second.priority)
    assert torch.equal(first.partial, second.partial)


def test_another_capacity_is_refused(torch_generator):
    replay = Replay(Counting(), capacity=45, num_envs=3, n=3)
    Record(replay, torch_generator).add_random()
    for options in ({"capacity": 9000, "num_envs": 3, "n": 3}, {"capacity": 45, "num_envs": 3, "n": 1}):
        with pytest.raises(ValueError, match="another capacity"):
            Replay(Counting(), **options).load_state_dict(replay.state_dict())


def test_a_million_landmark_transitions_fit_in_100_mb():
    """gml16/rl-medical: 91,134 bytes a transition, 91 GB for as many."""
    task = small_landmark_task()
    environment = Environment(task, num_envs=250)
    environment.reset()
    replay = Replay(task, capacity=1_000_000, num_envs=250)
    state, action = environment.state, torch.zeros(250, dtype=torch.int64)
    step = environment.step(action)
    replay.add(state, action, step.final_state, step.terminated, step.truncated, step.metrics["active"])
    assert replay.bytes_per_transition() <= 64
    size = sum(v.nelement() * v.element_size() for v in [*replay.store.values(), replay.priority, replay.partial])
    assert size <= 100e6


def test_every_head_is_rewarded():
    task = small_landmark_task()
    environment = Environment(task, num_envs=8)
    environment.reset()
    replay = Replay(task, capacity=80, num_envs=8)
    state, action = environment.state, torch.arange(8) % 7
    step = environment.step(action)
    ended = step.terminated | step.truncated
    replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
    batch = replay.sample(16)
    assert batch.reward.shape == (16, 2)
    own = batch.reward[torch.arange(16), batch.state.head.long()]
    torch.testing.assert_close(own, task.reward(batch.state, batch.action, batch.next_state))
    assert torch.equal(batch.observation["image"], task.observe(batch.state)["image"])


def test_add_and_sample_never_make_the_host_wait():
    task = small_landmark_task()
    environment = Environment(task, num_envs=8)
    replay = Replay(task, capacity=160, num_envs=8, n=3, alpha=0.6)
    environment.reset()
    for guarded in (False, True, True):
        for _ in range(4):
            state, action = environment.state, task.expert(environment.state)
            step = environment.step(action)
            ended = step.terminated | step.truncated
            if guarded:
                with NoHostSync():
                    replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
                    batch = replay.sample(8)
                    replay.update_priority(batch.index, batch.reward.abs().mean(1))
            else:
                replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
