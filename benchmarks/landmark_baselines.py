"""What a landmark agent is compared with, without a network: mean position, mean shape, atlas registration.

Every baseline is called with a case (``Source``) and answers with its landmarks in label order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medrl.data.anatomy import Anatomy
from medrl.data.cases import Source
from medrl.geometry.grids import grey_window, spacing_of
from medrl.geometry.similarity import apply, fit, fit_robust
from medrl.inference.pose import search_pose
from medrl.types import Landmark

RAS_TO_LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))


def name_points(labels: Sequence[str], points_ras: Tensor, uncertainty_mm: Tensor | None = None) -> list[Landmark]:
    """Places (L, 3) in RAS mm as landmarks."""
    doubt = torch.zeros(len(labels)) if uncertainty_mm is None else uncertainty_mm
    rows = zip(labels, points_ras.tolist(), doubt.tolist(), strict=True)
    return [Landmark(label, tuple(place), uncertainty_mm=value) for label, place, value in rows]


class MeanPosition:
    """Every landmark at its mean offset from the image's centre, in patient axes, over the training cases."""

    def __init__(self, training: Sequence[Source], labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.offset_mm = torch.stack([s.points_ras - _centre(s) for s in training]).nanmean(0)

    def __call__(self, source: Source) -> list[Landmark]:
        """Landmarks of a case."""
        return name_points(self.labels, _centre(source) + self.offset_mm)


class OracleShape:
    """The training cases' mean shape, with the pose and size that fit the truth best: what a shape alone can reach."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def __call__(self, source: Source) -> list[Landmark]:
        """Landmarks of a case whose truth is known."""
        known = source.points_ras.isfinite().all(1).double()
        ras_from_shape = fit(torch.nan_to_num(source.points_ras), self.anatomy.shape_mm, known)
        return name_points(self.anatomy.labels, apply(ras_from_shape, self.anatomy.shape_mm.double()))


class AtlasRegistration:
    """Mean of the landmarks that registered training volumes carry over: affine (mutual information), then demons.

    Where the anatomy has a template (patients in any orientation), the pose that its search finds gives the start;
    else the centres of mass do.
    """

    def __init__(self, atlases: Sequence[Source], anatomy: Anatomy, *, demons: bool = False) -> None:
        self.atlases, self.anatomy, self.demons = list(atlases), anatomy, demons

    def __call__(self, source: Source) -> list[Landmark]:
        """Landmarks of a case; the uncertainty is the atlases' scatter."""
        places = torch.stack([register(a, source, self._start(a, source), demons=self.demons) for a in self.atlases])
        mean = places.nanmean(0)
        return name_points(self.anatomy.labels, mean, (places - mean).norm(dim=-1).square().nanmean(0).sqrt())

    def _start(self, atlas: Source, source: Source) -> Tensor | None:
        if self.anatomy.template is None:
            return None
        generator = torch.Generator().manual_seed(0)
        source_frame, _ = search_pose(source.volume, source.ras_from_voxel, self.anatomy, generator)
        known = atlas.points_ras.isfinite().all(1).double()
        atlas_frame = fit_robust(self.anatomy.shape_mm, torch.nan_to_num(atlas.points_ras), known)
        return torch.linalg.inv(source_frame) @ atlas_frame


def register(atlas: Source, source: Source, source_from_atlas: Tensor | None, *, demons: bool) -> Tensor:
    """Places (L, 3) in RAS mm of the atlas's landmarks in another volume, registered with SimpleITK."""
    import SimpleITK

    fixed, moving = _as_image(atlas), _as_image(source)
    affine = SimpleITK.AffineTransform(3)
    if source_from_atlas is None:
        moments = SimpleITK.CenteredTransformInitializerFilter.MOMENTS
        affine = SimpleITK.AffineTransform(SimpleITK.CenteredTransformInitializer(fixed, moving, affine, moments))
    else:
        matrix = RAS_TO_LPS @ source_from_atlas @ RAS_TO_LPS
        centre = (RAS_TO_LPS[:3, :3] @ _centre(atlas)).tolist()
        affine.SetMatrix(matrix[:3, :3].flatten().tolist())
        affine.SetTranslation((apply(matrix, torch.tensor(centre).double()) - torch.tensor(centre)).tolist())
        affine.SetCenter(centre)
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 300, 0.8, 1e-8)  # step, least step, rounds, relaxation
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(affine, True)
    method.Execute(fixed, moving)
    steps = [affine]
    if demons:
        moved = SimpleITK.Resample(moving, fixed, affine, SimpleITK.sitkLinear, 0.0)
        steps.insert(0, _demons(fixed, SimpleITK.HistogramMatching(moved, fixed)))
    places = apply(RAS_TO_LPS, atlas.points_ras).tolist()
    for step in steps:
        places = [step.TransformPoint(place) if np.isfinite(place).all() else place for place in places]
    return apply(RAS_TO_LPS, torch.tensor([list(place) for place in places], dtype=torch.float64))


def _demons(fixed, moving):
    """Symmetric-forces demons at half, then full resolution, as a transform of fixed points."""
    import SimpleITK

    method, field = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter(), None
    method.SetSmoothDisplacementField(True)
    method.SetStandardDeviations(1.5)
    for shrink, rounds in ((2, 60), (1, 30)):
        first, second = (SimpleITK.Shrink(image, [shrink] * 3) for image in (fixed, moving))
        method.SetNumberOfIterations(rounds)
        if field is None:
            field = method.Execute(first, second)
        else:
            field = method.Execute(first, second, SimpleITK.Resample(field, first))
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))


def _centre(source: Source) -> Tensor:
    """RAS mm (3,) of the image's centre."""
    return apply(source.ras_from_voxel, (torch.tensor(source.volume.shape, dtype=torch.float64) - 1) / 2)


def _as_image(source: Source):
    """A SimpleITK image, grey values from 0 to 1."""
    import SimpleITK

    low, high = grey_window(source.volume)
    image = SimpleITK.GetImageFromArray(((source.volume.float() - low) / (high - low)).clamp(0, 1).numpy().T)
    spacing, matrix = spacing_of(source.ras_from_voxel), RAS_TO_LPS @ source.ras_from_voxel
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).flatten().tolist())
    return image
