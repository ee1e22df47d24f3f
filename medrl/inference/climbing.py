"""The plain climb: the best nudge of a size while it helps, then the next size.  Baseline, and first approach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medrl.geometry.poses import Nudges, Pose, after_every, nudges
from medrl.tasks.registration import ARM_MM

CHECK = 4  # steps between looks at the host


def sized_nudges(sizes_mm: Sequence[float], *, scaled: bool) -> Nudges:
    """Nudges of every size: shifts, turns that move tissue 40 mm away as far, and changes of size."""
    degrees = [size / ARM_MM * 180 / torch.pi for size in sizes_mm]
    log_scales = [size / (2.5 * ARM_MM) for size in sizes_mm] if scaled else []
    return nudges(shifts_mm=sizes_mm, turns_degrees=degrees, log_scales=log_scales)


@torch.no_grad()
def climb(
    score: Callable[[Pose], Tensor], pose: Pose, *, sizes_mm: Sequence[float], scaled: bool, budget: int = 60
) -> tuple[Pose, Tensor]:
    """Climb from poses (K,), each to a place where no nudge of the finest size helps, or for ``budget`` steps.

    ``score`` maps poses (M,) to (M,).  Returns the poses and their scores.
    """
    device = pose.log_scale.device
    every = sized_nudges(sizes_mm, scaled=scaled).to(device)
    count = len(every.log_scale) // len(sizes_mm)
    table = Nudges(*(value.reshape(len(sizes_mm), count, *value.shape[1:]) for value in every))
    now = score(pose)
    size = torch.zeros(len(now), dtype=torch.int64, device=device)
    row = torch.arange(len(now), device=device)
    active = row
    for step in range(budget):
        if step % CHECK == 0:
            active = row[size < len(sizes_mm)]
            if len(active) == 0:
                break
        own = size[active].clamp(max=len(sizes_mm) - 1)
        some = Pose(*(value[active] for value in pose))
        after = after_every(some, Nudges(*(value[own] for value in table)))
        reached = score(Pose(*(value.flatten(0, 1) for value in after))).reshape(len(active), count)
        best, which = reached.max(1)
        better = (best > now[active] + 1e-6) & (size[active] < len(sizes_mm))
        pick = Pose(*(value[torch.arange(len(active), device=device), which] for value in after))
        pose = Pose(*(
            old.index_copy(0, active, torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old[active]))
            for old, new in zip(pose, pick, strict=True)
        ))  # fmt: skip
        now = now.index_copy(0, active, torch.where(better, best, now[active]))
        size = size.index_copy(0, active, size[active] + (~better).long())
    return pose, now
