"""Boxes that move at nearly constant velocity: a Kalman filter of centre and log size, axis by axis [Kalman 1960].

All four numbers of a box are filtered apart, so that a covariance is three numbers each and nothing is inverted.
Noises are shares of the box's own sides: near and far objects are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medrl.geometry.boxes import from_middle_and_size, middle_and_size

SMALLEST = 1.0  # pixels; a side never gets shorter


class MotionNoise(NamedTuple):
    """Standard deviations, in sides of the box; sizes in logarithms.  Floats, or tensors () that are fitted."""

    place: float | Tensor = 0.10  # of a detection's centre
    size: float | Tensor = 0.10  # of a detection's log sides
    drift: float | Tensor = 0.01  # of the velocity's change in a frame, in heights
    growth: float | Tensor = 0.005  # likewise of the log sides
    speed: float | Tensor = 0.08  # of the velocity of a new object, in heights a frame
    swell: float | Tensor = 0.01  # likewise of the log sides


class Motion(NamedTuple):
    """B tracked boxes.  The last axis but one is centre x, centre y, log width, log height."""

    mean: Tensor  # (..., 4, 2) value and its change in a frame
    covariance: Tensor  # (..., 4, 3) of value and value, value and change, change and change


def start(box: Tensor, noise: MotionNoise) -> Motion:
    """Motion of new objects that were seen once, at boxes (..., 4); at rest for all one knows."""
    measured = measure(box)
    place, _, speed = scales(box, noise)
    mean = torch.stack([measured, torch.zeros_like(measured)], -1)
    covariance = torch.stack([place.square(), torch.zeros_like(place), speed.square()], -1)
    return Motion(mean, covariance)


def predict(motion: Motion, noise: MotionNoise) -> Motion:
    """One frame later."""
    _, drift, _ = scales(box_of(motion), noise)
    value, change = motion.mean.unbind(-1)
    first, cross, second = motion.covariance.unbind(-1)
    # white noise of the acceleration within the frame
    more = drift.square()
    covariance = [first + 2 * cross + second + more / 3, cross + second + more / 2, second + more]
    return Motion(torch.stack([value + change, change], -1), torch.stack(covariance, -1))


def update(motion: Motion, box: Tensor, noise: MotionNoise) -> Motion:
    """Fuse predictions with detections (..., 4)."""
    place, _, _ = scales(box_of(motion), noise)
    value, change = motion.mean.unbind(-1)
    first, cross, second = motion.covariance.unbind(-1)
    total = first + place.square()
    gain, gain_change = first / total, cross / total
    surprise = measure(box) - value
    mean = torch.stack([value + gain * surprise, change + gain_change * surprise], -1)
    covariance = torch.stack([(1 - gain) * first, (1 - gain) * cross, second - gain_change * cross], -1)
    return Motion(mean, covariance)


def smooth(motion: Motion, ahead: Motion, alive: Tensor) -> Motion:
    """Filtered motions (T, N, ...) of T frames in the light of the frames after them [Rauch, Tung, Striebel 1965].

    ``ahead`` are the predictions (T, N, ...) for the same frames, from those before; ``alive`` (T, N) says where there
    are any.  The covariances are those of the filter.
    """
    mean = motion.mean.clone()
    for t in range(len(mean) - 2, -1, -1):
        first, cross, second = motion.covariance[t].unbind(-1)
        next_first, next_cross, next_second = ahead.covariance[t + 1].unbind(-1)
        determinant = (next_first * next_second - next_cross.square()).clamp(min=1e-12)
        value, change = (mean[t + 1] - ahead.mean[t + 1]).unbind(-1)
        # the inverse of the predicted covariance, applied to what the prediction lacked
        value, change = (
            (next_second * value - next_cross * change) / determinant,
            (next_first * change - next_cross * value) / determinant,
        )
        gained = torch.stack(
            [(first + cross) * value + cross * change, (cross + second) * value + second * change], -1
        )
        both = (alive[t] & alive[t + 1])[:, None, None]
        mean[t] = motion.mean[t] + torch.where(both, gained, 0.0)
    return Motion(mean, motion.covariance)


def surprise(motion: Motion, box: Tensor, noise: MotionNoise) -> tuple[Tensor, Tensor]:
    """How far detections (..., 4) lie from predictions, and the standard deviation of that, (..., 4) both."""
    place, _, _ = scales(box_of(motion), noise)
    deviation = (motion.covariance[..., 0] + place.square()).sqrt()
    return measure(box) - motion.mean[..., 0], deviation


def box_of(motion: Motion) -> Tensor:
    """Boxes (..., 4) as corners."""
    value = motion.mean[..., 0]
    return from_middle_and_size(value[..., :2], value[..., 2:].clamp(-1, 12).exp())


def measure(box: Tensor) -> Tensor:
    """Centre and log sides (..., 4)."""
    middle, size = middle_and_size(box)
    return torch.cat([middle, size.clamp(min=SMALLEST).log()], -1)


def scales(box: Tensor, noise: MotionNoise) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations (..., 4) of a detection, of a frame's drift, and of a new object's velocity."""
    _, size = middle_and_size(box)
    size = size.clamp(min=SMALLEST)
    height, one = size[..., 1:].expand_as(size), torch.ones_like(size)

    def both(place: float | Tensor, log_size: float | Tensor, unit: Tensor) -> Tensor:
        return torch.cat([place * unit, log_size * one], -1)

    return (
        both(noise.place, noise.size, size), both(noise.drift, noise.growth, height),
        both(noise.speed, noise.swell, height),
    )  # fmt: skip
