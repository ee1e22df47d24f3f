"""The filter against the textbook's matrices, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.geometry.box_motion import (
    Motion,
    MotionNoise,
    box_of,
    measure,
    predict,
    scales,
    smooth,
    start,
    surprise,
    update,
)

BOX = torch.tensor([[10.0, 20.0, 30.0, 70.0]])
NOISE = MotionNoise(place=0.1, size=0.08, drift=0.02, growth=0.01, speed=0.05, swell=0.02)


def test_one_step_is_kalmans():
    seen = torch.tensor([[14.0, 18.0, 36.0, 72.0]])
    ahead = predict(start(BOX, NOISE), NOISE)
    fused = update(ahead, seen, NOISE)
    # by matrices, for the centre's x: width 20, height 50
    transition, look = np.array([[1, 1], [0, 1]]), np.array([[1, 0]])
    covariance = transition @ np.diag([2.0**2, 2.5**2]) @ transition.T + 1.0**2 * np.array([[1 / 3, 1 / 2], [1 / 2, 1]])
    gain = covariance @ look.T / (covariance[0, 0] + 2.0**2)
    mean = np.array([20.0, 0.0]) + gain[:, 0] * (25.0 - 20.0)
    after = (np.eye(2) - gain @ look) @ covariance
    np.testing.assert_allclose(ahead.covariance[0, 0], covariance[[0, 0, 1], [0, 1, 1]], rtol=1e-5)
    np.testing.assert_allclose(fused.mean[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(fused.covariance[0, 0], after[[0, 0, 1], [0, 1, 1]], rtol=1e-5)
    wrong, deviation = surprise(ahead, seen, NOISE)
    assert float(wrong[0, 0]) == pytest.approx(5.0)
    assert float(deviation[0, 0]) == pytest.approx((covariance[0, 0] + 4.0) ** 0.5)


def test_boxes_come_back():
    torch.testing.assert_close(box_of(start(BOX, NOISE)), BOX)
    assert measure(torch.tensor([5.0, 5.0, 5.0, 4.0])).isfinite().all()  # an empty box
    place, drift, speed = scales(BOX, NOISE)
    torch.testing.assert_close(place, torch.tensor([[2.0, 5.0, 0.08, 0.08]]))
    torch.testing.assert_close(drift, torch.tensor([[1.0, 1.0, 0.01, 0.01]]))
    torch.testing.assert_close(speed, torch.tensor([[2.5, 2.5, 0.02, 0.02]]))


def test_a_steady_walk_is_learned():
    generator = torch.Generator().manual_seed(0)
    speed = torch.tensor([2.0, 1.0, 2.0, 1.0])
    motion = start(BOX, NOISE)
    for time in range(1, 25):
        motion = predict(motion, NOISE)
        motion = update(motion, BOX + time * speed + torch.randn(1, 4, generator=generator), NOISE)
    for _ in range(5):
        motion = predict(motion, NOISE)
    assert (box_of(motion) - BOX - 29 * speed).abs().max() < 4
    assert motion.mean[0, 0, 1] == pytest.approx(2.0, abs=0.3)


def test_rows_are_apart():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 70.0], [100.0, 20.0, 180.0, 70.0], [0.0, 0.0, 5.0, 9.0]])
    together = update(predict(start(boxes, NOISE), NOISE), boxes + 1, NOISE)
    alone = update(predict(start(boxes[1:2], NOISE), NOISE), boxes[1:2] + 1, NOISE)
    torch.testing.assert_close(together.mean[1:2], alone.mean)


def test_smoothing_is_the_mean_given_everything():
    """By one least-squares problem over all frames, for the centre's x of two objects, one of which comes later."""
    generator, frames, first = torch.Generator().manual_seed(0), 8, [0, 3]
    seen = BOX + 4 * torch.randn(frames, 2, 4, generator=generator) + 2.0 * torch.arange(frames)[:, None, None]
    wide = BOX[0, 2] - BOX[0, 0]
    seen[..., 2:] = seen[..., :2] + torch.tensor([wide, 50.0])  # equal sides: the noises are those of the box
    steady = NOISE._replace(size=1e-3, swell=1e-6, growth=1e-6)
    taken = torch.ones(frames, 2, dtype=torch.bool)
    taken[4:6] = False
    rows = {"mean": [], "ahead": []}
    motion = start(seen[0], steady)
    for t in range(frames):
        fresh = start(seen[t], steady)
        ahead = predict(motion, steady) if t else fresh
        fused = update(ahead, seen[t], steady)
        begins, at = torch.tensor([t == f for f in first])[:, None, None], taken[t][:, None, None]
        parts = zip(fresh, fused, ahead, strict=True)
        motion = Motion(*(torch.where(begins, s, torch.where(at, u, a)) for s, u, a in parts))
        rows["mean"].append(motion)
        rows["ahead"].append(ahead)
    alive = torch.arange(frames)[:, None] >= torch.tensor(first)
    filtered, ahead = (Motion(*(torch.stack(p) for p in zip(*rows[n], strict=True))) for n in ("mean", "ahead"))
    smoothed = smooth(filtered, ahead, alive)
    measured = measure(seen)
    for k in range(2):
        count = frames - first[k]
        place, drift, speed = (float(s[0, 0]) for s in scales(seen[0, k : k + 1], steady))
        lines, values, weights = [], [], []

        def say(line, value, weight, lines=lines, values=values, weights=weights):
            lines.append(line), values.append(value), weights.append(weight)

        covariance = drift**2 * np.array([[1 / 3, 1 / 2], [1 / 2, 1]])
        root = np.linalg.inv(np.linalg.cholesky(covariance))
        for t in range(count):
            if taken[first[k] + t, k] or t == 0:
                say(np.eye(2 * count)[2 * t], float(measured[first[k] + t, k, 0]), 1 / place)
            if t == 0:
                say(np.eye(2 * count)[1], 0.0, 1 / speed)
            else:
                step = np.zeros((2, 2 * count))
                step[:, 2 * t : 2 * t + 2], step[:, 2 * t - 2 : 2 * t] = np.eye(2), -np.array([[1, 1], [0, 1]])
                for line in root @ step:
                    say(line, 0.0, 1.0)
        weight = np.array(weights)
        best = np.linalg.lstsq(np.array(lines) * weight[:, None], np.array(values) * weight, rcond=None)[0]
        np.testing.assert_allclose(smoothed.mean[first[k] :, k, 0].flatten(), best, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(smoothed.mean[-1], filtered.mean[-1])
