"""Poses: similarity transforms as quaternion, logarithm of the scale and translation, and the nudges between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from medrl.geometry import quaternions


class Pose(NamedTuple):
    """B similarity transforms ``x -> exp(log_scale) R(quaternion) x + translation_mm``; 32 bytes each.

    The origin of the first frame is what a turn or a change of size leaves in its place.
    """

    quaternion: Tensor  # (B, 4)
    log_scale: Tensor  # (B,)
    translation_mm: Tensor  # (B, 3)


def to_matrices(pose: Pose) -> Tensor:
    """Matrices (B, 4, 4)."""
    linear = quaternions.to_matrix(pose.quaternion) * pose.log_scale.exp()[..., None, None]
    matrix = pad(torch.cat([linear, pose.translation_mm[..., None]], -1), (0, 0, 0, 1))
    matrix[..., 3, 3].fill_(1)  # an assignment would wait for the device
    return matrix


def from_matrices(matrix: Tensor) -> Pose:
    """Poses of similarity matrices (B, 4, 4)."""
    log_scale = torch.linalg.det(matrix[..., :3, :3]).abs().log() / 3
    rotation = matrix[..., :3, :3] / log_scale.exp()[..., None, None]
    return Pose(quaternions.from_matrix(rotation), log_scale, matrix[..., :3, 3])


def transform(pose: Pose, points_mm: Tensor) -> Tensor:
    """Points (B, P, 3), or (P, 3) for all, in the second frame."""
    linear = quaternions.to_matrix(pose.quaternion) * pose.log_scale.exp()[..., None, None]
    return points_mm @ linear.transpose(-1, -2) + pose.translation_mm[..., None, :]


def transform_all(matrix: Tensor, points_mm: Tensor) -> Tensor:
    """Points (B, K, P, 3) of points (B, P, 3) under each of matrices (B, K, 4, 4).

    In memory the coordinates lie apart, x of all before y and z, as whoever works along axes reads them fastest.
    """
    rows = matrix[..., :3, :].movedim(2, 0).flatten(0, 1)  # (3 B, K, 4)
    found = torch.baddbmm(rows[..., 3:], rows[..., :3], points_mm.mT.repeat(3, 1, 1))  # (3 B, K, P)
    return found.unflatten(0, (3, -1)).movedim(0, -1)


def distance_mm(pose: Pose, truth: Pose, points_mm: Tensor) -> Tensor:
    """Mean distance (B,), or (B, K) for poses (B, K), of where poses and a truth (B,) take points (B, P, 3).

    In mm of the first frame: distances in the second one over the scale of the truth.
    """
    target = transform(truth, points_mm)
    size = truth.log_scale.exp()
    if pose.log_scale.ndim > 1:
        points_mm, target, size = points_mm[:, None], target[:, None], size[:, None]
    return (transform(pose, points_mm) - target).norm(dim=-1).mean(-1) / size


class Nudges(NamedTuple):
    """K small changes of a pose: a turn, a change of size and a shift, all seen in the second frame."""

    turn: Tensor  # (K, 4) quaternions
    log_scale: Tensor  # (K,)
    shift_mm: Tensor  # (K, 3)

    def to(self, device: torch.device | str) -> Nudges:
        """Move to a device."""
        return Nudges(*(value.to(device) for value in self))


def nudges(
    *, shifts_mm: Sequence[float], turns_degrees: Sequence[float], log_scales: Sequence[float], planar: bool = False
) -> Nudges:
    """Both signs of every parameter, size after size: shifts along x, y, z, turns about them, changes of scale.

    ``planar`` leaves out the shift along z and the turns about x and y; without ``log_scales`` a size has no changes of
    scale, and the transforms are rigid.
    """
    shift_axes, turn_axes = ((0, 1), (2,)) if planar else ((0, 1, 2), (0, 1, 2))
    turn, scale, shift = [], [], []
    for number, (shift_mm, degrees) in enumerate(zip(shifts_mm, turns_degrees, strict=True)):
        kinds = [(0, axis, shift_mm) for axis in shift_axes]
        kinds += [(1, axis, degrees * torch.pi / 180) for axis in turn_axes]
        kinds += [(2, 0, log_scales[number])] if log_scales else []
        for kind, axis, size in kinds:
            for sign in (1.0, -1.0):
                change = torch.zeros(3, 3)
                change[kind, axis] = sign * size
                shift.append(change[0])
                turn.append(quaternions.from_vector(change[1]))
                scale.append(change[2, 0])
    return Nudges(torch.stack(turn), torch.stack(scale), torch.stack(shift))


def nudged(pose: Pose, change: Nudges) -> Pose:
    """Poses after one nudge each (both with B rows), or after every one: rows (B, 1, ...) against (K, ...)."""
    return Pose(
        quaternions.multiply(change.turn, pose.quaternion), pose.log_scale + change.log_scale,
        pose.translation_mm + change.shift_mm,
    )  # fmt: skip


def after_every(pose: Pose, change: Nudges) -> Pose:
    """Poses (B, K) after each of K nudges from each of B poses."""
    return nudged(Pose(*(value[:, None] for value in pose)), change)
