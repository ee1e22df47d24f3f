"""A volume slice by slice, by the agent for slices: from the clicked slice outwards, each with seeds of the last."""

from __future__ import annotations

from dataclasses import replace

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medrl.data.regions import is_ct
from medrl.data.seeds import Seeds, join_seeds, make_seeds, seed_voxels
from medrl.geometry.grids import spacing_of
from medrl.inference.segmentation import Rules, Segmentation
from medrl.inference.session import Session

LEAST_QUALITY = 0.3  # estimated, of a slice that still shows the object
LEAST_OVERLAP = 0.2  # of the masks of neighbouring slices
TRIED = 24  # slices that are looked at where no click tells which


def segment_slices(image: MetaTensor, seeds: Seeds, network: nn.Module, rules: Rules) -> Segmentation:
    """Segment a volume (1, X, Y, Z) in slices across its coarsest axis.

    Every slice with a foreground click is begun from its own clicks, or, without such clicks, the slice where the
    estimated quality is highest.  From there the innermost point of a mask and its surest background start the next
    slice, until the estimated quality is low, the mask vanishes, it is no longer where that of the slice before is, or
    the networks for volumes, if there are any, see the object no more: a single slice does not tell where it ends.
    """
    stack = _Stack(image, seeds, network, rules)
    starts = [k for k, foreground in zip(stack.clicked, seeds.foreground.tolist(), strict=True) if foreground]
    for start in starts or [stack.likeliest()]:
        if start in stack.done:
            continue
        first = stack.segment(start, make_seeds())
        for step in (1, -1):
            session, k = first, start + step
            while session is not None and k in stack.extent and k not in stack.done:
                session = stack.follow(session, k, step)
                k += step
    return stack.result()


class _Stack:
    """The slices of a volume, and what was found in them."""

    def __init__(self, image: MetaTensor, seeds: Seeds, network: nn.Module, rules: Rules) -> None:
        self.image, self.seeds, self.network = image, seeds, network
        self.rules = replace(rules, max_seeds=rules.slice_seeds)
        spacing_mm = spacing_of(image.affine.double())
        along = image.affine[2, :3].abs().double() / spacing_mm  # of equally coarse axes the one nearest to superior
        self.axis = int((spacing_mm * (1 + 1e-3 * along)).argmax())
        self.count = image.shape[1 + self.axis]
        self.clicked = seed_voxels(seeds, image)[:, self.axis].clamp(0, self.count - 1).tolist()
        self.ct = is_ct(image)
        self.mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        self.extent = self.believed_extent()
        self.done: dict[int, float] = {}  # slice -> estimated quality
        self.placed = make_seeds()

    def believed_extent(self) -> set[int]:
        """Slices in which the networks for volumes see the object; all, without such networks."""
        if not self.network.has_agent(3) or 1 in self.image.shape[1:]:
            return set(range(self.count))
        session = Session(self.image, self.network, replace(self.rules, max_seeds=0), ct=self.ct)
        session.start(self.seeds)
        mask = session.result().mask[0].as_tensor().movedim(self.axis, 0).flatten(1)
        return set(mask.any(1).nonzero()[:, 0].tolist()) or set(range(self.count))

    def slice(self, k: int) -> MetaTensor:
        """One slice as an image."""
        affine = self.image.affine.double().clone()
        affine[:3, 3] += k * affine[:3, self.axis]
        return MetaTensor(self.image.as_tensor().narrow(1 + self.axis, k, 1), affine=affine)

    def own(self, k: int) -> Seeds:
        """The user's clicks in a slice."""
        here = torch.tensor([k == at for at in self.clicked], dtype=torch.bool)
        return Seeds(*(part[here] for part in self.seeds))

    def likeliest(self) -> int:
        """The slice, of some evenly spread, where the mask's estimated quality is highest."""
        best, chosen = -1.0, self.count // 2
        for k in torch.linspace(0, self.count - 1, min(TRIED, self.count)).round().long().tolist():
            session = Session(self.slice(k), self.network, self.rules, ct=self.ct)
            session.start(self.own(k))
            quality = session.result().quality
            if quality > best:
                best, chosen = quality, k
        return chosen

    def follow(self, before: Session, k: int, step: int) -> Session | None:
        """Segment the slice beside one that is done; None if the object has ended."""
        carried = before.carry()
        if not len(carried.foreground):
            return None
        moved = carried.position_ras + step * self.image.affine[:3, self.axis].double()
        return self.segment(k, Seeds(moved, carried.foreground), last=self._at(k - step))

    def segment(self, k: int, carried: Seeds, last: Tensor | None = None) -> Session | None:
        """Segment a slice from the user's clicks there, and carried seeds of the kinds that the user did not give."""
        own = self.own(k)
        needed = torch.tensor([kind not in own.foreground.tolist() for kind in carried.foreground.tolist()]).bool()
        image = self.slice(k)
        carried = _inside(Seeds(*(part[needed] for part in carried)), own, image)
        session = Session(image, self.network, self.rules, ct=self.ct)
        session.start(join_seeds(own, carried))
        session.run()
        result = session.result()
        mask = result.mask[0].as_tensor().bool().squeeze(self.axis)
        if last is not None and not bool(own.foreground.any()):
            overlap = float((mask & last).sum() / (mask | last).sum().clamp(min=1))
            if result.quality < LEAST_QUALITY or overlap < LEAST_OVERLAP:
                return None
        self._at(k).copy_(mask)
        self.done[k] = result.quality
        self.placed = join_seeds(self.placed, Seeds(*(part[len(own.foreground) :] for part in result.seeds)))
        return session

    def result(self) -> Segmentation:
        """The mask of the volume; its quality is the mean over slices by their area."""
        area = {k: float(self._at(k).sum()) for k in self.done}
        quality = sum(self.done[k] * size for k, size in area.items()) / max(1.0, sum(area.values()))
        mask = MetaTensor(self.mask.to(torch.uint8)[None], affine=self.image.affine)
        return Segmentation(mask, join_seeds(self.seeds, self.placed), len(self.seeds.foreground), quality)

    def _at(self, k: int) -> Tensor:
        return self.mask.select(self.axis, k)


def _inside(carried: Seeds, own: Seeds, image: MetaTensor) -> Seeds:
    """Carried seeds that lie in the slice, and in no voxel that the user clicked."""
    voxel, size = seed_voxels(carried, image), torch.tensor(image.shape[1:])
    clicked = seed_voxels(own, image)
    keep = ((voxel >= 0) & (voxel < size)).all(1) & ~(voxel[:, None] == clicked[None]).all(-1).any(1)
    return Seeds(*(part[keep] for part in carried))
