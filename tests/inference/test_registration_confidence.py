"""How sure a registration is."""

from __future__ import annotations

import math

import torch

from medrl.inference.registration_calibration import area_under_curve, confidence_of, fit_confidence


def test_without_a_calibration_everything_is_believed():
    assert confidence_of({}, {"score": -5.0}) == 1.0


def test_confidence_is_the_logistic_of_the_weighted_evidence():
    confidence = confidence_of({"score": 2.0, "bias": -1.0}, {"score": 1.5, "lead": 9.0})
    assert math.isclose(confidence, 1 / (1 + math.exp(-2)))


def test_what_separates_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    score, noise = torch.randn(2, 400, generator=generator).tolist()
    success = [s + 0.3 * n > 0 for s, n in zip(score, torch.randn(400, generator=generator).tolist(), strict=True)]
    rows = [{"score": 50 * s + 1000, "noise": n} for s, n in zip(score, noise, strict=True)]
    weights = fit_confidence(rows, success)
    confidence = [confidence_of(weights, row) for row in rows]
    assert area_under_curve(confidence, success) > 0.95
    assert abs(weights["noise"]) < 50 * weights["score"] / 5
    assert abs(sum(confidence) / 400 - sum(success) / 400) < 0.02  # calibrated in the mean


def test_equal_outcomes_leave_the_bias_alone():
    assert fit_confidence([{"score": 1.0}, {"score": 2.0}], [True, True]) == {"bias": 2.0}
    assert fit_confidence([{"score": 1.0}, {"score": 2.0}], [False, False]) == {"bias": -2.0}


def test_area_counts_pairs_by_hand():
    # of the four pairs three are in order, and one is a tie
    assert area_under_curve([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == 0.875
    assert math.isnan(area_under_curve([0.5], [True]))
