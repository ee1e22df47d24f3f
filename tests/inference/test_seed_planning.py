"""Plans of all seeds on a believed object."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.overlap import expected_iou
from medrl.geometry.random_walker import edge_weights, walk
from medrl.gym import phantom_seeding
from medrl.inference.seed_planning import SeedPlanner, highest_value, one_session
from medrl.networks.seednet import SeedNet
from medrl.tasks.seeding import SeedingTask


def scattered(task, state):
    """Free cells in a fixed order, all taken for the object."""
    order = (torch.arange(task.count) * 7 % task.count).float()
    return order.expand(len(state.case), -1).masked_fill(task.taken(state), -1).argmax(1)


def follow(task, state, actions):
    states = [state]
    for action in actions.T:
        states.append(task.advance(states[-1], action))
    return states


@pytest.fixture(scope="module")
def session():
    task = SeedingTask(phantom_seeding(shape=(42, 42), grid=(10, 10)).cases, max_steps=6)
    case = torch.arange(len(task.cases))
    return task, task.start(case, 0), task.cases.masks(case).float()


def test_a_plan_is_worth_more_than_the_policy_it_starts_from(session):
    task, state, belief = session
    expected = {}
    for sweeps in (0, 1, 2):
        actions = SeedPlanner(sweeps=sweeps).plan(task, state, belief, scattered)
        mask = task.potential(follow(task, state, actions)[-1]) > 0.5
        expected[sweeps] = expected_iou(belief, mask)
    assert (expected[1] > expected[0] + 0.1).float().mean() > 0.8
    assert bool((expected[2] >= expected[1] - 1e-6).all())


def test_without_sweeps_a_plan_is_the_policys_seeds_in_another_order(session):
    task, state, belief = session
    own = state
    for _ in range(task.max_steps):
        own = task.advance(own, scattered(task, own))
    planned = follow(task, state, SeedPlanner(sweeps=0).plan(task, state, belief, scattered))[-1]
    assert torch.equal(own.seeds.sort(1).values, planned.seeds.sort(1).values)


def test_the_seed_that_helps_most_comes_first(session):
    task, state, belief = session
    actions = SeedPlanner(sweeps=1).plan(task, state, belief, scattered)
    first = [expected_iou(belief, task.potential(task.advance(state, action)) > 0.5) for action in actions.T]
    assert bool((torch.stack(first)[0] >= torch.stack(first).amax(0) - 1e-6).all())


def test_plans_keep_out_of_forbidden_and_taken_cells(session):
    task, state, belief = session
    state = task.advance(state, torch.full((len(state.case),), 33))
    forbidden = torch.rand((len(state.case), task.count), generator=torch.Generator().manual_seed(0)) < 0.5
    network = SeedNet(dims=2, grid=task.cases.grid, width=4).eval()
    with torch.no_grad():
        policy = highest_value(network, forbidden=forbidden)
        actions = SeedPlanner(sweeps=1).plan(task, state, belief, policy, count=4, forbidden=forbidden)
    assert actions.shape == (len(state.case), 4)
    cell = actions % task.count
    assert not bool(forbidden.gather(1, cell).any())
    assert not bool(task.taken(state).gather(1, cell).any())
    assert all(len(set(row)) == 4 for row in cell.tolist())


def test_seeds_have_the_label_that_is_believed(session):
    task, state, belief = session
    actions = SeedPlanner(sweeps=1).plan(task, state, belief, scattered)
    inside = belief[:, task.cases.cells].gather(1, actions % task.count) > 0.5
    assert torch.equal(inside, actions < task.count)


def test_rows_must_have_room(session):
    task, state, belief = session
    with pytest.raises(ValueError, match=r"2 seeds and 7 more do not fit: the task has room for 8"):
        SeedPlanner().plan(task, state, belief, scattered, count=7)


@pytest.mark.parametrize(("shape", "grid"), [((30, 26), (10, 10)), ((12, 14, 10), (4, 4, 4))])
def test_one_session_is_the_random_walker(shape, grid):
    image = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    node, foreground = torch.tensor([17, 703, 401]), torch.tensor([True, False, False])
    task, state = one_session(image, node, foreground, grid=grid, count=5, gains_stride=1)
    painted = torch.zeros(image[0].numel(), dtype=torch.int8)
    painted[node] = torch.where(foreground, 1, 2).to(torch.int8)
    expected = walk(edge_weights(image), painted.reshape(image.shape), tolerance=1e-5)
    assert torch.allclose(task.potential(state), expected.reshape(1, -1), atol=2e-3)
    assert task.capacity - int(task.placed(state)[0]) >= 5
