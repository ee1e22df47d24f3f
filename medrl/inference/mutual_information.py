"""Rigid and similarity registration by mutual information, with SimpleITK: the classical method, and a last polish.

The metric is Mattes mutual information [Mattes 2003] at every voxel of the body, see `GridPair`: random samples would
make the answer depend on the draw.  One thread; nothing global is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.geometry import quaternions
from medrl.geometry.similarity import apply, compose
from medrl.inference.registration_grids import GridPair
from medrl.types import InputError

# A turn of one radian counts as a shift of half the body's mean radius.  SimpleITK's own estimate takes the farthest
# corner: turns then crawl, and the ascent ends in a zigzag far from the maximum.
LEVER, RELAXATION = 0.8, 0.75


class Stage(NamedTuple):
    """How poses climb on one grid."""

    factor: int  # spacing in units of the finest
    bins: int
    rounds: int
    step_mm: float  # first step; shorter whenever the gradient turns back
    least_mm: float


STAGES = (Stage(3, 16, 60, 4.0, 0.1), Stage(2, 24, 40, 2.0, 0.1), Stage(1, 32, 20, 1.0, 0.05))
CLIMBS = (40, 8, 3)  # most poses that climb on each grid
LAST = Stage(1, 32, 15, 1.0, 0.05)


def register_mutual_information(
    fixed: MetaTensor, moving: MetaTensor, *, start: Tensor | None = None, starts: Sequence[Tensor] | int = 1,
    scaled: bool = False,
) -> tuple[Tensor, float]:  # fmt: skip
    """Register two images by mutual information, coarse to fine.

    Args:
        fixed: (1, X, Y, Z), its affine ras_from_voxel.
        moving: as fixed.
        start: moving_from_fixed (4, 4) in RAS mm to climb from; default: the centres laid on each other.
        starts: more such matrices, or a number of orientations for `multi_start`.
        scaled: search a similarity (7 parameters), not a rigid transform (6).

    Returns:
        moving_from_fixed (4, 4), float64 RAS mm, and the mutual information in nats.

    Raises:
        InputError: an image without a body, or no start that lays one image on the other.
    """
    if isinstance(starts, int) and starts > 1:
        return multi_start(fixed, moving, orientations=starts, scaled=scaled)
    pair = GridPair(fixed, moving)
    given = [*([] if start is None else [start]), *([] if isinstance(starts, int) else starts)]
    if not given:
        return _best(pair, centred_poses(pair, torch.eye(3)[None]), (1, 1, 1), scaled)
    return _best(pair, [pair.turn(torch.as_tensor(matrix).double()) for matrix in given], CLIMBS, scaled)


def multi_start(
    fixed: MetaTensor, moving: MetaTensor, *, orientations: int = 100, angle_deg: float = 110.0,
    climbs: Sequence[int] = CLIMBS, scaled: bool = False,
) -> tuple[Tensor, float]:  # fmt: skip
    """Register as `register_mutual_information`, from many orientations up to ``angle_deg``; the best metric wins.

    Every orientation is tried with the bodies' centres and with their centres of mass laid on each other.  ``climbs``:
    how many of the best poses are refined on the coarse, the middle and the fine grid.
    """
    pair = GridPair(fixed, moving)
    return _best(pair, centred_poses(pair, spread_rotations(orientations, angle_deg)), climbs, scaled)


def polish(
    fixed: MetaTensor, moving: MetaTensor, moving_from_fixed: Tensor, *, limit_mm: float = 8.0, scaled: bool = False
) -> tuple[Tensor, float]:
    """Sharpen a registration by mutual information on the finest grid.

    Returns:
        moving_from_fixed (4, 4), float64 RAS mm, and how far it moved the body (mean, mm).  Where that is more than
        ``limit_mm``, or the metric cannot be computed, the start is returned as it came, and 0.
    """
    pair = GridPair(fixed, moving)
    start = pair.turn(torch.as_tensor(moving_from_fixed).double())
    pose, score = _climb(pair, start, LAST, scaled)
    moved_mm = pair.distance_mm(start, pose)
    if score == -torch.inf or not moved_mm <= limit_mm:
        return torch.as_tensor(moving_from_fixed).double(), 0.0
    return pair.turn(pose), moved_mm


def spread_rotations(count: int, angle_deg: float) -> Tensor:
    """Rotation matrices (count, 3, 3), evenly spread over all turns of at most ``angle_deg``; the first is no turn.

    Source: super-Fibonacci spirals [Alexa 2022].
    """
    angle = np.radians(angle_deg)
    total = int(np.ceil((count - 1) * np.pi / (angle - np.sin(angle)))) + 1  # the ball's share of all orientations
    while True:
        index = torch.arange(total, dtype=torch.float64) + 0.5
        inner, outer = (index / total).sqrt(), (1 - index / total).sqrt()
        first, second = 2 * torch.pi * index / 2**0.5, 2 * torch.pi * index / 1.533751168755204288118041
        turns = torch.stack([outer * second.cos(), inner * first.sin(), inner * first.cos(), outer * second.sin()], 1)
        turns = turns[2 * turns[:, 0].abs().clamp(max=1).acos() <= angle]
        if len(turns) >= count - 1:
            return torch.cat([torch.eye(3, dtype=torch.float64)[None], quaternions.to_matrix(turns[: count - 1])])
        total += 1


def centred_poses(pair: GridPair, turns: Tensor) -> list[Tensor]:
    """Poses that turn the sampled image about its centre, and lay centre on centre or mass on mass."""
    views = (pair.sampled, pair.other)
    clouds = [view.points(pair.spacing_mm) for view in views]
    middles = [(points.amin(0) + points.amax(0)) / 2 for points in clouds]
    masses = [view.mass(pair.spacing_mm) for view in views]
    return [
        compose(turn, 1.0, target - turn.double() @ source) for turn in turns for source, target in (middles, masses)
    ]


def _best(pair: GridPair, poses: list[Tensor], climbs: Sequence[int], scaled: bool) -> tuple[Tensor, float]:
    """Grid by grid, let the best poses climb; similar ones count once."""
    scores = [_evaluate(pair, pose, STAGES[0]) for pose in poses] if len(poses) > climbs[0] else [0.0] * len(poses)
    for stage, keep in zip(STAGES, climbs, strict=True):
        kept: list[Tensor] = []
        for index in np.argsort(scores, kind="stable")[::-1]:
            apart = all(pair.distance_mm(poses[index], pose) > stage.step_mm / 2 for pose in kept)
            if len(kept) < keep and scores[index] > -torch.inf and apart:
                kept.append(poses[index])
        climbed = [_climb(pair, pose, stage, scaled) for pose in kept]
        poses, scores = [pose for pose, _ in climbed], [score for _, score in climbed]
    if not scores or max(scores) == -torch.inf:
        raise InputError("fixed and moving: no start lays one on the other; expected images of the same body part")
    return pair.turn(poses[int(np.argmax(scores))]), max(scores)


def _method(pair: GridPair, stage: Stage) -> Any:
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(stage.bins)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(pair.grids(stage.factor)[1])
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.MetricUseFixedImageGradientFilterOff()
    return method


def _evaluate(pair: GridPair, pose: Tensor, stage: Stage) -> float:
    """Mutual information of a pose."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOff()  # no gradient is needed
    method.SetInitialTransform(_as_transform(pose, pair.centre, True))
    sampled, _, other = pair.grids(stage.factor)
    try:
        return -method.MetricEvaluate(sampled, other)
    except RuntimeError:  # every sample lies beyond the other image
        return -torch.inf


def _climb(pair: GridPair, pose: Tensor, stage: Stage, scaled: bool) -> tuple[Tensor, float]:
    """The pose after gradient ascent, and its mutual information."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOn()  # once, instead of differences at every sample and step
    method.SetOptimizerAsRegularStepGradientDescent(stage.step_mm, stage.least_mm, stage.rounds, RELAXATION, 1e-8)
    transform = _as_transform(pose, pair.centre, scaled)
    method.SetOptimizerScales(_parameter_scales(LEVER * pair.radius_mm, scaled))
    method.SetInitialTransform(transform, True)
    sampled, _, other = pair.grids(stage.factor)
    try:
        method.Execute(sampled, other)
    except RuntimeError:
        return pose, -torch.inf
    turn = torch.tensor(transform.GetMatrix(), dtype=torch.float64).reshape(3, 3)  # includes the scale
    moved = pair.centre + torch.tensor(transform.GetTranslation(), dtype=torch.float64)
    return compose(turn, 1.0, moved - turn @ pair.centre), -method.GetMetricValue()


def _parameter_scales(lever_mm: float, scaled: bool) -> list[float]:
    """Squared mm that a unit of each parameter moves the body; a versor is half an angle."""
    if scaled:
        return [(2 * lever_mm) ** 2] * 3 + [1.0] * 3 + [lever_mm**2]
    return [lever_mm**2] * 3 + [1.0] * 3


def _as_transform(pose: Tensor, centre: Tensor, scaled: bool) -> Any:
    """A SimpleITK similarity, or the rigid transform next to it, about a centre."""
    import SimpleITK

    transform = SimpleITK.Similarity3DTransform() if scaled else SimpleITK.Euler3DTransform()
    u, singular, vh = torch.linalg.svd(pose[:3, :3])
    turn = u @ vh * (float(singular.prod()) ** (1 / 3) if scaled else 1.0)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(turn.flatten().tolist(), 1e-6)
    transform.SetTranslation((apply(pose, centre[None])[0] - centre).tolist())
    return transform
