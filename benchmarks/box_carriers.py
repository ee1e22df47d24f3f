"""What carries a box through a clip beside the plain policy: constant velocity, with or without it; correlation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from medrl.geometry.box_motion import MotionNoise, box_of, predict, start, update
from medrl.geometry.boxes import from_middle_and_size, grown, middle_and_size
from medrl.inference.box_refinement import Choose, carry
from medrl.tasks.box_refinement import BoxRefinementTask, RefinementState

# the tracker's filter, but for the measurements: those before the given box are true
NOISE = MotionNoise(place=0.01, size=0.01, drift=0.003, growth=0.001, speed=0.024, swell=0.001)
REFINED = NOISE._replace(place=0.05, size=0.05)  # of boxes that a policy has refined


def filtered(task: BoxRefinementTask, state: RefinementState, choose: Choose | None = None) -> Tensor:
    """Boxes (B, F, 4) of constant velocity, learnt from all true boxes up to the given one.

    With a policy it refines every prediction, and the filter goes on from there.
    """
    case, slot, first = state.case.long(), state.slot.long(), int(state.frame[0])
    motion = start(task.cases.truth[case, 0, slot], NOISE)
    for frame in range(1, first):
        motion = update(predict(motion, NOISE), task.cases.truth[case, frame, slot], NOISE)
    single = BoxRefinementTask(cases=task.cases, size=task.size, margin=task.margin, template=task.template)
    last, boxes = state.last, []
    for frame in range(first, first + task.frames):
        motion = predict(motion, NOISE)
        box = box_of(motion)
        if choose is not None:
            when = torch.full_like(case, frame)
            given = single.given(case, slot, when, last, box, state.source, state.template)
            box = carry(single, choose, given)[:, 0]
            motion = update(motion, box, REFINED)
        boxes.append(box)
        last = box
    return torch.stack(boxes, 1)


def correlated(task: BoxRefinementTask, state: RefinementState, *, latest: bool, size: int = 24) -> Tensor:
    """Boxes (B, F, 4) of normalised cross-correlation with the object in its first frame, or in the ``latest``.

    It is looked for within half a side around the last box, at three scales.
    """
    case, count = state.case.long(), len(state.case)
    frame, box, boxes = state.frame.long(), state.box, []
    template = task.cases.crop(case, frame - 1, box, size)
    for _ in range(task.frames):
        middle, side = middle_and_size(box)
        best, found = torch.full((count,), -torch.inf), box
        pattern = template.float()
        pattern = (pattern - pattern.mean((1, 2, 3), keepdim=True)).flatten(0, 1)[:, None]
        for scale in (1.0, 0.96, 1.04):
            wide = scale * side
            around = from_middle_and_size(middle, wide)
            window = task.cases.crop(case, frame, grown(around, 0.5 * wide), 2 * size).float().flatten(0, 1)[None]
            ones = torch.ones_like(pattern)
            hit, total, squares = (
                conv2d(x, kernel, groups=3 * count)[0].unflatten(0, (count, 3)).sum(1)
                for x, kernel in ((window, pattern), (window, ones), (window.square(), ones))
            )
            spread = (squares - total.square() / (3 * size**2)).clamp(min=1)
            value, place = (hit / spread.sqrt()).flatten(1).max(1)
            shift = torch.stack([place % (size + 1), place // (size + 1)], 1) / size - 0.5
            better = value > best
            best = torch.where(better, value, best)
            found = torch.where(better[:, None], around + (shift * wide).repeat(1, 2), found)
        box = found
        boxes.append(box)
        if latest:
            template = task.cases.crop(case, frame, box, size)
        frame = frame + 1
    return torch.stack(boxes, 1)
