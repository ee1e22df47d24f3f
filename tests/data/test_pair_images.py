"""Images of a pair: the same on a grid in patient space however they are stored, scaled by modality."""

from __future__ import annotations

import math

import pytest
import torch
from probes import stored_image

from medrl.data.pair_images import SPACING_MM, body_grid, channels, grey, prepare
from medrl.geometry.quaternions import from_vector, to_matrix

SLOPE = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)  # HU a mm


def ramp(place):
    """HU that tell the place, in air."""
    return torch.where(place.norm(dim=1) < 45, place @ SLOPE + 200, -1000.0)


def frame(vector=(0.4, -0.2, 0.3)):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = to_matrix(from_vector(torch.tensor(vector, dtype=torch.float64)))
    matrix[:3, 3] = torch.tensor([3.0, -5.0, 2.0])
    return matrix


@pytest.mark.parametrize("spacing_mm", [(2.5, 2.5, 2.5), (1.1, 0.9, 5.0), (3.0, 1.0, 2.0)])
def test_a_grid_shows_the_patient_and_not_the_storage(spacing_mm, generator):
    image = prepare(stored_image(ramp, generator, spacing_mm))
    assert image.ct
    shape, grid_from_ras = (24, 20, 22), frame()
    values = image.render(grid_from_ras, shape)
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * SPACING_MM for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    back = torch.linalg.inv(grid_from_ras)
    ras = place @ back[:3, :3].T + back[:3, 3]
    deep, far = ras.norm(dim=-1) < 30, ras.norm(dim=-1) > 110
    # smoothing leaves a ramp as it is; half a mm at most
    torch.testing.assert_close(values[deep], (ras @ SLOPE + 200).float()[deep], atol=2.0, rtol=0)
    assert far.sum() == 0 or (values[far] == -1000).all()
    tissue = image.tissue(values)
    assert tissue[deep].all()
    assert not tissue[ras.norm(dim=-1) > 55].any()
    assert float(image.body_mm.norm(dim=1).max()) < 50
    assert image.body_mm.mean(0).abs().max() < 1.5


def test_what_is_not_measured_is_air(generator):
    for function, air in ((ramp, -1000), (lambda p: 50 + 700 * (p.norm(dim=1) < 45), 0)):
        image = prepare(stored_image(function, generator, (4.0, 4.0, 4.0)))
        outside = frame()
        outside[:3, 3] += 1000
        assert (image.render(outside, (4, 4, 4)) == air).all()


def test_mr_is_in_units_of_bright_tissue(generator):
    def function(place):
        radius = place.norm(dim=1)
        return 30 + 600.0 * (radius < 48) - 300.0 * (radius < 20)

    for gain, offset in ((1.0, 0.0), (7.0, 400.0)):
        scanner = lambda place, g=gain, o=offset: g * function(place) + o  # noqa: E731
        image = prepare(stored_image(scanner, generator, (2.0, 2.0, 2.0)))
        assert not image.ct
        values = image.render(torch.eye(4, dtype=torch.float64), (25, 25, 25))
        assert float(values[12, 12, 12]) == pytest.approx(0.5, abs=0.03)
        assert float(values[12, 12, 21]) == pytest.approx(1.0, abs=0.06)  # 36 mm from the middle
        assert float(values[0, 0, 0]) == pytest.approx(0.0, abs=0.02)


def test_an_image_without_contrast_has_no_body(generator):
    image = prepare(stored_image(lambda place: 7 + 0 * place[:, 0], generator, (4.0, 4.0, 4.0)))
    assert not image.ct
    assert len(image.body_mm) == 0


def test_a_grid_round_the_body(generator):
    image = prepare(stored_image(ramp, generator, (2.0, 2.0, 2.0)))
    grid_from_ras, shape = body_grid(image, frame(), multiple=4)
    assert all(side % 4 == 0 for side in shape)
    place = image.body_mm @ grid_from_ras[:3, :3].T + grid_from_ras[:3, 3]
    half = torch.tensor(shape) * SPACING_MM / 2
    assert ((half - place.abs().amax(0)) >= 8).all()  # the margin, less half a voxel
    assert ((half - place.abs().amax(0)) <= 10 + 2 * SPACING_MM).all()
    torch.testing.assert_close(grid_from_ras[:3, :3], frame()[:3, :3])


def test_channels_and_greys_by_hand():
    hounsfield = torch.tensor([-2000.0, -1000, -150, 0, 75, 150, 900, 5000]).reshape(1, 1, -1)
    seen = channels(hounsfield, ct=True)[:, 0, 0]
    assert seen[0].tolist() == pytest.approx([-1.5, -1.5, -1, 0, 0.5, 1, 1.5, 1.5])
    assert seen[1].tolist() == pytest.approx([-1, -1, -0.15, 0, 0.075, 0.15, 0.9, 1.2])
    share = [0, 0, 1 / 12, 1 / 3, 275 / 600, 350 / 600, 1, 1]
    assert grey(hounsfield, ct=True).flatten().tolist() == pytest.approx(share)
    bright = torch.tensor([-0.1, 0.0, 0.24, 1.2, 2.0]).reshape(1, 1, -1)
    seen = channels(bright, ct=False)[:, 0, 0]
    assert seen[0].tolist() == pytest.approx([-0.6, -0.5, -0.26, 0.7, 1.5])
    assert seen[1].tolist() == pytest.approx([-0.5, -0.5, -0.1, 0.5, math.sqrt(2.01) - 0.6])
    assert grey(bright, ct=False).flatten().tolist() == pytest.approx([0, 0, 0.2, 1, 1])
