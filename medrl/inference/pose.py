"""Find the anatomical frame of a volume in any orientation by correlating a small template."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medrl.data.anatomy import Anatomy
from medrl.geometry.grids import OUTSIDE, canonical
from medrl.geometry.similarity import compose, random_rotations, rotation

SURE = 0.9  # correlation of a pose that needs no second search


def search_pose(
    volume: Tensor, ras_from_voxel: Tensor, anatomy: Anatomy, generator: torch.Generator, *, rotations: int = 2000,
    keep: int = 12, rounds: int = 14, tries: int = 24,
) -> tuple[Tensor, float]:  # fmt: skip
    """Return ``frame_from_ras`` (4, 4) and its correlation in [-1, 1].

    Random rotations about the centre of mass are scored by the correlation of the template's points with the
    volume; the best are refined by random perturbations of rotation, size and place that shrink round by round.
    Where no pose convinces, as in a cropped field of view, the search is done again from places round the centre.
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

    known = torch.nan_to_num(value)[None, None]

    def mass(grey: Tensor, place: Tensor) -> Tensor:
        weight = grey.clamp(min=1) - 1
        return (weight[:, None] * place).sum(0) / weight.sum().clamp(min=1e-6)

    axes = [torch.arange(n) - (n - 1) / 2 for n in grid.shape]
    middle = mass(torch.nan_to_num(value).flatten(), torch.cartesian_prod(*axes) * step)  # mm from the grid's centre
    anchor = mass(wanted, points)

    def correlate(turn: Tensor, size: Tensor, place: Tensor, overlap: float, use: Tensor) -> Tensor:
        """(N,) correlations of poses: grid point = place + size * turn @ (template point - anchor)."""
        at = place[:, None] + size[:, None, None] * ((points[use] - anchor) @ turn.transpose(1, 2))
        inside = (at.abs() <= half).all(-1)
        unit = (at / half).flip(-1)[None, :, :, None]
        seen = grid_sample(known, unit, align_corners=False)[0, 0, :, :, 0]
        count = inside.sum(1).clamp(min=1)
        a = torch.where(inside, seen - (seen * inside).sum(1, keepdim=True) / count[:, None], 0)
        grey = wanted[use]
        b = torch.where(inside, grey - (grey * inside).sum(1, keepdim=True) / count[:, None], 0)
        score = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-6)
        # a pose that sees a small part of the template proves little
        return score * (count / len(use)).clamp(max=overlap) / overlap

    every = torch.arange(len(points))
    few = torch.randperm(len(points), generator=generator)[: max(400, len(points) // 3)]

    def search(places: Tensor, overlap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best rotation, size, place and score, from random rotations at each of some places (K, 3)."""
        turn = random_rotations(rotations, generator).float().repeat_interleave(len(places), 0)
        place, size = places.repeat(rotations, 1), torch.ones(rotations * len(places))
        parts = zip(*(x.split(500) for x in (turn, size, place)), strict=True)
        score = torch.cat([correlate(*part, overlap, few) for part in parts])
        best = score.topk(min(keep, len(score))).indices
        turn, size, place = turn[best], size[best], place[best]
        score = correlate(turn, size, place, overlap, every)
        for number in range(rounds):
            width, count = 0.75**number, len(turn) * tries
            change = rotation(0.25 * width * torch.randn(count, 3, generator=generator))
            new_turn = change @ turn.repeat_interleave(tries, 0)
            new_size = size.repeat_interleave(tries) * torch.exp(0.06 * width * torch.randn(count, generator=generator))
            new_place = place.repeat_interleave(tries, 0) + 2 * step * width * torch.randn(
                count, 3, generator=generator
            )
            new_score = correlate(new_turn, new_size, new_place, overlap, every).reshape(-1, tries)
            top, index = new_score.max(1)
            index = index + torch.arange(len(turn)) * tries
            better = top > score
            turn = torch.where(better[:, None, None], new_turn[index], turn)
            size = torch.where(better, new_size[index], size)
            place = torch.where(better[:, None], new_place[index], place)
            score = torch.maximum(score, top)
            if number == 4:  # the rest of the work goes to the best few
                lead = score.topk(min(3, len(score))).indices
                turn, size, place, score = turn[lead], size[lead], place[lead], score[lead]
        return turn, size, place, score

    turn, size, place, score = search(middle[None], 0.8)
    if float(score.max()) < SURE:
        # a cropped field of view: its centre of mass is not the anatomy's, and it holds a part of the template only
        reach = 0.12 * len(template) * step
        shifts = reach * torch.tensor([[axis == n for n in range(3)] for axis in range(3)], dtype=torch.float32)
        places = torch.cat([middle[None], *(middle + k * shifts for k in (-2, -1, 1, 2))])
        turn, size, place, score = (
            torch.cat(pair)
            for pair in zip(
                (turn, size, place, correlate(turn, size, place, 0.4, every)), search(places, 0.4), strict=True
            )
        )
    winner = int(score.argmax())
    frame_to_grid = compose(turn[winner], float(size[winner]), place[winner])
    shift = compose(torch.eye(3), 1.0, -(centre + anchor))
    grid_from_frame = frame_to_grid @ shift
    return torch.linalg.inv(ras_from_centre @ grid_from_frame), float(score[winner])
