"""Overlay pictures and pages: the mask and the seeds are at their places, whatever the grid."""

from __future__ import annotations

import base64
import gzip
import json
import re

import nibabel
import numpy as np
import pytest

from medrl.data.overlays import INSIDE, MASK, OUTSIDE, TRUTH, draw_overlay, overlay_figure, write_overlay_page
from medrl.data.seeds import make_seeds
from medrl.types import InputError

SHAPE = (16, 14, 12)
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}


def at(affine, voxel):
    return (affine @ [*voxel, 1])[:3]


def ball(affine, centre, radius_mm, shape=SHAPE):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm((index - centre) @ affine[:3, :3].T, axis=-1) < radius_mm


def contours(axes, colour):
    from matplotlib.colors import to_hex

    return [
        path.vertices
        for part in axes.collections
        for path in part.get_paths()
        if to_hex(part.get_edgecolor()[0]) == colour and len(path.vertices)
    ]


def dots(axes, colour):
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_markerfacecolor())
        for line in axes.lines
        if line.get_markeredgecolor() == colour
    ]


def test_mask_and_seeds_are_at_their_places(affine):
    mask = ball(affine, (8, 7, 6), 4.0)
    truth = ball(affine, (8, 7, 6), 5.0)
    positions = np.array([at(affine, (8, 7, 6)), at(affine, (1, 1, 1))])
    seeds = make_seeds(positions, [True, False])
    image = np.random.default_rng(0).normal(size=SHAPE)
    figure = overlay_figure(image, affine, mask, seeds=seeds, truth=truth, title="case a")
    assert [axes.get_title() for axes in figure.axes] == list(PLANES)
    assert f"{int(mask.sum())} voxels" in figure.get_suptitle()
    for axes in figure.axes:
        plane = list(PLANES[axes.get_title()])
        left, right = axes.get_xlim()
        assert left > right  # radiological convention
        (inside,) = dots(axes, INSIDE)
        np.testing.assert_allclose(inside[:2], positions[0][plane], atol=1e-6)
        assert inside[2] == INSIDE
        (outside,) = dots(axes, OUTSIDE)
        np.testing.assert_allclose(outside[:2], positions[1][plane], atol=1e-6)
        assert outside[2] == "none"  # off the plane
        numbers = {text.get_text() for text in axes.texts}
        assert {"1", "2"} <= numbers
        for colour, radius_mm in ((MASK, 4.0), (TRUTH, 5.0)):
            path = np.concatenate(contours(axes, colour))
            distance = np.linalg.norm(path - positions[0][plane], axis=1)
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            assert abs(distance.mean() - radius_mm) < 0.5 * spacing.max()


@pytest.mark.parametrize("shape", [(24, 20, 1), (24, 1, 20), (1, 24, 20)])
def test_one_slice_is_one_panel(tmp_path, affine, shape):
    middle = [(n - 1) / 2 for n in shape]
    mask = ball(affine, middle, 4.0, shape)
    image = np.random.default_rng(0).normal(size=shape)
    figure = overlay_figure(image, affine, mask, seeds=make_seeds([at(affine, middle)], [True]))
    (axes,) = figure.axes
    ((x, y, fill),) = dots(axes, INSIDE)
    assert fill == INSIDE
    path = np.concatenate(contours(axes, MASK))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    assert abs(np.linalg.norm(path - (x, y), axis=1).mean() - 4.0) < 0.5 * spacing.max()
    draw_overlay(tmp_path / "a.png", image, affine, mask)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_empty_masks_and_no_seeds_can_be_drawn(tmp_path, affine):
    image = np.random.default_rng(0).normal(size=SHAPE)
    draw_overlay(tmp_path / "a.png", image, affine, np.zeros(SHAPE, bool))
    draw_overlay(tmp_path / "b.png", np.zeros(SHAPE), affine, np.ones(SHAPE, bool))
    assert "empty mask" in overlay_figure(image, affine, np.zeros(SHAPE)).get_suptitle()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(InputError, match="the mask has 3 x 3 x 3 voxels and the image 16 x 14 x 12"):
        draw_overlay(tmp_path / "c.png", image, affine, np.zeros((3, 3, 3)))
    assert len(list(tmp_path.iterdir())) == 2


def part(text, name):
    return re.search(rf'<script type="[^"]*" id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def embedded(text, name):
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(part(text, name))))


def test_page_holds_image_mask_and_seeds(tmp_path, affine):
    mask = ball(affine, (8, 7, 6), 4.0)
    positions = np.array([at(affine, (8, 7, 6)), at(affine, (1, 1, 1)), at(affine, (9, 7, 6))])
    seeds = make_seeds(positions, [True, False, True])
    image = np.random.default_rng(0).normal(size=SHAPE)
    write_overlay_page(tmp_path / "a.html", image, affine, mask, seeds=seeds, user_count=2, title="<case>")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    shown, overlay = embedded(text, "volume"), embedded(text, "mask")
    assert shown.shape == overlay.shape
    np.testing.assert_allclose(shown.affine, overlay.affine)
    # the mask is where the object is, also where it was resampled to patient axes
    inside = np.argwhere(np.asarray(overlay.dataobj) == 1) @ overlay.affine[:3, :3].T + overlay.affine[:3, 3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(inside.mean(0), positions[0], atol=0.35 * spacing.max())
    volume = len(inside) * np.abs(np.linalg.det(overlay.affine))
    assert volume == pytest.approx(mask.sum() * np.abs(np.linalg.det(affine)), rel=0.15)
    scene = json.loads(part(text, "scene"))
    assert [point["foreground"] for point in scene["points"]] == [True, False, True]
    np.testing.assert_allclose([point["ras"] for point in scene["points"]], positions, atol=1e-4)
    assert np.linalg.norm(np.subtract(scene["start"], positions[0])) < 0.5 * spacing.max()
    rows = re.findall(r'<tr tabindex="0">.*?</tr>', text)
    assert [re.findall(r"<td[^>]*>(.*?)</td>", row)[-1] for row in rows] == ["user", "user", "agent, step 1"]
    assert 'class="background">background' in rows[1]
    assert "<h1>&lt;case&gt;</h1>" in text
    assert "3 seeds" in text
    assert text.lower().count("</script") == 5  # volume, mask, scene, viewer, page
    assert not list(tmp_path.glob(".part*"))


def test_page_of_a_slice_is_not_resampled(tmp_path, affine):
    image = np.random.default_rng(0).normal(size=(16, 14, 1))
    write_overlay_page(tmp_path / "a.html", image, affine, image > 1)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert embedded(text, "volume").shape == (16, 14, 1)
    np.testing.assert_array_equal(np.asarray(embedded(text, "mask").dataobj), image > 1)
    assert "resampled for display" not in text
