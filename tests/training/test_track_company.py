"""The company of a learner that tracks."""

from __future__ import annotations

import numpy as np
import torch
from track_examples import small_phantoms

from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.track_cases import NOBODY, TrackCases, stack_videos
from medrl.data.tracks import Boxes, Video, make_boxes
from medrl.environment import Environment
from medrl.geometry.box_motion import MotionNoise
from medrl.geometry.track_views import LENGTH
from medrl.inference.track_decisions import Overlap, Policy
from medrl.inference.tracking import Tracker
from medrl.networks.policy import PolicyNet
from medrl.rollout import Rollout
from medrl.tasks.tracking import ACTIONS, TrackingTask
from medrl.training.track_company import Ledger, RenewCompany, keep_company
from medrl.training.trainer import RLTrainer

NOISE = MotionNoise()


def scene():
    """One object, detected twice in every frame from the third on; and a false detection apart from it."""
    truth = [(t, 0, (100, 50, 130, 110), 1.0) for t in range(10)]
    found = [(t, 0, (100, 50, 130, 110), 0.9) for t in range(10)]
    found += [(t, 0, (112, 50, 142, 110), 0.8) for t in range(2, 10)]
    found += [(t, -1, (400, 50, 430, 110), 0.8) for t in range(4)]
    detections, boxes = make_boxes(sorted(found)), make_boxes(truth)
    return TrackCases(stack_videos([Video("scene", 10, (640, 360), detections, boxes)]), noise=NOISE)


def test_the_ledger_tells_whose_a_track_is():
    clip = TrackCases.from_phantoms(small_phantoms(2)).clip
    ledger = Ledger(clip)
    case, frame, which = (clip.owner == 1).nonzero()[0]
    other = (clip.owner[case, frame] == 0).nonzero()
    names = torch.tensor([3, 5000])
    for _ in range(2):
        ledger.add(names, case.expand(2), int(frame), which.expand(2))
    assert ledger.object(names)[0].tolist() == [1, 1]
    assert ledger.object(names)[1].tolist() == [2, 2]
    if len(other):
        for _ in range(3):
            ledger.add(names[:1], case[None], int(frame), other[0])
        assert ledger.object(names)[0].tolist() == [0, 1]
    case, frame, which = (clip.exists & (clip.owner == NOBODY)).nonzero()[0]
    for _ in range(4):
        ledger.add(names, case.expand(2), int(frame), which.expand(2))
    assert ledger.object(names)[0].tolist() == [NOBODY, NOBODY]


def test_an_object_belongs_to_the_track_with_more_of_it():
    cases = scene()
    tracker = Tracker(Overlap(overlap=0.5, patience=3), NOISE, crowded=1.0)
    company = keep_company(tracker, PolicyNet(features=LENGTH, actions=len(ACTIONS)), cases)
    names = company.starts.name.unique().tolist()
    assert names == [0, 1, 2]  # the false one, the object, its double
    assert company.holder[0, :, 0].tolist() == [1] * 10
    assert company.held[0, :, 0].all()
    owner = [company.starts.slot[company.starts.name == name].unique().tolist() for name in names]
    assert owner == [[NOBODY], [0], [0]]
    # every start is before a frame in which its track decided, and its neighbours were there
    assert int(company.starts.frame.max()) == 8
    assert company.count.tolist() == [len(company.starts.case)]
    at = company.neighbours.name[0, 9]
    assert sorted(at[at != NOBODY].tolist()) == [1, 2]


def test_company_is_renewed_as_epochs_start():
    cases = TrackCases.from_phantoms(small_phantoms(3))
    kept = {}
    for untrained in (False, True):
        task = TrackingTask(cases=cases, horizon=4)
        environment = Environment(task, num_envs=8, seed=0)
        rollout = Rollout(task, length=3, num_envs=8, keep_observation=True)
        network = PolicyNet(features=LENGTH, actions=len(ACTIONS), hidden=8)
        agent = PolicyCloning(network, rollout=rollout, environment=environment, minibatches=2, mix_updates=0)
        seen = kept[untrained] = []
        renewal = RenewCompany(
            environment=environment, tracker=Tracker(Policy(cases.noise), cases.noise, most=20), untrained=untrained
        )
        trainer = RLTrainer(
            device="cpu", max_epochs=3, epoch_length=2, agent=agent, environment=environment,
            train_handlers=[renewal],
        )  # fmt: skip
        from ignite.engine import Events

        trainer.add_event_handler(
            Events.EPOCH_COMPLETED,
            lambda _, task=task, environment=environment, seen=seen: seen.append(
                (task.cases.company, environment.state.name.clone())
            ),
        )
        trainer.run()
    assert [company is not None for company, _ in kept[False]] == [True, True, True]
    assert [company is not None for company, _ in kept[True]] == [False, True, True]
    first, second, third = (company for company, _ in kept[False])
    assert first is not second
    assert second is not third
    for company, names in kept[True][1:]:
        assert torch.isin(names, torch.cat([company.starts.name, torch.tensor([0], dtype=torch.int32)])).all()
    assert cases.company is None  # the caller's own are as they were


def test_nobody_in_sight():
    video = Video("still", 6, (640, 360), Boxes(
        np.array([5]), np.array([[10, 10, 30, 50]], np.float32), np.array([0.9], np.float32), np.array([0])
    ), make_boxes([(5, 0, (10, 10, 30, 50), 1.0)]))  # fmt: skip
    cases = TrackCases(stack_videos([video, small_phantoms(1)[0].video]), noise=NOISE)
    company = keep_company(Tracker(Overlap(), NOISE), PolicyNet(features=LENGTH, actions=len(ACTIONS)), cases)
    assert company.count[0] == 0
    task = TrackingTask(cases=cases.accompanied(company))
    state = task.initial(torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert not task.observe(state).any()
    after = task.advance(state, torch.zeros(4, dtype=torch.int64))
    assert task.terminated(after).all()
