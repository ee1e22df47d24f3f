"""The band reward: continuous, bounded, nothing for idling; and the printed formula, which is none of these."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medrl.rewards.cutting import CuttingBand, FrameAgreement, band

EPSILON = 1e-5


def jumps(reward) -> list[float]:
    """How far a reward jumps at both ends of the band."""
    return [float((reward(torch.tensor(x + EPSILON)) - reward(torch.tensor(x - EPSILON))).abs()) for x in (-0.1, 0.1)]


def misprint(gain, alpha=1.0):
    middle = 10 - alpha * gain
    return torch.where(gain > 0.1, alpha, torch.where(gain < -0.1, -alpha, middle))


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_the_band_by_hand(alpha):
    gain = torch.tensor([-0.5, -0.1001, -0.05, 0.0, 0.02, 0.0999, 0.3])
    expected = [-alpha, -alpha, -0.5 * alpha, 0.0, 0.2 * alpha, 0.999 * alpha, alpha]
    assert band(gain, alpha=alpha).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_band_has_no_jumps_and_pays_nothing_for_idling():
    assert max(jumps(band)) < 1e-3
    assert float(band(torch.tensor(0.0))) == 0.0


def test_the_misprint_jumps_and_pays_for_idling():
    assert min(jumps(misprint)) > 8.0
    assert float(misprint(torch.tensor(0.0))) == 10.0


def test_stops_count_three_times():
    gain = torch.tensor([0.05, 0.05, -0.4, -0.4])
    task = SimpleNamespace(gain=lambda state, action, after: gain, stops=lambda state, action: action == 8)
    reward = CuttingBand()(task, None, torch.tensor([1, 8, 1, 8]), None)
    assert reward.tolist() == pytest.approx([0.5, 1.5, -1.0, -3.0])
    double = 2 * CuttingBand(stop=1.0)
    assert double(task, None, torch.tensor([1, 8, 1, 8]), None).tolist() == pytest.approx([1.0, 1.0, -2.0, -2.0])


def test_frames_pay_what_they_end_with():
    state = SimpleNamespace(frame=torch.tensor([0, 3, 3]), given=torch.tensor([0, 0, 0]))
    score = torch.tensor([1.0, 0.7, 0.7])
    task = SimpleNamespace(score=lambda state: score, stops=lambda state, action: action == 8)
    reward = FrameAgreement()(task, state, torch.tensor([8, 8, 1]), None)
    assert reward.tolist() == pytest.approx([0.0, -0.3, 0.0])
