"""Who places the seeds: the agent, and every rule it is compared with, as policies (task, state) -> action (B,).

Rules with the truth (oracles) are ceilings; rules without it are what the agent must beat.  Cells that hold a seed are
never chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor, nn

from medrl.data.seed_cases import unpack
from medrl.inference.seed_planning import SeedPlanner
from medrl.networks.seednet import SeedHeads
from medrl.tasks.seeding import SeedingState, SeedingTask

Policy = Callable[[SeedingTask, SeedingState], Tensor]
NEVER = -1e9


class Looker:
    """A network that is asked once for each state."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.seen, self.heads = network.eval(), None, None

    @torch.no_grad()
    def __call__(self, task: SeedingTask, state: SeedingState) -> SeedHeads:
        """What the network says of the states."""
        if self.seen is not state:
            self.seen, self.heads = state, self.network.split(self.network(task.observe(state)).float())
        return self.heads


def agent(look: Looker, *, stop: bool) -> Policy:
    """The largest action value; without ``stop`` it always places a seed."""

    def choose(task: SeedingTask, state: SeedingState) -> Tensor:
        value = look(task, state).q[:, 0, 0].clone()
        value[:, : 2 * task.count].masked_fill_(task.taken(state).repeat(1, 2), NEVER)
        if not stop:
            value = value[:, : 2 * task.count]
        return value.argmax(1)

    return choose


def greedy_oracle(task: SeedingTask, state: SeedingState) -> Tensor:
    """Truth: the seed that gains most IoU at once, if any gains; a stop otherwise."""
    return task.expert(state)


def random_truth(generator: torch.Generator) -> Policy:
    """Truth: a random cell with its true label."""

    def choose(task: SeedingTask, state: SeedingState) -> Tensor:
        cell = _random_cell(task, state, generator)
        return torch.where(_at(task.labels_of_cells(state), cell), cell, cell + task.count)

    return choose


def simulated_user(task: SeedingTask, state: SeedingState) -> Tensor:
    """Truth: the middle of the largest connected error."""
    return _largest_error(task, state, task.cases.masks(state.case.long()))


def largest_error(look: Looker) -> Policy:
    """No truth: the middle of the largest connected difference between the mask and the segmentation head's object."""
    return lambda task, state: _largest_error(task, state, look(task, state).mask_logits > 0)


def entropy(look: Looker) -> Policy:
    """No truth: where the random walker is least certain, labelled by the segmentation head."""

    def choose(task: SeedingTask, state: SeedingState) -> Tensor:
        unsure = 0.5 - (task.potential(state)[:, task.cases.cells] - 0.5).abs()
        cell = unsure.masked_fill(task.taken(state), NEVER).argmax(1)
        inside = _at(look(task, state).mask_logits[:, task.cases.cells] > 0, cell)
        return torch.where(inside, cell, cell + task.count)

    return choose


def random_believed(look: Looker, generator: torch.Generator) -> Policy:
    """No truth: a random cell, labelled by the segmentation head."""

    def choose(task: SeedingTask, state: SeedingState) -> Tensor:
        cell = _random_cell(task, state, generator)
        inside = _at(look(task, state).mask_logits[:, task.cases.cells] > 0, cell)
        return torch.where(inside, cell, cell + task.count)

    return choose


class Planned:
    """No truth: plans all seeds of an episode on what the segmentation head believes at its start, from a policy's."""

    def __init__(self, look: Looker, policy: Policy, *, sweeps: int = 2) -> None:
        self.look, self.policy, self.planner = look, policy, SeedPlanner(sweeps=sweeps)
        self.actions, self.first = torch.zeros((0, 0), dtype=torch.int64), 0

    def __call__(self, task: SeedingTask, state: SeedingState) -> Tensor:
        """The next of the plan; a new plan wherever an episode begins or the last one has been played."""
        done = int(task.placed(state)[0]) - self.first
        if not 0 < done < self.actions.shape[1]:
            self.first, done = int(task.placed(state)[0]), 0
            belief = self.look(task, state).mask_logits.sigmoid()
            self.actions = self.planner.plan(task, state, belief, self.policy)
        return self.actions[:, done]


def play(task: SeedingTask, policy: Policy, state: SeedingState, steps: int) -> list[SeedingState]:
    """The states after 0, 1, ... ``steps`` actions."""
    states = [state]
    for _ in range(steps):
        states.append(task.advance(states[-1], policy(task, states[-1])))
    return states


def _largest_error(task: SeedingTask, state: SeedingState, wanted: Tensor) -> Tensor:
    shape, cells = task.cases.shape, task.cases.cells
    wrong = (unpack(state.mask, wanted.shape[1]) ^ wanted).reshape(-1, *shape).numpy()
    places = np.stack(np.unravel_index(cells.numpy(), shape), 1)
    taken, actions = task.taken(state).numpy(), []
    for row, error in enumerate(wrong):
        if not error.any():
            actions.append(2 * task.count if task.stop else 0)
            continue
        parts, _ = label(error)
        largest = np.bincount(parts.ravel())[1:].argmax() + 1
        inner = tuple(slice(1, -1) for _ in shape)
        depth = distance_transform_edt(np.pad(parts == largest, 1))[inner]
        in_cells = np.where(taken[row], 0.0, depth.ravel()[cells.numpy()])
        if in_cells.max() > 0:
            cell = int(in_cells.argmax())
        else:  # the error falls between the cells' centres: the cell nearest to its middle
            middle = np.array(np.unravel_index(int(depth.argmax()), shape))
            cell = int(np.where(taken[row], np.inf, ((places - middle) ** 2).sum(1)).argmin())
        actions.append(cell if bool(wanted[row, cells[cell]]) else cell + task.count)
    return torch.tensor(actions)


def _random_cell(task: SeedingTask, state: SeedingState, generator: torch.Generator) -> Tensor:
    free = torch.rand((len(state.case), task.count), generator=generator)
    return free.masked_fill(task.taken(state), -1.0).argmax(1)


def _at(values: Tensor, cell: Tensor) -> Tensor:
    return values.gather(1, cell[:, None])[:, 0]
