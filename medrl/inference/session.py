"""A session of interactive segmentation: a user's clicks, an agent's seeds, a mask on the image's own grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.clicks import stack_clicks
from medrl.data.regions import Region, is_ct, region_of, restore_mask, seed_map
from medrl.data.seed_cases import cell_centres
from medrl.data.seeds import BACKGROUND, FOREGROUND, Seeds, check_seeds, join_seeds, make_seeds, seed_voxels
from medrl.geometry.grids import spacing_of
from medrl.geometry.overlap import expected_iou
from medrl.geometry.random_walker import edge_weights, walk
from medrl.geometry.segmenters import RandomWalker
from medrl.inference.click_network import ClickPrior
from medrl.inference.seed_planning import SeedPlanner, highest_value, one_session
from medrl.inference.segmentation import NETWORK, WALKER, Drawn, Rules, Segmentation
from medrl.inference.views import closed_cells, corners_of, innermost, look, mix, positions, resample, surest
from medrl.networks.seed_networks import SeedNetworks
from medrl.networks.seednet import SeedHeads
from medrl.tasks.seeding import SeedingState, SeedingTask, render

LEAST_VOXELS = 8  # round the believed object are seen at least


class Session:
    """One image being segmented.

    ``start`` takes the clicks there are; ``step`` lets the agent place one seed; ``click`` takes a later correction;
    ``result`` may be asked at any time.  The agent plans on a coarse lattice of fixed size, by the plain random walker
    it was trained with; the mask is drawn on a finer one, no finer than the voxels.

    Raises InputError where the image has no such networks, or clicks lie outside of it.
    """

    def __init__(self, image: MetaTensor, network: SeedNetworks, rules: Rules, *, ct: bool | None = None) -> None:
        self.image, self.rules = image, rules
        self.axes = 2 if 1 in image.shape[1:] else 3
        self.agent = network.agent(self.axes).eval()
        self.prior = None
        if network.has_click(self.axes):
            self.prior = ClickPrior(network.click(self.axes), **rules.click_options)
        self.device = next(network.parameters()).device
        self.ct = is_ct(image) if ct is None else ct
        self.user, self.placed = make_seeds(), make_seeds()
        self.history: list[Drawn] = []
        self.mask: Tensor | None = None  # (X, Y, Z) bool, once the user has corrected it
        self.stopped = False
        self.plan: list[int] | None = None  # actions to come
        self.sketch: tuple[SeedingTask, SeedingState] | None = None  # the plan's world

    @torch.no_grad()
    def start(self, seeds: Seeds | None = None) -> None:
        """Begin from the user's clicks: any number, of one kind, of both, or none."""
        self.user, self.placed, self.history = make_seeds() if seeds is None else seeds, make_seeds(), []
        self.mask, self.stopped, self.plan, self.sketch = None, False, None, None
        check_seeds(self.user, self.image, "seeds")
        around = self.user.position_ras
        self._lay(region_of(self.image, around=around, margin_mm=self.rules.margin_mm), around, self.rules.margin_mm)
        if self.rules.zoom is not None:
            corners, margin_mm = self._believed_box()
            closer = region_of(self.image, around=corners, margin_mm=margin_mm)
            if math.prod(closer.spacing_mm) < 0.8 * math.prod(self.fine.region.spacing_mm):
                self._lay(closer, corners, margin_mm)
        self._complete()
        self._draw()

    @torch.no_grad()
    def step(self) -> bool:
        """Place one seed; False if the agent stops, or has none left."""
        if self.mask is not None:
            raise RuntimeError("the user has corrected the mask; the agent's turn is over")
        self.stopped = self.stopped or len(self.placed.foreground) >= self.rules.max_seeds
        if self.stopped:
            return False
        action, count = self._next_action(), len(self.cells)
        if action >= 2 * count:
            self.stopped = True
            return False
        node = self.cells[action % count : action % count + 1]
        self._place(positions(self.coarse.region, node), action < count)
        if self.sketch is not None:
            task, state = self.sketch
            self.sketch = task, task.advance(state, torch.tensor([action], device=self.device))
        self._draw()
        return True

    def run(self) -> None:
        """Let the agent place seeds until it stops."""
        while self.step():
            pass

    @torch.no_grad()
    def click(self, position_ras: Sequence[float] | Tensor, foreground: bool) -> None:
        """Correct the mask: a foreground click adds and never removes, a background click removes and never adds.

        The mask that is corrected is the one that ``result`` would return, and so the agent's seeds after it are
        taken back; the agent places none any more.
        """
        if not self.history:
            raise RuntimeError("start the session first")
        user = join_seeds(self.user, make_seeds(torch.as_tensor(position_ras)[None], [foreground]))
        check_seeds(user, self.image, "clicks")
        before = self._mask()
        kept = self._kept()
        self.placed = Seeds(*(part[: kept.count] for part in self.placed))
        former, region = kept.potential, self.fine.region
        self.user, self.sketch = user, None
        if int(region.node(user.position_ras[-1:])) < 0:  # outside the view: a wider one
            corners, margin_mm = torch.cat([corners_of(region), user.position_ras]), self.rules.margin_mm
            self._lay(region_of(self.image, around=corners, margin_mm=margin_mm), corners, margin_mm)
            former = resample(former, region, self.fine.region)
        self.belief = self._believe()
        self.potential = former
        self._draw(floor=former if foreground else None, ceiling=None if foreground else former)
        self.history = self.history[-1:]
        after = restore_mask(self.history[0].potential[0].cpu(), self.fine.region, self.image)
        self.mask = after.logical_or_(before) if foreground else after.logical_and_(before)

    @torch.no_grad()
    def result(self) -> Segmentation:
        """The mask on the image's grid, the seeds that made it, and how good it is held to be."""
        kept = self._kept()
        mask = self._mask().to(torch.uint8)
        placed = Seeds(*(part[: kept.count] for part in self.placed))
        answer = MetaTensor(mask[None], affine=self.image.affine)
        return Segmentation(answer, join_seeds(self.user, placed), len(self.user.foreground), kept.quality)

    def carry(self) -> Seeds:
        """A seed in the middle of the mask and one outside of it, for the next slice; none if the mask is empty."""
        potential = self._kept().potential[0].cpu()
        object_ = potential > 0.5
        if not bool(object_.any()) or bool(object_.all()):
            return make_seeds()
        points = torch.cat([innermost(object_, self.fine.region), self._outside(object_, potential, ~object_)])
        return make_seeds(points, [True, False])

    def masks(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """Masks (X, Y, Z) bool on the image's grid after so many of the agent's seeds, and without an agent."""
        plain = walk(self.weights, seed_map(self.user, self.coarse.region)[None].to(self.device))
        plain = resample(plain, self.coarse.region, self.fine.region)
        drawn = {NETWORK: self.belief, WALKER: plain}
        for count in counts:
            drawn[str(count)] = next(d.potential for d in reversed(self.history) if d.count <= max(count, self.first))
        return {name: restore_mask(p[0].cpu(), self.fine.region, self.image) for name, p in drawn.items()}

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _lay(self, region: Region, around: Tensor, margin_mm: float) -> None:
        """Read the image on the lattices of a view, and ask the click network."""
        size = self.rules.lattice[self.axes]
        coarse = region_of(self.image, around=around, margin_mm=margin_mm, size=size)
        self.fine, self.coarse = (look(self.image, each, self.ct, self.device) for each in (region, coarse))
        self.weights = edge_weights(self.coarse.grey)
        self.potential: Tensor | None = None
        self.cells = cell_centres(coarse.shape, self.agent.grid)
        self.belief = self._believe()

    def _believe(self) -> Tensor:
        """The object's probability (1, *S) on the fine lattice, from the user's clicks alone.

        By the agent's own segmentation head, and by a click network, if there is one: then ``agent_share`` of the
        logit is the agent's.
        """
        share = self.rules.agent_share if self.prior is not None else 1.0
        agent = self._seen_by_agent() if share > 0 else None
        return mix(agent, self._seen_by_click_network() if share < 1 else None, share)

    def _look(self, painted: Tensor) -> SeedHeads:
        """What the agent says of seeds (1, *S) on its own lattice, and of the plain random walker from them."""
        left = max(0.0, 1 - len(self.placed.foreground) / max(1, self.rules.max_seeds))
        observation = render(
            self.coarse.grey, walk(self.weights, painted), painted == FOREGROUND,
            painted == BACKGROUND, torch.full((1,), left, device=self.device),
        )  # fmt: skip
        return self.agent.split(self.agent(observation).float())

    def _seen_by_agent(self) -> Tensor:
        clicks = seed_map(self.user, self.coarse.region)[None].to(self.device)
        seen = self._look(clicks).mask_logits.sigmoid().reshape(1, *self.coarse.region.shape)
        return resample(seen, self.coarse.region, self.fine.region)

    def _seen_by_click_network(self) -> Tensor:
        nodes = self.fine.region.node(self.user.position_ras).tolist()
        labels = [FOREGROUND if foreground else BACKGROUND for foreground in self.user.foreground.tolist()]
        clicks = stack_clicks([[(node, label) for node, label in zip(nodes, labels, strict=True) if node >= 0]])
        return self.prior(self.fine.grey, type(clicks)(*(part.to(self.device) for part in clicks))).clone()

    def _believed_box(self) -> tuple[Tensor, float]:
        """Corners (K, 3) of the believed object and the clicks, and the margin in mm to see round it."""
        region = self.fine.region
        index = torch.cat([self._object().nonzero().cpu(), region.index(self.user.position_ras)[:, : self.axes]])
        ends = torch.stack([index.amin(0) - 0.5, index.amax(0) + 0.5])
        longest_mm = float(((ends[1] - ends[0]) * torch.tensor(region.spacing_mm)).max())
        least_mm = LEAST_VOXELS * float(spacing_of(self.image.affine.double()).min())
        return region.position_ras(torch.cartesian_prod(*ends.T)), max(self.rules.zoom * longest_mm, least_mm)

    def _object(self) -> Tensor:
        """Where the networks see the object, (*S) bool: at its likeliest node at least."""
        belief = self.belief[0]
        return (belief > 0.5) | (belief == belief.amax())

    def _complete(self) -> None:
        """Place the agent's own first seeds, of the kinds that the user did not give."""
        clicked = seed_map(self.user, self.fine.region)
        belief, object_ = self.belief[0].cpu(), self._object().cpu() & (clicked != BACKGROUND)
        if not bool(self.user.foreground.any()):
            self._place(innermost(object_ if bool(object_.any()) else clicked == 0, self.fine.region), True)
        if bool(self.user.foreground.all()):
            free = (clicked == 0) & (seed_map(self.placed, self.fine.region) == 0)
            self._place(self._outside(object_, belief, free), False)
        self.first = len(self.placed.foreground)

    def _outside(self, object_: Tensor, likelihood: Tensor, free: Tensor) -> Tensor:
        return surest(object_, likelihood, free, self.fine.region, reach=self.rules.reach)

    def _place(self, position_ras: Tensor, foreground: bool) -> None:
        self.placed = join_seeds(self.placed, make_seeds(position_ras, [foreground]))

    def _paint(self, region: Region) -> Tensor:
        """All seeds on a lattice, (1, *S) int8; the user's last, so that they count."""
        return seed_map(join_seeds(self.placed, self.user), region)[None].to(self.device)

    def _draw(self, *, floor: Tensor | None = None, ceiling: Tensor | None = None) -> None:
        """Solve, and estimate how good the mask is."""
        prior = self.belief if self.rules.prior else None
        if prior is None and isinstance(self.rules.segmenter, RandomWalker):  # as the agent sees it and plans by
            self.potential = resample(self._walked(), self.coarse.region, self.fine.region)
        else:
            self.potential = self.rules.segmenter(
                self.fine.grey, self._paint(self.fine.region), prior=prior, start=self.potential
            )
        self.potential = self.potential if floor is None else torch.maximum(self.potential, floor)
        self.potential = self.potential if ceiling is None else torch.minimum(self.potential, ceiling)
        quality = expected_iou(self.belief, self.potential > 0.5)
        self.history.append(Drawn(len(self.placed.foreground), self.potential, float(quality)))

    def _walked(self) -> Tensor:
        """The plain random walker's potential (1, *S) on the coarse lattice, by the plan's table if there is one."""
        if self.sketch is None:
            return walk(self.weights, self._paint(self.coarse.region))
        task, state = self.sketch
        return task.potential(state).reshape(self.coarse.grey.shape)

    def _next_action(self) -> int:
        """The next of the agent's plan; without a plan the largest value among free cells and the stop."""
        count = len(self.cells)
        if self.rules.sweeps == 0:
            values = self._look(self._paint(self.coarse.region)).q.flatten()
            values[: 2 * count].view(2, count)[:, self._taken()] = -torch.inf
            return int(values.argmax())
        if self.plan is None:
            self._make_plan()
        return self.plan.pop(0) if self.plan else 2 * count

    def _make_plan(self) -> None:
        """Plan all seeds by the plain random walker of the coarse lattice, on the object believed in there."""
        seeds, taken = join_seeds(self.user, self.placed), self._taken().to(self.device)
        count = min(self.rules.max_seeds - len(self.placed.foreground), int((~taken).sum()))
        if count == 0:  # an image of very few voxels
            self.plan = []
            return
        task, state = self.sketch = one_session(
            self.coarse.grey, self.coarse.region.node(seeds.position_ras), seeds.foreground, grid=self.agent.grid,
            count=count, gains_stride=4 - self.axes,
        )  # fmt: skip
        belief = resample(self.belief, self.fine.region, self.coarse.region).reshape(1, -1)
        policy, planner = highest_value(self.agent, forbidden=taken), SeedPlanner(sweeps=self.rules.sweeps)
        self.plan = planner.plan(task, state, belief, policy, count=count, forbidden=taken)[0].tolist()

    def _taken(self) -> Tensor:
        seeds = join_seeds(self.user, self.placed)
        return closed_cells(seeds, self.cells, self.agent.grid, self.coarse.region, self.image)

    def _kept(self) -> Drawn:
        if self.rules.keep == "last":
            return self.history[-1]
        best, margin = self.history[0], 0.0 if self.rules.prior else self.rules.caution
        for drawn in self.history[1:]:
            best = drawn if drawn.quality > best.quality + margin else best
        return best

    def _mask(self) -> Tensor:
        """The mask (X, Y, Z) bool on the image's grid; the user's clicks have their label."""
        mask = self.mask
        if mask is None:
            mask = restore_mask(self._kept().potential[0].cpu(), self.fine.region, self.image)
        voxels = seed_voxels(self.user, self.image)
        voxels = torch.minimum(voxels.clamp(min=0), torch.tensor(self.image.shape[1:]) - 1)
        mask[tuple(voxels.T)] = self.user.foreground
        return mask
