"""Plan all seeds of a session at once, on the object that an agent believes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medrl.data.seed_cases import SeedCases
from medrl.geometry.overlap import expected_iou
from medrl.tasks.seeding import SeedingState, SeedingTask

Policy = Callable[[SeedingTask, SeedingState], Tensor]  # states -> actions (B,)


class SeedPlanner:
    """Improves the seeds that a policy would place by looking ahead in the exact random walker.

    What a seed does to the mask is known, only the truth is not: its place is taken by a belief, the probability of the
    object at every voxel.  The policy first plays to its last seed.  Then, ``sweeps`` times, each of its seeds in turn
    is taken back and put where the expected IoU of the whole set gains most: an exchange search, since the expected IoU
    of a set as it is built seed by seed says little about that of the whole, on which greedy policies fail.  A seed has
    the label that is believed where it lies, however much a false one would gain.  Last, the seeds are put in the order
    in which each raises the expected IoU most.

    The task's ``gains_stride`` says on how many voxels candidates are compared.
    """

    def __init__(self, *, sweeps: int = 2) -> None:
        self.sweeps = sweeps

    def plan(
        self, task: SeedingTask, state: SeedingState, belief: Tensor, policy: Policy, *, count: int | None = None,
        forbidden: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Actions (B, ``count``), in order, that follow the states.

        Args:
            belief: (B, V) probability of the object.
            policy: plays first; may not stop.
            count: seeds to place (default: the task's ``max_steps``).
            forbidden: (B, C) bool, cells never to seed beside those that hold a seed.

        Raises ValueError if the rows hold different numbers of seeds, or too many for ``count`` more.
        """
        count = task.max_steps if count is None else count
        placed = task.placed(state)
        first = int(placed[0])
        if bool((placed != first).any()) or first + count > task.capacity:
            raise ValueError(f"{first} seeds and {count} more do not fit: the task has room for {task.capacity}")
        whole = state
        for _ in range(count):
            whole = task.advance(whole, policy(task, whole))
        for _ in range(self.sweeps):
            for _ in range(count):  # the oldest leaves, its replacement comes last
                rest = torch.cat([whole.seeds[:, :first], whole.seeds[:, first + 1 :]], 1)
                whole = task.complete(whole._replace(seeds=pad(rest, (0, 1))))
                whole = task.advance(whole, self._best(task, whole, belief, forbidden))
        return self._order(task, state, whole.seeds[:, first : first + count], belief)

    def _best(self, task: SeedingTask, state: SeedingState, belief: Tensor, forbidden: Tensor | None) -> Tensor:
        gain = task.gains(state, belief)[0][:, : 2 * task.count]
        closed = task.taken(state) if forbidden is None else task.taken(state) | forbidden
        inside = belief[:, task.cases.cells] > 0.5
        return gain.masked_fill(torch.cat([closed | ~inside, closed | inside], 1), -torch.inf).argmax(1)

    def _order(self, task: SeedingTask, state: SeedingState, seeds: Tensor, belief: Tensor) -> Tensor:
        """The actions of seeds (B, n), that of the largest expected IoU first."""
        rows, count = seeds.shape
        column = seeds.long().abs() - 1
        actions = torch.where(seeds > 0, column, column + task.count)
        used = torch.zeros((rows, count), dtype=torch.bool, device=seeds.device)
        ordered = []
        for _ in range(count):
            each = SeedingState(*(part.repeat_interleave(count, 0) for part in state))
            mask = task.potential(task.advance(each, actions.flatten())) > 0.5
            expected = expected_iou(belief.repeat_interleave(count, 0), mask).reshape(rows, count)
            best = expected.masked_fill(used, -torch.inf).argmax(1, keepdim=True)
            used.scatter_(1, best, True)
            ordered.append(actions.gather(1, best))
            state = task.advance(state, ordered[-1][:, 0])
        return torch.cat(ordered, 1)


def one_session(
    image: Tensor, node: Tensor, foreground: Tensor, *, grid: Sequence[int], count: int, gains_stride: int
) -> tuple[SeedingTask, SeedingState]:  # fmt: skip
    """A task and its state for one image (1, *S) uint8 without truth, seeded at flat indices ``node`` (K,), K > 0.

    ``foreground`` (K,) bool tells the seeds' labels; there is room for ``count`` more.
    """
    clicks = torch.cat([node, node[: len(node) % 2]]).reshape(1, -1, 2)
    unknown = torch.zeros_like(image, dtype=torch.bool)
    cases = SeedCases(image.cpu(), unknown.cpu(), clicks.cpu(), grid=grid, device=image.device)
    task = SeedingTask(cases, max_steps=len(node) + count, gains_stride=gains_stride)
    state = task.start(torch.zeros(1, dtype=torch.int16, device=image.device), 0)
    column = task.count + 1 + torch.arange(len(node), device=image.device)
    signed = torch.where(foreground.to(image.device), column, -column).to(state.seeds.dtype)
    state = state._replace(seeds=pad(signed, (0, task.capacity - len(node)))[None])
    return task, task.complete(state)


def highest_value(network: nn.Module, *, forbidden: Tensor) -> Policy:
    """The policy of a network's largest action value, never a stop; ``forbidden`` (C,) bool cells are left out."""

    def choose(task: SeedingTask, state: SeedingState) -> Tensor:
        values = network.split(network(task.observe(state)).float()).q[:, 0, 0, : 2 * task.count]
        return values.masked_fill((task.taken(state) | forbidden).repeat(1, 2), -torch.inf).argmax(1)

    return choose
