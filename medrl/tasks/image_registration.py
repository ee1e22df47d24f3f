"""Registration by looking at both images: slices as Sun et al. 2018, or volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from medrl.data.image_pairs import ImagePairs
from medrl.geometry.poses import Pose, nudges
from medrl.tasks.poses import PoseTask
from medrl.types import Reward, where


class ImageRegistrationState(NamedTuple):
    """Of B rows; 35 bytes a row."""

    case: Tensor  # int16
    quaternion: Tensor  # (B, 4)
    log_scale: Tensor  # (B,)
    translation_mm: Tensor  # (B, 3)
    stopped: Tensor  # bool

    @property
    def pose(self) -> Pose:
        """moving_from_fixed, in the frames of the case."""
        return Pose(self.quaternion, self.log_scale, self.translation_mm)


class ImageRegistrationTask(PoseTask):
    """The policy sees the fixed image, the moving one as the pose brings it there and, with ``overlap``, where it is.

    Observation (B, 2 or 3, *S): of the type of the images, the overlap 0 or the largest value.  Actions in 2D, as the
    paper's: one pixel along x and y, one degree, 0.05 of the size, both signs of each, and stop; in 3D shifts along and
    turns about three axes.  ``shifts_mm`` is by default the smallest voxel side; several sizes make several sets of
    actions, and no ``log_scales`` make the transforms rigid.

    An episode starts at the truth moved by up to ``start_mm`` (by default 10 voxels), ``start_degrees`` and a factor of
    up to ``start_scale`` or, with the chance ``untouched``, with the images' middles on each other, as an application
    does.

    Source: Sun et al. 2018; their reward is ``Score() + AtStop(threshold=..., eta=...)``.
    """

    def __init__(
        self, *, cases: ImagePairs, shifts_mm: Sequence[float] | None = None, turns_degrees: Sequence[float] = (1.0,),
        log_scales: Sequence[float] = (0.05,), overlap: bool = True, max_steps: int = 60, untouched: float = 0.0,
        start_mm: float | None = None, start_degrees: float = 20.0, start_scale: float = 1.2,
        reward: Reward | None = None,
    ) -> None:  # fmt: skip
        pixel_mm, planar = min(cases.spacing_mm), cases.dims == 2
        changes = nudges(
            shifts_mm=(pixel_mm,) if shifts_mm is None else shifts_mm, turns_degrees=turns_degrees,
            log_scales=log_scales, planar=planar,
        )  # fmt: skip
        super().__init__(
            cases=cases, changes=changes, scaled=len(log_scales) > 0, planar=planar, max_steps=max_steps,
            start_mm=10 * pixel_mm if start_mm is None else start_mm, start_degrees=start_degrees,
            start_scale=start_scale, reward=reward, near_mm=2 * pixel_mm,
        )  # fmt: skip
        self.overlap, self.untouched = overlap, untouched
        integers = cases.fixed.dtype == torch.uint8
        self.top = 255 if integers else 1
        self.observation_space = gymnasium.spaces.Box(
            0, self.top, (2 + overlap, *cases.shape), np.uint8 if integers else np.float32
        )

    def initial(self, case: Tensor, generator: torch.Generator) -> ImageRegistrationState:
        """Each case at a perturbed pose, or untouched."""
        pose = self.perturbed(case, generator)
        leave = torch.rand(case.shape, generator=generator, device=case.device) < self.untouched
        return self.at(case, where(leave, _identity(case), pose))

    def at(self, case: Tensor, pose: Pose | None = None) -> ImageRegistrationState:
        """The state at the start of an episode from a pose (B,) of the cases (B,), by default untouched."""
        pose = _identity(case) if pose is None else pose
        return ImageRegistrationState(case.to(torch.int16), *pose, torch.zeros_like(case, dtype=torch.bool))

    def observe(self, state: ImageRegistrationState) -> Tensor:
        """(B, 2 or 3, *S), uint8 or float32."""
        moving, inside = self.cases.warp(state.case, state.pose)
        parts = [self.cases.fixed[state.case.long()].float(), moving, *[inside * float(self.top)] * self.overlap]
        seen = torch.cat(parts, 1)
        return seen.round().to(torch.uint8) if self.top == 255 else seen


def _identity(case: Tensor) -> Pose:
    """Poses (B,) that change nothing."""
    zero = torch.zeros(len(case), 8, device=case.device)
    zero[:, 0].fill_(1)  # an assignment would wait for the device
    return Pose(zero[:, :4], zero[:, 4], zero[:, 5:])
