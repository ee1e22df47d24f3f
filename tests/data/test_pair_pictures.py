"""Pictures and pages of a registration show the right places."""

from __future__ import annotations

import base64
import gzip
import json
import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.pair_page import write_pair_page
from medrl.data.pair_phantoms import pair_phantom
from medrl.data.pair_pictures import draw_pair, middle_of_pair, pair_figure
from medrl.geometry.transforms import from_parameters, invert, transform_points
from medrl.types import NOT_CONVERGED, Registration

EYE = torch.eye(4, dtype=torch.float64)


def as_image(voxels, affine):
    return MetaTensor(torch.as_tensor(voxels).float()[None], affine=torch.as_tensor(affine))


@pytest.fixture(scope="module")
def example():
    """Fixed image, moving image with a moved header, the right answer."""
    drawn = pair_phantom(np.random.default_rng(2), shape=(24, 22, 20), spacing_mm=8.0)
    fixed = as_image(drawn.ct, drawn.ct_affine)
    parameters = torch.tensor([[0.2, -0.3, 0.1, 0.05, 25.0, -10.0, 15.0]], dtype=torch.float64)
    matrix = from_parameters(parameters, torch.as_tensor(drawn.ct_affine[:3, 3]))[0]
    return fixed, as_image(drawn.mr, matrix.numpy() @ drawn.mr_affine), Registration(matrix, 0.75)


def embedded(path):
    """The scene and the volumes of a page."""
    text = path.read_text()

    def content(name):
        return re.search(rf'id="{name}">([^<]*)</script>', text).group(1)

    scene = json.loads(content("scene"))
    raw = {name: gzip.decompress(base64.b64decode(content(name))) for name in ("fixed", "after", "before")}
    return scene, {name: np.frombuffer(part, np.uint8).reshape(scene["shape"]) for name, part in raw.items()}


def test_page(example, tmp_path):
    fixed, moving, answer = example
    write_pair_page(tmp_path / "a.html", fixed, moving, answer, title="<case> & 1")
    text = (tmp_path / "a.html").read_text()
    assert "<h1>&lt;case&gt; &amp; 1</h1>" in text
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "confidence 0.75, scale 1.051" in text
    assert f"{answer.moving_from_fixed[0, 3]:.5f}" in text
    scene, volumes = embedded(tmp_path / "a.html")
    assert all(0 < start < side for start, side in zip(scene["start"], scene["shape"], strict=True))
    # voxel by voxel, the page holds what lies at that place in each image
    index = torch.as_tensor(np.random.default_rng(0).integers(0, scene["shape"], (2000, 3)))
    world = index.double() * scene["step_mm"] + torch.tensor(scene["origin_mm"], dtype=torch.float64)
    for name, image, matrix in (
        ("fixed", fixed, EYE), ("after", moving, answer.moving_from_fixed), ("before", moving, EYE)
    ):  # fmt: skip
        place = transform_points(invert(torch.as_tensor(image.affine)) @ matrix, world)
        size = torch.tensor(image.shape[1:])
        inside = ((place > -0.45) & (place < size - 0.55)).all(1)
        outside = ((place < -0.55) | (place > size - 0.45)).any(1)
        shown = volumes[name][tuple(index.T.numpy())]
        assert inside.sum() > 100, name
        assert (shown[inside.numpy()] > 0).all(), name
        assert (shown[outside.numpy()] == 0).all(), name
        nearest = torch.minimum(place[inside].round().long().clamp(min=0), size - 1)
        assert np.corrcoef(image[0].numpy()[tuple(nearest.T.numpy())], shown[inside.numpy()])[0, 1] > 0.8, name


def test_large_images_are_thinned(monkeypatch, example, tmp_path):
    monkeypatch.setattr("medrl.data.pair_page.LARGEST", 1000)
    write_pair_page(tmp_path / "a.html", *example)
    scene, _ = embedded(tmp_path / "a.html")
    assert np.prod(scene["shape"]) < 1500


def test_picture(example, tmp_path):
    fixed, moving, answer = example
    draw_pair(tmp_path / "a.png", fixed, moving, answer, title="a")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    figure = pair_figure(fixed, moving, Registration(answer.moving_from_fixed, 0.25, NOT_CONVERGED), title="a")
    assert figure.get_suptitle() == "a   not converged, confidence 0.25, scale 1.051"
    assert [axes.get_ylabel().split(":")[0] for axes in figure.axes[::3]] == ["before", "after", "after"]
    far = EYE.clone()
    far[:3, 3] = 1e4
    pair_figure(fixed, moving, Registration(far, 0.0))  # nothing of the moving image is there to be drawn


def test_contours_lie_on_the_fixed_body(example):
    """After the registration the outer contour has the middle of the body; before, it has not."""
    fixed, moving, answer = example
    figure = pair_figure(fixed, moving, answer)
    right = pair_figure(fixed, as_image(moving[0].numpy(), invert(answer.moving_from_fixed) @ moving.affine),
                        Registration(EYE, 1.0))  # fmt: skip

    def contour(axes):
        return np.concatenate([path.vertices for path in axes.collections[0].get_paths()]).mean(0)

    for column in range(3):
        before, after, expected = (
            contour(part) for part in (figure.axes[column], figure.axes[3 + column], right.axes[column])
        )
        np.testing.assert_allclose(after, expected, atol=1e-3)
        assert np.linalg.norm(before - expected) > 4.0


def test_middle_of_what_both_images_show(example):
    fixed, moving, answer = example
    middle = middle_of_pair(fixed, moving, answer.moving_from_fixed)
    whole = middle_of_pair(fixed, fixed, EYE)
    assert np.linalg.norm(middle - whole) < 25.0
    far = EYE.clone()
    far[:3, 3] = 1e4
    np.testing.assert_allclose(middle_of_pair(fixed, moving, far), whole)
