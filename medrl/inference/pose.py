"""Find the anatomical frame of a volume in any orientation by correlating a small template."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medrl.data.anatomy import Anatomy
from medrl.geometry.grids import OUTSIDE, canonical
from medrl.geometry.similarity import compose, random_rotations, rotation


def search_pose(
    volume: Tensor, ras_from_voxel: Tensor, anatomy: Anatomy, generator: torch.Generator, *, rotations: int = 2000,
    keep: int = 12, rounds: int = 14, tries: int = 24,
) -> tuple[Tensor, float]:  # fmt: skip
    """Return ``frame_from_ras`` (4, 4) and its correlation in [-1, 1].

    Random rotations about the centre of mass are scored by the correlation of the template's points with the
    volume; the best are refined by random perturbations of rotation, size and place that shrink round by round.
    """
    template, step = anatomy.template, anatomy.template_spacing_mm
    if template is None:
        raise ValueError("this anatomy has no template")
    window = None if anatomy.window is None else (anatomy.window[0], anatomy.window[1])
    grid, ras_from_centre = canonical(volume, ras_from_voxel, spacing_mm=step, window=window, multiple=2)
    value = torch.where(grid == OUTSIDE, torch.nan, grid.float())
    half = torch.tensor(grid.shape) * step / 2
    lower, upper = anatomy.box_mm()
    centre = ((lower + upper) / 2).float()
    side = torch.arange(len(template)) - (len(template) - 1) / 2
    points = torch.cartesian_prod(side, side, side) * step  # (P, 3) mm from the box's centre
    wanted = template.flatten().float()
    used = (points.norm(dim=1) <= len(template) / 2 * step) & (wanted > 0)
    points, wanted = points[used], wanted[used]

    def mass(grey: Tensor, place: Tensor) -> Tensor:
        weight = grey.clamp(min=1) - 1
        return (weight[:, None] * place).sum(0) / weight.sum().clamp(min=1e-6)

    axes = [torch.arange(n) - (n - 1) / 2 for n in grid.shape]
    middle = mass(torch.nan_to_num(value).flatten(), torch.cartesian_prod(*axes) * step)  # mm from the grid's centre
    anchor = mass(wanted, points)

    def correlate(turn: Tensor, size: Tensor, place: Tensor) -> Tensor:
        """(N,) correlations of poses: grid point = place + size * turn @ (template point - anchor)."""
        at = place[:, None] + size[:, None, None] * ((points - anchor) @ turn.transpose(1, 2))
        inside = (at.abs() <= half).all(-1)
        unit = (at / half).flip(-1)[None, :, :, None]
        seen = grid_sample(torch.nan_to_num(value)[None, None], unit, align_corners=False)[0, 0, :, :, 0]
        count = inside.sum(1).clamp(min=1)
        a = torch.where(inside, seen - (seen * inside).sum(1, keepdim=True) / count[:, None], 0)
        b = torch.where(inside, wanted - (wanted * inside).sum(1, keepdim=True) / count[:, None], 0)
        score = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-6)
        # a pose that sees a small part of the template proves little
        return score * (count / len(points)).clamp(max=0.8) / 0.8

    turn = random_rotations(rotations, generator).float()
    size, place = torch.ones(rotations), middle.expand(rotations, 3)
    score = torch.cat(
        [correlate(t, s, p) for t, s, p in zip(*(x.split(250) for x in (turn, size, place)), strict=True)]
    )
    best = score.topk(min(keep, rotations)).indices
    turn, size, place, score = turn[best], size[best], place[best], score[best]
    for number in range(rounds):
        width = 0.75**number
        count = len(turn) * tries
        change = rotation(0.25 * width * torch.randn(count, 3, generator=generator))
        more_turn = change @ turn.repeat_interleave(tries, 0)
        more_size = size.repeat_interleave(tries) * torch.exp(0.06 * width * torch.randn(count, generator=generator))
        more_place = place.repeat_interleave(tries, 0) + 2 * step * width * torch.randn(count, 3, generator=generator)
        more = correlate(more_turn, more_size, more_place).reshape(-1, tries)
        top, index = more.max(1)
        index = index + torch.arange(len(turn)) * tries
        better = top > score
        turn = torch.where(better[:, None, None], more_turn[index], turn)
        size, place = (
            torch.where(better, more_size[index], size),
            torch.where(better[:, None], more_place[index], place),
        )
        score = torch.maximum(score, top)
        if number == 4:  # the rest of the work goes to the best few
            few = score.topk(min(3, len(score))).indices
            turn, size, place, score = turn[few], size[few], place[few], score[few]
    winner = int(score.argmax())
    frame_to_grid = compose(turn[winner], float(size[winner]), place[winner])
    shift = compose(torch.eye(3), 1.0, -(centre + anchor))
    grid_from_frame = frame_to_grid @ shift
    return torch.linalg.inv(ras_from_centre @ grid_from_frame), float(score[winner])
