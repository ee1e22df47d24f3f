"""Association by hand: what decisions do to a row, and what they are worth."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from track_examples import small_tracking_task

from medrl.environment import Environment
from medrl.geometry.boxes import iou
from medrl.geometry.track_views import A_CANDIDATE, CANDIDATES, OWN
from medrl.inference.track_decisions import Policy
from medrl.inference.tracking import Tracker
from medrl.rewards.scores import AtStop
from medrl.rewards.tracking import Identity, Mistake
from medrl.tasks.tracking import ACTIONS, BLOCK, DELETE, EMPTY, IGNORE, TrackingTask
from medrl.training.track_company import keep_company


class Nearest(nn.Module):
    """Takes the likeliest detection within four deviations, else waits unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.tensor(4.0))

    def forward(self, vector):
        logits = torch.full((len(vector), len(ACTIONS)), -50.0)
        for n in range(CANDIDATES):
            part = vector[:, OWN + n * A_CANDIDATE : OWN + (n + 1) * A_CANDIDATE]
            logits[:, n] = torch.where(part[:, 0] > 0, self.reach - part[:, -1].expm1(), -50.0)
        logits[:, BLOCK] = 0.0
        return logits


@pytest.fixture(scope="module")
def task() -> TrackingTask:
    return small_tracking_task(clutter=0.0, from_first=1.0)


def first(task, count=1):
    """Rows at the first detection of the first object of the first video."""
    place = task.cases.found[0, 0, 0]
    crowd = task.cases.clip.box.shape[2]
    case = torch.zeros(count, dtype=torch.int64)
    return task.at(case, case, (place // crowd).expand(count), (place % crowd).expand(count))


def act(*names):
    return torch.tensor([ACTIONS.index(name) for name in names])


def test_decisions(task):
    state = first(task, 4)
    after = task.advance(state, act("update 1", "ignore", "block", "delete"))
    assert after.frame.tolist() == [int(state.frame[0]) + 1] * 4
    assert task.shown(after).tolist() == [True, True, False, False]
    assert task.alive(after).tolist() == [True, True, True, False]
    assert after.hits.tolist() == [2, 1, 1, 1]
    assert after.misses.tolist() == [0, 1, 1, 1]
    assert not torch.equal(after.mean[0], after.mean[1])
    torch.testing.assert_close(after.mean[1:2].expand(3, 4, 2), after.mean[1:])
    assert (after.covariance[0, :, 0] < after.covariance[1, :, 0]).all()  # a detection makes it surer
    assert task.terminated(after)[3]


def test_a_candidate_that_is_not_there_is_ignored(task):
    clip = task.cases.clip
    count = clip.exists.sum(-1)
    case, frame = next((n, t) for n, t in (count[:, 1:] == 2).nonzero().tolist() if t < clip.frames[n] - 2)
    which = clip.exists[case, frame].int().argmax()
    state = task.at(torch.tensor([case]), torch.tensor([0]), torch.tensor([frame]), which[None])
    missing, ignored = (task.advance(state, act(name)) for name in ("update 3", "ignore"))
    for a, b in zip(missing, ignored, strict=True):
        torch.testing.assert_close(a, b)


def test_rewards_count_identity(task):
    state, reward = first(task, 4), Identity(right=1.0, wrong=0.5, hidden=0.02)
    action = act("update 1", "ignore", "block", "delete")
    after = task.advance(state, action)
    score = task.score(after)
    box, present = task._truth(after, after.frame.long())
    torch.testing.assert_close(score[:2], iou(task.outputs(after)["box"], box)[:2] * present[:2])
    assert score[2:].tolist() == [0, 0]
    told = reward(task, state, action, after)
    assert told[:2].tolist() == [1.0 if s >= 0.5 else -0.5 for s in score[:2].tolist()]
    assert told[2:].tolist() == pytest.approx([-0.02, 0.0])
    astray = after._replace(mean=after.mean + 500)
    assert reward(task, state, action, astray)[:2].tolist() == [-0.5, -0.5]
    whole = AtStop(threshold=0.7)(task, state, action, after)  # ADNet's label
    assert whole.tolist() == [0, 0, 0, -1]


def test_mistakes_are_those_that_others_pay_for(task):
    environment = Environment(task, num_envs=32, seed=0)
    environment.reset()
    kinds = set()
    for number in range(20):
        state = environment.state
        case, frame = state.case.long(), task._next(state)
        candidate = task.view(state).candidate
        owner = task.cases.clip.owner[case, frame].gather(1, candidate)
        owner = torch.where(task.view(state).exists, owner, -1)
        action = torch.randint(6, (32,), generator=torch.Generator().manual_seed(number))
        told = task.mistaken(state, action)
        for row, (mine, others) in enumerate(zip(state.slot.tolist(), owner.tolist(), strict=True)):
            taken = others[int(action[row])] if action[row] < IGNORE else -1
            wrong = (mine in others and taken != mine) or taken not in (-1, mine)
            assert bool(told[row]) == wrong
            kinds.add((wrong, taken == mine, mine in others))
        assert not task.mistaken(state, task.expert(state)).any()
        cost = Mistake()(task, state, action, task.advance(state, action))
        assert torch.equal(cost, told.float())
        environment.step(task.expert(state))
    assert len(kinds) >= 4


def test_the_oracle(task):
    environment = Environment(task, num_envs=24, seed=0)
    environment.reset()
    right = shown = 0
    for _ in range(40):
        state, action = environment.state, task.expert(environment.state)
        step = environment.step(action)
        seen = task.shown(step.final_state)
        right += int((step.metrics["score"][seen] >= 0.5).sum())
        shown += int(seen.sum())
        clip, frame = task.cases.clip, task._next(state)
        owner = clip.owner[state.case.long(), frame]
        own = (owner == state.slot[:, None]) & clip.exists[state.case.long(), frame]
        assert (own.any(1) | (action >= IGNORE)).all()  # it takes nothing but its own
    assert right / shown > 0.95
    lost = first(task)._replace(slot=torch.tensor([-1], dtype=torch.int16))
    assert task.expert(lost).tolist() == [DELETE]


def test_the_oracle_waits_behind_things(task):
    clip = task.cases.clip
    own = (clip.owner[..., None] == torch.arange(task.cases.objects)) & clip.exists[..., None]
    unseen = clip.present & ~own.any(2)  # (N, T, K)
    early = clip.present.cumsum(1) > 1
    case, frame, slot = (unseen & early).nonzero()[0].tolist()
    state = first(task)._replace(
        case=torch.tensor([case], dtype=torch.int16), slot=torch.tensor([slot], dtype=torch.int16),
        frame=torch.tensor([frame - 1], dtype=torch.int16),
    )  # fmt: skip
    far = state._replace(mean=state.mean + 500)
    assert task.expert(far).tolist() == [BLOCK]
    there = clip.truth[case, frame, slot]
    from medrl.geometry.box_motion import start

    near = start(there[None], task.noise)
    assert task.expert(state._replace(mean=near.mean, covariance=near.covariance)).tolist() == [IGNORE]


def test_slots_of_a_group():
    task = small_tracking_task(group=6, clutter=0.0, from_first=1.0)
    state = task.initial(torch.zeros(12, dtype=torch.int64), torch.Generator().manual_seed(0))
    there = int(task.cases.objects_there[0].sum())
    expected = [k if k < there else EMPTY for k in range(6)]
    assert state.slot.tolist() == expected * 2
    empty = state.slot == EMPTY
    assert empty.any()
    assert not task.observe(state)[empty].any()
    assert task.observe(state)[~empty].any(1).all()
    after = task.advance(state, torch.zeros(12, dtype=torch.int64))
    assert torch.equal(task.terminated(after), empty)
    assert not task.reward(state, torch.zeros(12, dtype=torch.int64), after)[empty].any()
    assert not task.score(after)[empty].any()
    environment = Environment(task, num_envs=12, group_size=6, seed=0)
    environment.reset()
    for _ in range(30):
        step = environment.step(task.expert(environment.state))
        case = environment.state.case.reshape(2, 6)
        assert (case == case[:, :1]).all()
        assert not step.reward[environment.state.slot == EMPTY].any() or step.metrics["ended"].any()


def test_starts():
    clutter = small_tracking_task(clutter=1.0)
    state = clutter.initial(torch.arange(60) % 3, torch.Generator().manual_seed(0))
    assert ((state.slot == -1) | (state.slot == EMPTY)).all()
    assert (state.slot == -1).any()
    anywhere = small_tracking_task(clutter=0.0, from_first=0.0)
    state = anywhere.initial(torch.arange(60) % 3, torch.Generator().manual_seed(0))
    assert (state.slot >= 0).all()
    clip = anywhere.cases.clip
    assert (state.frame < clip.frames[state.case.long()] - 1).all()
    assert state.frame.unique().numel() > 5


def test_neighbours_leave_out_oneself(task):
    state = first(task)
    nobody = state._replace(name=torch.tensor([-1], dtype=torch.int32))
    assert not torch.equal(task.observe(state), task.observe(nobody))


def test_the_company_of_a_tracker():
    cases = small_tracking_task().cases
    tracker, network = Tracker(Policy(cases.noise), cases.noise), Nearest()
    company = keep_company(tracker, network, cases)
    task = TrackingTask(cases=cases.accompanied(company))
    case = torch.arange(len(cases)).repeat(40)
    state = task.initial(case, torch.Generator().manual_seed(0))
    assert torch.equal(state.case.long(), case)
    assert len(state.name.unique()) > 8
    assert (state.frame < cases.clip.frames[case] - 1).all()
    # a track goes on as the tracker had it go on
    looked = task.view(state)
    told = network(looked.vector)
    after = task.advance(state, told.argmax(1))
    starts = zip(company.starts.name.tolist(), company.starts.frame.tolist(), strict=True)
    place = {pair: number for number, pair in enumerate(starts)}
    pairs = zip(state.name.tolist(), (state.frame + 1).tolist(), strict=True)
    again = torch.tensor([place.get(pair, -1) for pair in pairs])
    kept = again >= 0
    same = (after.mean[kept] - company.starts.mean[again[kept]]).abs().amax((1, 2)) < 1e-4
    assert same.float().mean() > 0.75  # but where two wanted one detection
    # nobody is a neighbour of its own: a stranger in its place sees one more
    beside = company.neighbours
    frame = task._next(state)
    own = beside.there[state.case.long(), frame] & (beside.name[state.case.long(), frame] == state.name[:, None])
    assert own.any()
    stranger = state._replace(name=torch.full_like(state.name, -7))
    seen = (task.observe(stranger) != looked.vector).any(1)
    assert torch.equal(seen, own.any(1))


def test_what_another_track_holds_is_not_shown_twice():
    cases = small_tracking_task().cases
    company = keep_company(Tracker(Policy(cases.noise), cases.noise), Nearest(), cases)
    task = TrackingTask(cases=cases.accompanied(company))
    state = task.initial(torch.arange(len(cases)).repeat(60), torch.Generator().manual_seed(1))
    frame = task._next(state)
    followed = state.slot >= 0
    own = company.holder[state.case.long(), frame, state.slot.clamp(min=0).long()] == state.name
    held = company.held[state.case.long(), frame, state.slot.clamp(min=0).long()]
    mine = followed & own & held
    assert mine.any()
    rival = state._replace(name=torch.full_like(state.name, -7))
    action = task.expert(state)
    assert (task.expert(rival)[mine] == DELETE).all()
    assert (action[mine] != DELETE).all()
    after, other = task.advance(state, action), task.advance(rival, action)
    good = mine & (task.score(after) >= 0.5)
    assert good.any()
    assert not task.score(other)[good].any()
