"""Place seeds for a random walker until it draws the object [SeedNet: Song et al., CVPR 2018]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import max_pool2d, max_pool3d

from medrl.data.seed_cases import SeedCases, count_bits, pack, unpack
from medrl.rewards.scores import Gain
from medrl.tasks.base import Task
from medrl.types import Reward

CHANNELS = ("image", "mask", "potential", "foreground seeds", "background seeds", "seeds left")

CACHE = 1 << 18  # numbers that are worked on at once


class SeedingState(NamedTuple):
    """B sessions; 4 + 2 K bytes a row and the packed mask."""

    case: Tensor  # (B,) int16
    seeds: (
        Tensor  # (B, K) int16: column + 1 of a foreground seed, minus that of a background seed, 0 none; user's first
    )
    stopped: Tensor  # (B,) bool
    mask: Tensor  # (B, ceil(V / 8)) uint8: the random walker's mask, bit-packed


class SeedingTask(Task):
    """Every action puts a foreground or background seed into a cell of the grid, or stops; the score is the IoU.

    Actions: cell for foreground (0..C-1), cell for background (C..2C-1), stop (2C).  In 2D that is the paper's 20 x 20
    grid with two labels.  In 3D the grid is 6 x 6 x 6: a flat map of 432 values, each cell a few voxels wide, so that
    one fully convolutional network serves both, and no second, finer action is needed: a random walker's seed speaks
    for its whole neighbourhood up to the next edge.  Each step is solved exactly, from the table of responses of
    ``medrl.data.seed_cases``.

    A seed in a cell that holds one is refused: the step is lost.  Episodes start from the user's clicks and
    end by the stop action; ``max_steps`` seeds are the time limit.

    ``gains_stride``: one voxel in so many along each axis decides the expert's gains, which ``targets`` leave out where
    it is 0 (they are dear, and only imitation needs them); ``sharpness`` s makes them gains
    of the soft IoU of ``sigmoid(s (u - 1/2))``, which is less short-sighted than the mask's own.
    ``random_start``: up to so many correctly labelled seeds are placed before the episode.
    """

    derived = ("mask",)  # what a replay need not store of a successor

    def __init__(
        self, cases: SeedCases, *, max_steps: int = 10, reward: Reward | None = None, gains_stride: int = 1,
        sharpness: float | None = None, stop: bool = True, random_start: int = 0,
    ) -> None:  # fmt: skip
        self.cases, self.max_steps, self.stop, self.random_start = cases, max_steps, stop, random_start
        self.sharpness = sharpness
        self.reward_shape = Gain(per_step_length=False) if reward is None else reward
        self.count = len(cases.cells)
        self.capacity = 2 + max_steps
        self.action_space = spaces.Discrete(2 * self.count + int(stop))
        self.observation_space = spaces.Box(0, 255, (len(CHANNELS), *cases.shape), np.uint8)
        lattice = torch.zeros(cases.shape, dtype=torch.bool)
        self.teaches_gains, stride = gains_stride > 0, max(1, gains_stride)
        lattice[tuple(slice(stride // 2, None, stride) for _ in cases.shape)] = True
        self.sample_nodes = lattice.reshape(-1).nonzero()[:, 0].to(cases.device)

    # -- the contract -------------------------------------------------------------------------------------------

    def initial(self, case: Tensor, generator: torch.Generator) -> SeedingState:
        """One of the case's pairs of clicks; with ``random_start`` also up to so many correctly labelled seeds."""
        pair = torch.randint(self.cases.pairs, case.shape, generator=generator, device=self.cases.device)
        state = self.start(case, pair)
        if self.random_start:
            count = torch.randint(self.random_start + 1, case.shape, generator=generator, device=self.cases.device)
            for n in range(self.random_start):
                cell = torch.randint(self.count, case.shape, generator=generator, device=self.cases.device)
                inside = self.labels_of_cells(state)[torch.arange(len(case), device=cell.device), cell]
                new = self.advance(state, torch.where(inside, cell, cell + self.count))
                state = SeedingState(*(torch.where(_like(n < count, a), a, b) for a, b in zip(new, state, strict=True)))
        return state

    def observe(self, state: SeedingState) -> Tensor:
        """(B, 6, *S) uint8: image, mask, potential, both kinds of seeds as crosses, the share of seeds left."""
        shape, rows = self.cases.shape, len(state.case)
        foreground, background = (self.seed_map(state, sign).reshape(rows, *shape) for sign in (1, -1))
        left = (self.capacity - self.placed(state)).clamp(0, self.max_steps) / self.max_steps
        image, potential = self.cases.image[state.case.long()], self.potential(state).reshape(rows, *shape)
        return render(image, potential, foreground, background, left)

    def advance(self, state: SeedingState, action: Tensor) -> SeedingState:
        """Add the seed to the list and solve."""
        action = action.long()
        stopped = state.stopped | (action == 2 * self.count)
        signed = torch.where(action < self.count, action + 1, -(action - self.count + 1))
        slot = self.placed(state)
        taken = (state.seeds.abs() == signed.abs()[:, None]).any(1)
        room = (slot < state.seeds.shape[1]) & ~stopped & ~taken
        slot = slot.clamp(max=state.seeds.shape[1] - 1)[:, None]
        value = torch.where(room, signed, state.seeds.gather(1, slot)[:, 0].long()).to(torch.int16)
        new = SeedingState(state.case, state.seeds.scatter(1, slot, value[:, None]), stopped, state.mask)
        return self.complete(new)

    def complete(self, state: SeedingState) -> SeedingState:
        """Fill in the masks of states that lack them."""
        return state._replace(mask=pack(self.potential(state) > 0.5))

    def terminated(self, state: SeedingState) -> Tensor:
        """The agent has stopped."""
        return state.stopped

    def score(self, state: SeedingState) -> Tensor:
        """Intersection over union (B,) of the mask with the truth."""
        truth = self.cases.truth[state.case.long()]
        return count_bits(state.mask & truth) / count_bits(state.mask | truth).clamp(min=1)

    def expert(self, state: SeedingState) -> Tensor:
        """The action (B,) that gains most IoU in one step; stop where none gains, if the task has it."""
        gain, action = self.gains(state)[0][:, : 2 * self.count].max(1)
        return torch.where(gain > 0, action, 2 * self.count) if self.stop else action

    def outputs(self, state: SeedingState) -> dict[str, Any]:
        """Masks (B, *S) bool, and the nodes and labels of all seeds in the order of placing."""
        node = self.cases.node[state.case.long()[:, None], _columns(state)]
        used = state.seeds != 0
        return {
            "case": [self.cases.names[int(c)] for c in state.case],
            "mask": unpack(state.mask, self.cases.table.shape[-1]).reshape(-1, *self.cases.shape),
            "seeds": [list(zip(n[u].tolist(), (s[u] > 0).tolist(), strict=True))
                      for n, u, s in zip(node, used, state.seeds, strict=True)],
        }  # fmt: skip

    # -- what agents may use beside the contract -----------------------------------------------------------------

    def start(self, case: Tensor, pair: Tensor | int) -> SeedingState:
        """Fresh states on cases (B,) from their pairs of clicks (B,)."""
        case = case.long()
        first = self.count + 2 * torch.as_tensor(pair, device=self.cases.device).expand(len(case))
        seeds = torch.stack([first + 1, -(first + 2)], 1).to(torch.int16)
        stopped = torch.zeros(len(case), dtype=torch.bool, device=self.cases.device)
        state = self.complete(SeedingState(case.to(torch.int16), seeds, stopped, None))  # of two columns only: cheap
        return state._replace(seeds=torch.nn.functional.pad(seeds, (0, self.capacity - 2)))

    def sample(self, count: int, generator: torch.Generator) -> SeedingState:
        """States of supervised training: a random case, the user's clicks, further correct seeds."""
        case = torch.randint(len(self.cases), (count,), generator=generator, device=self.cases.device)
        return self.initial(case, generator)

    def placed(self, state: SeedingState) -> Tensor:
        """Seeds (B,) there are, the user's included."""
        return (state.seeds != 0).sum(1)

    def potential(self, state: SeedingState) -> Tensor:
        """The random walker's probability (B, V) of foreground."""
        system, value, _ = self._equations(state)
        solution = torch.linalg.solve_ex(system, value[..., None])[0][..., 0].float()  # never synchronises
        blend = self.cases.blend(state.case.long(), _columns(state), solution[:, :-1])
        return blend.add_(solution[:, -1:]).clamp_(0, 1)

    def gains(self, state: SeedingState, object_: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """IoU gained (B, A) by every action in one step, and the IoU (B,) now, both on the sampled voxels.

        ``object_`` (B, V) is a probability that takes the place of the truth, for plans.  With the columns of the
        present seeds eliminated, a further seed of label y at node j changes the potential by
        ``(y - u_j) h_j(x) / h_j(x_j)`` (the Schur complement of the linear system).
        """
        case, nodes = state.case.long(), self.sample_nodes
        response, system, value, used = self._system(state)
        rows, cells, here = len(case), self.count, self.cases.cells
        at_cells = response[:, :, here].double()  # (B, k, C)
        right = torch.cat([at_cells * used[..., None], torch.ones(rows, 1, cells, device=case.device)], 1)
        both = torch.linalg.solve_ex(system, torch.cat([value[..., None], -right], 2))[0]
        now, weight = both[..., 0], both[..., 1:].float()  # (B, k + 1), (B, k + 1, C)
        base = torch.cat([response[:, :, nodes], torch.ones(rows, 1, len(nodes), device=case.device)], 1)
        u = torch.einsum("bk,bkv->bv", now.float(), base)
        u_cell = torch.einsum("bk,bkc->bc", now[:, :-1].float(), at_cells.float()) + now[:, -1:].float()
        column = torch.arange(cells, device=case.device)
        self_h = self.cases.table[case[:, None], column, here]
        self_h = self_h + (weight[:, :-1] * at_cells.float()).sum(1) + weight[:, -1]
        truth = (self.cases.masks(case) if object_ is None else object_)[:, nodes].float()
        factors = [((label - u_cell) / self_h.clamp(min=1e-6))[..., None] for label in (1.0, 0.0)]
        iou = u.new_empty(rows, 2, cells)
        for part in column.split(max(1, CACHE // (rows * len(nodes)))):
            h = torch.baddbmm(self._at_samples(case, part), weight[..., part].mT, base)  # (B, C', V')
            for after, factor in zip(iou.unbind(1), factors, strict=True):
                after[:, part] = self._iou(torch.addcmul(u[:, None], h, factor[:, part]), truth)
        present = self._iou(u[:, None], truth)[:, 0]
        gain = iou.flatten(1) - present[:, None]
        taken = self.taken(state)
        gain = torch.where(torch.cat([taken, taken], 1), 0.0, gain)
        return torch.cat([gain, torch.zeros_like(gain[:, : int(self.stop)])], 1), present

    def targets(self, state: SeedingState) -> dict[str, Tensor]:
        """What one observation teaches: the true mask (B, V), the IoU (B,), gains (B, 1, 1, A) of all actions."""
        known = torch.ones((len(state.case), 1), dtype=torch.bool, device=state.case.device)
        taught = {"known": known, "mask": self.cases.masks(state.case.long()), "quality": self.score(state)}
        return taught | ({"gains": self.gains(state)[0][:, None, None]} if self.teaches_gains else {})

    def labels_of_cells(self, state: SeedingState) -> Tensor:
        """True labels (B, C) of the cells' centres."""
        return self.cases.masks(state.case.long())[:, self.cases.cells]

    def seed_map(self, state: SeedingState, sign: int) -> Tensor:
        """(B, V) bool: the seeds of one label, 1 for foreground, -1 for background."""
        node = self.cases.node[state.case.long()[:, None], _columns(state)]
        empty = torch.zeros((len(node), self.cases.table.shape[-1]), dtype=torch.int8, device=node.device)
        return empty.scatter_add(1, node, (state.seeds.sign() == sign).to(torch.int8)) > 0

    def _system(self, state: SeedingState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Responses (B, k, V), and the equations of their weights, which are 0 for seeds not in use."""
        return self.cases.columns(state.case.long(), _columns(state)), *self._equations(state)

    def _equations(self, state: SeedingState) -> tuple[Tensor, Tensor, Tensor]:
        """Bordered system (B, k + 1, k + 1), its right side (B, k + 1), seeds in use (B, k)."""
        case, column = state.case.long(), _columns(state)
        used = (state.seeds != 0) & ~_repeated(self.cases.node[case[:, None], column], state.seeds != 0)
        both = used[:, :, None] & used[:, None, :]
        identity = torch.eye(used.shape[1], dtype=torch.float64, device=case.device)
        system = torch.where(both, self.cases.among(case, column), identity)
        border = used.double()
        system = torch.cat(
            [torch.cat([system, border[:, :, None]], 2), torch.nn.functional.pad(border, (0, 1))[:, None]], 1
        )
        value = torch.nn.functional.pad((used & (state.seeds > 0)).double(), (0, 1))
        return system, value, used

    def _at_samples(self, case: Tensor, column: Tensor) -> Tensor:
        """Responses (B, C', V') of columns (C',) on the sampled voxels of cases (B,)."""
        nodes = self.sample_nodes
        if len(nodes) == self.cases.table.shape[-1]:
            return self.cases.table[case[:, None], column]
        return self.cases.table[case[:, None, None], column[:, None], nodes]

    def _iou(self, potential: Tensor, truth: Tensor) -> Tensor:
        """IoU (B, n) of masks, or soft masks, from potentials (B, n, V) with truths (B, V)."""
        mask = (potential > 0.5).float() if self.sharpness is None else (self.sharpness * (potential - 0.5)).sigmoid()
        both, size = (mask @ torch.stack([truth, torch.ones_like(truth)], 2)).unbind(2)
        return both / (size + truth.sum(1, keepdim=True) - both).clamp(min=1e-6)

    def region(self, state: SeedingState, action: Tensor) -> Tensor:
        """Where each action's (B,) seed falls: 0 strong, 1 weak, 2 wrong label [Song 2018]; a stop is strong.

        Strong foreground is the truth eroded by 5 voxels an axis, weak foreground the rest of it; weak background is
        what dilation adds, strong background the rest.
        """
        truth = self.cases.masks(state.case.long()).reshape(-1, 1, *self.cases.shape).float()
        pool = max_pool2d if truth.ndim == 4 else max_pool3d
        grown, shrunk = pool(truth, 5, 1, 2), 1 - pool(1 - truth, 5, 1, 2)
        action = action.long()
        foreground, node = action < self.count, self.cases.cells[action % self.count]
        inside, near, deep = (x.flatten(1).gather(1, node[:, None])[:, 0] > 0.5 for x in (truth, grown, shrunk))
        wrong = inside != foreground
        weak = torch.where(foreground, ~deep, near)
        place = torch.where(wrong, 2, weak.long())
        return torch.where(action == 2 * self.count, 0, place)

    def taken(self, state: SeedingState) -> Tensor:
        """Cells (B, C) that hold a seed."""
        column = state.seeds.abs().long()
        taken = torch.zeros((len(column), 1 + self.cases.node.shape[1]), dtype=torch.bool, device=column.device)
        return taken.scatter(1, column, True)[:, 1 : 1 + self.count]


def render(image: Tensor, potential: Tensor, foreground: Tensor, background: Tensor, left: Tensor) -> Tensor:
    """What an agent sees of B sessions, (B, 6, *S) uint8: see ``CHANNELS``; seeds are drawn as crosses.

    ``image`` (B, *S) uint8; ``potential`` (B, *S) of foreground; ``foreground`` and ``background`` (B, *S) bool, seeds;
    ``left`` (B,), the share of seeds left.
    """
    rest = (255 * left).floor().to(torch.uint8).reshape(-1, *[1] * (image.ndim - 1)).expand(image.shape)
    mask = (potential > 0.5).to(torch.uint8) * 255
    planes = (image, mask, (potential * 255).round().to(torch.uint8), _crosses(foreground), _crosses(background), rest)
    return torch.stack(planes, 1)


def _columns(state: SeedingState) -> Tensor:
    """Columns (B, K) of the table that the seeds belong to, the first one where there is no seed."""
    return (state.seeds.abs().long() - 1).clamp(min=0)


def _repeated(node: Tensor, used: Tensor) -> Tensor:
    """(B, K) bool: an earlier seed in use lies at the same node (B, K)."""
    same = (node[:, :, None] == node[:, None, :]) & used[:, None, :]
    return same.tril(-1).any(2)


def _crosses(seeds: Tensor) -> Tensor:
    """Dots (B, *S) bool grown by one voxel along every axis, as 0 and 255."""
    grown = seeds.clone()
    for axis in range(1, seeds.ndim):
        grown.narrow(axis, 1, seeds.shape[axis] - 1).logical_or_(seeds.narrow(axis, 0, seeds.shape[axis] - 1))
        grown.narrow(axis, 0, seeds.shape[axis] - 1).logical_or_(seeds.narrow(axis, 1, seeds.shape[axis] - 1))
    return grown.to(torch.uint8) * 255


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (value.ndim - 1))
