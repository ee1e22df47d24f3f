"""MIND: blind to contrast, by hand at an edge."""

from __future__ import annotations

import math

import pytest
import torch
from probes import smooth_volume

from medrl.geometry.mind import describe


def test_contrast_changes_nothing(torch_generator):
    volume = smooth_volume((9, 8, 10), torch_generator).float() / 255
    wanted = describe(volume)
    assert wanted.shape == (6, 9, 8, 10)
    assert (wanted.amax(0) == 1).all()
    assert 0 < float(wanted.min()) < 0.1
    for other in (3 * volume + 7, 1 - volume):
        torch.testing.assert_close(describe(other), wanted, atol=2e-3, rtol=0)


def test_a_step_by_hand():
    """Patches of 3^3 with weights (s, 1, s) / (1 + 2 s), s = exp(-2), on a step between x = 3 and x = 4."""
    volume = torch.zeros(8, 6, 6)
    volume[4:] = 1
    seen = describe(volume)[:, :, 3, 3]
    side = math.exp(-2) / (1 + 2 * math.exp(-2))
    up, down = 1 - 2 * side, side  # weight of the middle: only voxels x = 3 differ from the one above them
    variance = (up + down) / 6
    # at x = 3 nothing differs across y and z
    assert seen[:, 3].tolist() == pytest.approx([math.exp(-up / variance), math.exp(-down / variance), 1, 1, 1, 1])
    assert seen[:, 0].tolist() == pytest.approx([1] * 6)


def test_what_is_uniform_is_like_all_its_neighbours():
    assert (describe(torch.full((4, 4, 4), 3.0)) == 1).all()
