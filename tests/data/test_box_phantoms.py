"""Procedural pictures and organ volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medrl.data.box_files import load_box_cases, read_box_dataset
from medrl.data.box_phantoms import draw_box_cases, draw_organ, draw_picture, write_organ_volumes
from medrl.geometry.boxes import iou_matrix


def test_pictures_repeat_and_hold_what_was_asked_for():
    first, boxes = draw_picture(np.random.default_rng(3), targets=2)
    again, _ = draw_picture(np.random.default_rng(3), targets=2)
    other, _ = draw_picture(np.random.default_rng(4), targets=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (64, 64)
    assert first.min() >= 1
    assert boxes.shape == (2, 4)
    assert draw_picture(np.random.default_rng(0), targets=0)[1].shape == (0, 4)


def test_targets_have_the_sizes_of_the_level_and_hardly_overlap():
    cases = draw_box_cases(60, np.random.default_rng(0))
    assert cases.present.sum(1).tolist() == [0, 1, 1, 1, 2, 3] * 10
    boxes = cases.boxes[cases.present]
    sides = (boxes[:, 2:] - boxes[:, :2]) / 64
    assert float(sides.min()) >= 0.0999
    assert float(sides.max()) <= 0.6001
    assert float(sides.max()) > 0.45
    assert float(sides.min()) < 0.15
    for row in torch.arange(60)[cases.present.sum(1) > 1].tolist():
        own = cases.boxes[row][cases.present[row]]
        assert float((iou_matrix(own, own) - torch.eye(len(own))).max()) < 0.16


def test_brightness_does_not_tell_targets():
    generator, inside, outside = np.random.default_rng(0), [], []
    for _ in range(60):
        picture, boxes = draw_picture(generator)
        x1, y1, x2, y2 = boxes[0].round().astype(int)
        inside.append(picture[y1:y2, x1:x2].mean())
        outside.append(picture.mean())
    assert abs(np.mean(inside) - np.mean(outside)) < 12


@pytest.mark.parametrize("organ", ["liver", "kidney_L"])
def test_the_box_of_an_organ_fits_its_voxels(organ):
    generator = np.random.default_rng(1)
    volume, matrix, box = draw_organ(generator, organ=organ, side=48, spacing_mm=4.0)
    voxel = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    world = voxel @ matrix[:3, :3].T + matrix[:3, 3]
    inside = ((world >= box[:3]) & (world <= box[3:])).all(-1)
    level = {"liver": 120, "kidney_L": 210}[organ]
    like = abs(volume - level) < 35
    assert like[inside].mean() > 0.3  # an ellipsoid fills half of its box
    grown = ((world >= box[:3] - 8) & (world <= box[3:] + 8)).all(-1) & ~inside
    assert like[grown].mean() < 0.1


def test_volumes_become_cases(tmp_path):
    write_organ_volumes(tmp_path, 5, np.random.default_rng(0), side=20, spacing_mm=10.0, validation=0.2, test=0.2)
    assert json.loads((tmp_path / "dataset.json").read_text())["classes"] == ["liver"]
    cases = load_box_cases(read_box_dataset(tmp_path, "training"), longest=20, window=(-200.0, 300.0))
    assert cases.images.shape == (3, 1, 20, 20, 20)
    entries = read_box_dataset(tmp_path, "training")
    for row, entry in enumerate(entries):
        torch.testing.assert_close(
            cases.in_file(torch.tensor([row]), cases.boxes[row]).double(), entry["boxes"], atol=1e-2, rtol=0
        )
