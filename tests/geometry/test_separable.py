"""Resampling along axes against numbers worked by hand and against plain interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.geometry import separable
from medrl.geometry.separable import Line, line_weights, resample_lines


def test_weights_by_hand():
    weights, inside = line_weights(Line(4, -0.5, 1.0), 3)
    assert inside.tolist() == [True, True, True, True]  # -0.5 and 2.5 are the edges of the outermost boxes
    np.testing.assert_allclose(weights, [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]])
    weights, inside = line_weights(Line(2, 1.0, 5**0.5), 5)  # the hat function averaged over two indices
    np.testing.assert_allclose(weights[0], [0.25, 0.5, 0.25, 0, 0], atol=1e-6)
    weights, inside = line_weights(Line(1, 0.0, 5**0.5), 5)  # beyond the end is the outermost value
    np.testing.assert_allclose(weights[0], [0.75, 0.25, 0, 0, 0], atol=1e-6)
    _, inside = line_weights(Line(3, -0.6, 1.6), 3)
    assert inside.tolist() == [False, True, False]


def test_backwards_is_flipped():
    volume = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    values, inside = resample_lines(volume, [Line(5, 4.0, -1.0), Line(4, 0.0, 1.0), Line(3, 2.0, -1.0)])
    assert inside.all()
    torch.testing.assert_close(values, volume.flip(0, 2), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.bool])
def test_linear_functions_are_kept(dtype):
    axes = torch.meshgrid(*(torch.arange(n) for n in (12, 9, 10)), indexing="ij")
    volume = (2 * axes[0] - 3 * axes[1] + 5 * axes[2]).to(dtype) if dtype != torch.bool else axes[0] > -1
    lines = [Line(3, 2.6, 2.5), Line(7, 0.3, 0.9), Line(2, 6.5, -3.8)]
    values, inside = resample_lines(volume, lines)
    assert inside.all()
    nodes = torch.meshgrid(*(line.origin + line.step * torch.arange(line.count) for line in lines), indexing="ij")
    expected = 2 * nodes[0] - 3 * nodes[1] + 5 * nodes[2] if dtype != torch.bool else torch.ones(3, 7, 2)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-4)


def test_fine_stripes_vanish_when_thinned():
    stripes = torch.zeros(64, 4, 4)
    stripes[::2] = 1
    values, _ = resample_lines(stripes, [Line(16, 1.5, 4.0), Line(4, 0.0, 1.0), Line(4, 0.0, 1.0)])
    assert (values[1:-1] - 0.5).abs().max() < 0.02


def test_slabs_change_nothing(monkeypatch):
    volume = torch.rand(13, 6, 5, generator=torch.Generator().manual_seed(1))
    lines = [Line(6, 0.4, 2.1), Line(6, 0.0, 1.0), Line(4, 0.1, 1.2)]
    whole, inside = resample_lines(volume, lines)
    monkeypatch.setattr(separable, "SLAB", 60)
    torch.testing.assert_close(resample_lines(volume, lines)[0], whole)
    assert inside.tolist() == torch.ones(6, 6, 4, dtype=torch.bool).tolist()


def test_a_lattice_beside_the_volume_reads_nothing():
    values, inside = resample_lines(torch.ones(4, 4, 4), [Line(3, 9.0, 1.0), Line(4, 0.0, 1.0), Line(4, 0.0, 1.0)])
    assert not inside.any()
    assert not values.any()


def test_inverse_goes_back():
    line = Line(7, 3.0, -0.5)
    back = line.inverse(4)
    place = line.origin + line.step * (back.origin + back.step * np.arange(4))
    np.testing.assert_allclose(place, np.arange(4))
