"""The filter against the textbook's matrices, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.geometry.box_motion import MotionNoise, box_of, measure, predict, scales, start, surprise, update

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
