"""Rigid and similarity registration by mutual information, with SimpleITK: the classical method, and a last polish.

The metric is Mattes mutual information [Mattes 2003] at every voxel of the body, see `GridPair`: random samples would
make the answer depend on the draw.  One thread; nothing global is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class End(NamedTuple):
    """Where a pose came to rest."""

    pose: Tensor  # (4, 4) float64, other_from_sampled
    information: float  # mutual information, nats
    start: int  # number of the pose that it came from


STAGES = (Stage(3, 16, 60, 4.0, 0.1), Stage(2, 24, 40, 2.0, 0.1), Stage(1, 32, 20, 1.0, 0.05))
CLIMBS = (40, 8, 3)  # most poses that climb on each grid
SIZE_STEPS = ((0.05, 0.1), (0.025,), (0.012,))  # relative changes of size that are tried in turn
MOST_RESIZED = 1.35  # bodies of one patient differ less; mutual information would shrink them further
LAST = Stage(1, 32, 15, 1.0, 0.05)
NO_OVERLAP = "fixed and moving: no start lays one on the other; expected images of the same body part"


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
        return _best(pair, ascend(pair, centred_poses(pair, torch.eye(3)[None]), keep=(1, 1, 1), scaled=scaled))
    poses = [pair.turn(torch.as_tensor(matrix).double()) for matrix in given]
    return _best(pair, ascend(pair, poses, keep=CLIMBS, scaled=scaled))


def multi_start(
    fixed: MetaTensor, moving: MetaTensor, *, orientations: int = 100, angle_deg: float = 110.0,
    climbs: Sequence[int] = CLIMBS, scaled: bool = False,
) -> tuple[Tensor, float]:  # fmt: skip
    """Register as `register_mutual_information`, from many orientations up to ``angle_deg``; the best metric wins.

    Every orientation is tried with the bodies' centres and with their centres of mass laid on each other.  ``climbs``:
    how many of the best poses are refined on the coarse, the middle and the fine grid.
    """
    pair = GridPair(fixed, moving)
    poses = centred_poses(pair, quaternions.to_matrix(quaternions.spread_turns(orientations, angle_deg)))
    return _best(pair, ascend(pair, poses, keep=climbs, scaled=scaled))


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


def centred_poses(pair: GridPair, turns: Tensor) -> list[Tensor]:
    """Poses that turn the sampled image about its centre, and lay centre on centre or mass on mass."""
    views = (pair.sampled, pair.other)
    clouds = [view.points(pair.spacing_mm) for view in views]
    middles = [(points.amin(0) + points.amax(0)) / 2 for points in clouds]
    masses = [view.mass(pair.spacing_mm) for view in views]
    return [
        compose(turn, 1.0, target - turn.double() @ source) for turn in turns for source, target in (middles, masses)
    ]


def ascend(
    pair: GridPair, poses: Sequence[Tensor], *, keep: Sequence[int], scaled: bool, first: int = 0,
    sizes_kept: bool = False,
) -> list[End]:  # fmt: skip
    """Grid by grid, let the best ``keep`` poses climb, of which similar ones count once; where they end, best first.

    ``first`` is the number of the grid to begin with.  Where ``sizes_kept``, a similarity keeps its size on that grid:
    from afar a body gains more by shrinking than by turning.
    """
    ends = [End(pose, 0.0, number) for number, pose in enumerate(poses)]
    if len(poses) > keep[0]:
        ends = [end._replace(information=information_at(pair, end.pose, STAGES[first])) for end in ends]
    for number, (stage, count) in enumerate(zip(STAGES[first:], keep, strict=False)):
        kept: list[End] = []
        for end in sorted(ends, key=lambda end: -end.information):
            apart = all(pair.distance_mm(end.pose, other.pose) > stage.step_mm / 2 for other in kept)
            if len(kept) < count and end.information > -torch.inf and apart:
                kept.append(end)
        kept_size = sizes_kept and number == 0
        ends = [End(*_climb(pair, end.pose, stage, scaled, kept_size=kept_size), end.start) for end in kept]
    return sorted(ends, key=lambda end: -end.information)


def ascend_resized(pair: GridPair, poses: Sequence[Tensor], stage: Stage) -> list[End]:
    """Let similarities climb, sizes too, on one grid; where they end, best first.

    The size is searched along a line, between climbs that keep it, and only then set free: the gradient by the size is
    so steep that an ascent with it alone ends in another body's size.
    """
    ends = []
    for number, pose in enumerate(poses):
        if not plausible(pose):
            continue
        best = _climb(pair, pose, stage, True, kept_size=True)
        for steps in SIZE_STEPS:
            sizes = [resized(pair, best[0], 1 + sign * step) for step in steps for sign in (-1, 1)]
            told = {information_at(pair, size, stage): size for size in sizes if plausible(size)}
            if told and max(told) > best[1]:
                best = max(best, _climb(pair, told[max(told)], stage, True, kept_size=True), key=lambda end: end[1])
        free = _climb(pair, best[0], stage, True)
        best = max(best, free, key=lambda end: end[1]) if plausible(free[0]) else best
        ends.append(End(*best, number))
    return sorted(ends, key=lambda end: -end.information)


def plausible(pose: Tensor) -> bool:
    """Whether a pose changes sizes by no more than the most that is believed."""
    return abs(math.log(abs(float(torch.linalg.det(pose[:3, :3]))) + 1e-9)) <= 3 * math.log(MOST_RESIZED)


def resized(pair: GridPair, pose: Tensor, factor: float) -> Tensor:
    """A pose (4, 4) with another size, the centre of the sampled body where it was."""
    matrix = pose.clone()
    matrix[:3, :3] = factor * pose[:3, :3]
    matrix[:3, 3] = pose[:3, :3] @ pair.centre + pose[:3, 3] - matrix[:3, :3] @ pair.centre
    return matrix


def _best(pair: GridPair, ends: Sequence[End]) -> tuple[Tensor, float]:
    """The best end as moving_from_fixed, and its mutual information."""
    if not ends or ends[0].information == -torch.inf:
        raise InputError(NO_OVERLAP)
    return pair.turn(ends[0].pose), ends[0].information


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


def information_at(pair: GridPair, pose: Tensor, stage: Stage) -> float:
    """Mutual information of a pose."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOff()  # no gradient is needed
    method.SetInitialTransform(_as_transform(pose, pair.centre, True))
    sampled, _, other = pair.grids(stage.factor)
    try:
        return -method.MetricEvaluate(sampled, other)
    except RuntimeError:  # every sample lies beyond the other image
        return -torch.inf


def _climb(
    pair: GridPair, pose: Tensor, stage: Stage, scaled: bool, *, kept_size: bool = False
) -> tuple[Tensor, float]:  # fmt: skip
    """The pose after gradient ascent, and its mutual information."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOn()  # once, instead of differences at every sample and step
    method.SetOptimizerAsRegularStepGradientDescent(stage.step_mm, stage.least_mm, stage.rounds, RELAXATION, 1e-8)
    transform = _as_transform(pose, pair.centre, scaled)
    method.SetOptimizerScales(_parameter_scales(LEVER * pair.radius_mm, scaled))
    if scaled and kept_size:
        method.SetOptimizerWeights([1.0] * 6 + [0.0])
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
