"""Average precision and its kin, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.inference.localisation_assessment import (
    Judged,
    average_precision,
    best_threshold,
    bootstrap,
    f1,
    fit_chance,
    image_f1,
    judge,
)


def image(scores, right, objects):
    return Judged(np.array(scores, float), np.array(right, bool), objects, 0.0)


def test_an_object_counts_once():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    box = torch.tensor([[0.0, 0, 10, 11], [0, 0, 10, 10], [20, 20, 30, 29], [50, 50, 60, 60]])
    found = judge(box, torch.tensor([0.5, 0.9, 0.8, 0.7]), truth)
    assert found.score.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5])
    assert found.right.tolist() == [True, True, False, False]
    assert found.best_iou == 1.0
    assert judge(box[:0], torch.zeros(0), truth).best_iou == 0
    assert judge(box, torch.ones(4), truth[:0]).right.sum() == 0


def test_average_precision_by_hand():
    # ranked: right, wrong, right, of 3 objects: precisions 1, 1/2, 2/3
    assert average_precision([image([0.9, 0.5], [1, 1], 2), image([0.7], [0], 1)]) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([image([], [], 2)]) == 0
    assert np.isnan(average_precision([image([0.5], [0], 0)]))
    # the envelope: wrong, then right, right
    assert average_precision([image([0.9, 0.8, 0.7], [0, 1, 1], 2)]) == pytest.approx(2 / 3)


def test_f1_by_hand():
    images = [image([0.9, 0.4], [1, 0], 1), image([0.8], [0], 0), image([], [], 0)]
    assert f1(images, 0.5) == pytest.approx(2 * 1 / (2 + 1))
    assert f1(images, 0.85) == 1.0
    assert image_f1(images, 0.5) == pytest.approx((1 + 0 + 1) / 3)
    assert image_f1(images, 0.0) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert f1(images, best_threshold(images)) == 1.0
    assert best_threshold([image([], [], 0)]) == 0.5


def test_chances_are_fitted():
    generator = np.random.default_rng(0)
    logit = generator.normal(0, 2, 4000)
    right = generator.random(4000) < 1 / (1 + np.exp(-(1.7 * logit - 0.8)))
    slope, bias = fit_chance(logit, right)
    assert slope == pytest.approx(1.7, abs=0.25)
    assert bias == pytest.approx(-0.8, abs=0.2)
    assert fit_chance(np.array([1.0, 2.0]), np.array([True, True])) == (1.0, 0.0)


def test_intervals_hold_the_figure():
    value, low, high = bootstrap([0.0, 1.0] * 50, lambda part: float(np.mean(part)), draws=200)
    assert value == 0.5
    assert 0.38 < low < 0.5 < high < 0.62
