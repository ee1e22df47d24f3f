"""Rigid and similarity registration by mutual information, with SimpleITK: the classical method, and a last polish.

Both images become canonical grids (along the patient axes, isotropic, anti-aliased), so that the way they are stored
does not matter.  The metric is Mattes mutual information [Mattes 2003] over the body in the image that shows less of
it, at every voxel: random samples would make the answer depend on the draw.  The other image goes on as air beyond its
edges; so every pose is judged by the same samples, and none wins by a small overlap.

One thread; nothing global is changed.  The grids are handed to SimpleITK in RAS: it needs a frame, not LPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from medrl.data.regions import is_ct
from medrl.geometry.grids import canonical
from medrl.geometry.similarity import apply, compose
from medrl.geometry.transforms import invert
from medrl.types import InputError

FINE_MM, MOST_SAMPLES = 4.0, 45_000  # the finest grid is coarser where the body has more voxels than this
CT_WINDOW = (-300.0, 300.0)  # HU
AIR = {True: 1, False: 26}  # largest grey value of air, by whether the image is a CT: -300 HU, 10 % of the window
UNMEASURED = 1  # largest grey value of the border of a resampled MR image
BODY_MARGIN, EDGE_MARGIN = 2, 0  # fine voxels that the samples reach beyond the skin, and beyond what was measured
BEYOND_MM = 72.0  # of air round the other image
MULTIPLE = 6  # sides of the fine grid are multiples of it, so that grids of 2 and 3 times the spacing fit


# A turn of one radian counts as a shift of half the body's mean radius.  SimpleITK's own estimate takes the farthest
# corner: turns then crawl, and the ascent ends in a zigzag far from the maximum.
LEVER, RELAXATION = 0.5, 0.75


class Stage(NamedTuple):
    """One round of a search: the best ``keep`` poses climb on a grid of ``factor`` times the finest spacing."""

    factor: int
    bins: int
    keep: int
    rounds: int
    step_mm: float  # first step; halved whenever the gradient turns back
    least_mm: float


SINGLE = (Stage(3, 16, 1, 60, 8.0, 0.1), Stage(2, 24, 1, 40, 4.0, 0.1), Stage(1, 32, 1, 20, 2.0, 0.05))
MULTIPLE_STARTS = (Stage(3, 16, 40, 30, 8.0, 0.2), Stage(2, 24, 8, 25, 4.0, 0.1), Stage(1, 32, 3, 20, 2.0, 0.05))
LAST = Stage(1, 32, 1, 15, 1.0, 0.05)


class View(NamedTuple):
    """An image on the finest grid."""

    grey: Tensor  # (X, Y, Z) float32 from 0 (air, or beyond the edge) to 1
    body: Tensor  # (X, Y, Z) bool: the samples
    centre: Tensor  # (3,) RAS mm of the grid's centre


class Pair:
    """Two images prepared for a search of ``other_from_sampled``, which is ``moving_from_fixed`` or its inverse."""

    def __init__(self, fixed: MetaTensor, moving: MetaTensor) -> None:
        self.spacing_mm = FINE_MM
        views = [_view(image, self.spacing_mm) for image in (fixed, moving)]
        least = min(int(view.body.sum()) for view in views)
        if least == 0:
            which = "fixed" if not views[0].body.any() else "moving"
            raise InputError(f"the {which} image: holds nothing but air; expected a patient")
        if least > MOST_SAMPLES:
            self.spacing_mm *= (least / MOST_SAMPLES) ** (1 / 3)
            views = [_view(image, self.spacing_mm) for image in (fixed, moving)]
        self.swapped = int(views[1].body.sum()) < int(views[0].body.sum())
        self.sampled, self.other = reversed(views) if self.swapped else views
        beyond = int(BEYOND_MM / self.spacing_mm / MULTIPLE + 1) * MULTIPLE
        self._padded = pad(self.other.grey, (beyond,) * 6)
        self._grids: dict[int, tuple[Any, Any, Any]] = {}
        self.points = _points(self.sampled, self.spacing_mm)  # of the body, where a pose is about and is measured
        self.centre = self.points.mean(0)
        self.lever_mm = LEVER * float((self.points - self.centre).square().sum(1).mean().sqrt())

    def turn(self, pose: Tensor) -> Tensor:
        """``moving_from_fixed`` of ``other_from_sampled``, and back."""
        return invert(pose) if self.swapped else pose

    def grids(self, factor: int) -> tuple[Any, Any, Any]:
        """SimpleITK images at a multiple of the finest spacing: sampled image, its mask, other image."""
        if factor not in self._grids:
            spacing_mm = self.spacing_mm * factor
            share = avg_pool3d(self.sampled.body[None, None].float(), factor)[0, 0]
            kept = (share >= 0.5).float()
            sampled, other = (avg_pool3d(grey[None, None], factor)[0, 0] for grey in (self.sampled.grey, self._padded))
            box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in kept.nonzero().T)
            middle = torch.tensor([(b.start + b.stop - n) / 2 for b, n in zip(box, kept.shape, strict=True)])
            centre = self.sampled.centre + middle * spacing_mm
            self._grids[factor] = (
                _as_image(sampled[box], spacing_mm, centre),
                _as_image(kept[box].to(torch.uint8), spacing_mm, centre),
                _as_image(other, spacing_mm, self.other.centre),
            )
        return self._grids[factor]

    def distance_mm(self, first: Tensor, second: Tensor) -> float:
        """Mean distance between where two poses put the body."""
        return float((apply(first, self.points) - apply(second, self.points)).norm(dim=1).mean())


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
    pair = Pair(fixed, moving)
    given = [*([] if start is None else [start]), *([] if isinstance(starts, int) else starts)]
    poses = [pair.turn(torch.as_tensor(matrix).double()) for matrix in given] or centred_poses(pair, torch.eye(3)[None])
    return _best(pair, poses, SINGLE, scaled)


def multi_start(
    fixed: MetaTensor, moving: MetaTensor, *, orientations: int = 150, angle_deg: float = 110.0, scaled: bool = False,
    stages: Sequence[Stage] = MULTIPLE_STARTS,
) -> tuple[Tensor, float]:  # fmt: skip
    """Register as `register_mutual_information`, from many orientations up to ``angle_deg``; the best metric wins.

    Every orientation is tried with the images' centres and with their centres of mass laid on each other.
    """
    pair = Pair(fixed, moving)
    return _best(pair, centred_poses(pair, spread_rotations(orientations, angle_deg)), stages, scaled)


def polish(
    fixed: MetaTensor, moving: MetaTensor, moving_from_fixed: Tensor, *, limit_mm: float = 8.0, scaled: bool = False
) -> tuple[Tensor, float]:
    """Sharpen a registration by mutual information on the finest grid.

    Returns:
        moving_from_fixed (4, 4), float64 RAS mm, and how far it moved the body (mean, mm).  Where that is more than
        ``limit_mm``, or the metric cannot be computed, the start is returned as it came, and 0.
    """
    pair = Pair(fixed, moving)
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
    turns = np.zeros((0, 3, 3))
    while len(turns) < count - 1:
        index = np.arange(total) + 0.5
        inner, outer = np.sqrt(index / total), np.sqrt(1 - index / total)
        first, second = 2 * np.pi * index / np.sqrt(2), 2 * np.pi * index / 1.533751168755204288118041
        x, y, z, w = inner * np.sin(first), inner * np.cos(first), outer * np.sin(second), outer * np.cos(second)
        near = 2 * np.arccos(np.abs(w).clip(max=1)) <= angle
        x, y, z, w = x[near], y[near], z[near], w[near]
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        turns = np.moveaxis(np.array(rows), -1, 0)
        total += 1
    return torch.as_tensor(np.concatenate([np.eye(3)[None], turns[: count - 1]]))


def centred_poses(pair: Pair, turns: Tensor) -> list[Tensor]:
    """Poses that turn the sampled image about its centre, and lay centre on centre or mass on mass."""
    other = _points(pair.other, pair.spacing_mm)
    middles = [(points.amin(0) + points.amax(0)) / 2 for points in (pair.points, other)]
    masses = [_mass(view, pair.spacing_mm) for view in (pair.sampled, pair.other)]
    return [
        compose(turn, 1.0, target - turn.double() @ source) for turn in turns for source, target in (middles, masses)
    ]


def _best(pair: Pair, poses: list[Tensor], stages: Sequence[Stage], scaled: bool) -> tuple[Tensor, float]:
    """Stage by stage, let the best poses climb; similar ones count once."""
    scores = [_evaluate(pair, pose, stages[0]) for pose in poses] if len(poses) > stages[0].keep else [0.0] * len(poses)
    for stage in stages:
        kept: list[Tensor] = []
        for index in np.argsort(scores, kind="stable")[::-1]:
            apart = all(pair.distance_mm(poses[index], pose) > stage.step_mm / 2 for pose in kept)
            if len(kept) < stage.keep and scores[index] > -torch.inf and apart:
                kept.append(poses[index])
        climbed = [_climb(pair, pose, stage, scaled) for pose in kept]
        poses, scores = [pose for pose, _ in climbed], [score for _, score in climbed]
    if not scores or max(scores) == -torch.inf:
        raise InputError("fixed and moving: no start lays one on the other; expected images of the same body part")
    return pair.turn(poses[int(np.argmax(scores))]), max(scores)


def _method(pair: Pair, stage: Stage) -> Any:
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(stage.bins)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(pair.grids(stage.factor)[1])
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.MetricUseFixedImageGradientFilterOff()
    return method


def _evaluate(pair: Pair, pose: Tensor, stage: Stage) -> float:
    """Mutual information of a pose."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOff()  # no gradient is needed
    method.SetInitialTransform(_as_transform(pose, pair.centre, True))
    sampled, _, other = pair.grids(stage.factor)
    try:
        return -method.MetricEvaluate(sampled, other)
    except RuntimeError:  # every sample lies beyond the other image
        return -torch.inf


def _climb(pair: Pair, pose: Tensor, stage: Stage, scaled: bool) -> tuple[Tensor, float]:
    """The pose after gradient ascent, and its mutual information."""
    method = _method(pair, stage)
    method.MetricUseMovingImageGradientFilterOn()  # once, instead of differences at every sample and step
    method.SetOptimizerAsRegularStepGradientDescent(stage.step_mm, stage.least_mm, stage.rounds, RELAXATION, 1e-8)
    transform = _as_transform(pose, pair.centre, scaled)
    method.SetOptimizerScales(_parameter_scales(pair.lever_mm, scaled))
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


def _view(image: MetaTensor, spacing_mm: float) -> View:
    """An image on a grid along the patient axes, and what of it is body."""
    from scipy.ndimage import binary_dilation, label

    volume = image.as_tensor()[0].cpu()
    ct = is_ct(volume)
    grid, ras_from_centre = canonical(
        volume, torch.as_tensor(image.affine).cpu(), spacing_mm=spacing_mm, window=CT_WINDOW if ct else None,
        multiple=MULTIPLE,
    )  # fmt: skip
    grey = grid.numpy()
    # the empty border of a resampled image: as dark as can be, and joined to the grid's edge
    dark, _ = label(np.pad(grey <= (0 if ct else UNMEASURED), 1, constant_values=True))
    measured = (dark != dark[0, 0, 0])[1:-1, 1:-1, 1:-1]
    if EDGE_MARGIN > 0:
        measured = binary_dilation(measured, iterations=EDGE_MARGIN)
    body = binary_dilation(grey > AIR[ct], iterations=BODY_MARGIN) & measured
    return View(grid.clamp(min=1).sub(1).float() / 254, torch.from_numpy(body), ras_from_centre[:3, 3])


def _points(view: View, spacing_mm: float, *, most: int = 2000) -> Tensor:
    """Evenly drawn points (N, 3) of the body in RAS mm, float64."""
    index = view.body.nonzero()
    index = index[:: max(1, len(index) // most)].double()
    return view.centre + (index - (torch.tensor(view.body.shape) - 1) / 2) * spacing_mm


def _mass(view: View, spacing_mm: float) -> Tensor:
    """The centre (3,) of mass in RAS mm, grey values as weights."""
    weight = (view.grey * view.body).double()
    index = view.body.nonzero().double()
    mean = weight[view.body] @ index / weight.sum().clamp(min=1e-6)
    return view.centre + (mean - (torch.tensor(view.body.shape) - 1) / 2) * spacing_mm


def _as_image(values: Tensor, spacing_mm: float, centre: Tensor) -> Any:
    """A SimpleITK image of a grid along the axes of the frame."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.numpy().T))
    image.SetSpacing([spacing_mm] * 3)
    image.SetOrigin((centre - (torch.tensor(values.shape) - 1) / 2 * spacing_mm).tolist())
    return image


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
