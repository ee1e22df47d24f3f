"""The page: one file, nothing fetched, everything at its place."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medrl.data import page
from medrl.data.page import write_page
from medrl.types import MISSING, NOT_CONVERGED, InputError, Landmark

SHAPE = (14, 22, 18)
SLOPE = np.array([2.0, -3.0, 5.0])
STORED = np.array([[0, -1.1, 0, 30], [0, 0, 2.5, -9], [-0.8, 0, 0, 4], [0, 0, 0, 1.0]])  # turned axes, left-handed


def oblique_matrix() -> np.ndarray:
    a = 0.35
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    matrix = STORED.copy()
    matrix[:3, :3] = turn @ STORED[:3, :3]
    return matrix


def at_voxels(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (index @ matrix[:3, :3].T + matrix[:3, 3]) @ SLOPE


def part(text: str, name: str) -> str:
    return re.search(rf'<script type="[^"]*" id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def embedded(text: str) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(part(text, "volume"))))


def write(folder: Path, image, matrix, marks=(), **options) -> str:
    write_page(folder / "page.html", image, matrix, marks, **options)
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    return (folder / "page.html").read_text(encoding="utf-8")


def test_volume_keeps_geometry_and_intensities(tmp_path: Path) -> None:
    truth = at_voxels(STORED, SHAPE)
    image = embedded(write(tmp_path, truth[None].astype(np.float32), STORED))
    np.testing.assert_allclose(image.affine, STORED, atol=1e-5)
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"
    low, high = np.quantile(truth, [0.001, 0.999])
    np.testing.assert_allclose(image.get_fdata(), truth.clip(low, high), atol=0.52 * (high - low) / 255)


def test_oblique_volume_is_shown_in_patient_axes(tmp_path: Path) -> None:
    matrix = oblique_matrix()
    volume = at_voxels(matrix, SHAPE)
    image = embedded(write(tmp_path, volume.astype(np.float32), matrix))
    np.testing.assert_allclose(image.affine[:3, :3], 0.8 * np.eye(3), atol=1e-6)
    ras = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1) * 0.8 + image.affine[:3, 3]
    voxels = (ras - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    inner = ((voxels > 0) & (voxels < np.array(SHAPE) - 1)).all(-1)
    low, high = np.quantile(volume, [0.001, 0.999])
    assert inner.sum() > volume.size
    np.testing.assert_allclose(image.get_fdata()[inner], (ras @ SLOPE)[inner].clip(low, high), atol=0.02 * (high - low))
    outer = ((voxels < -0.51) | (voxels > np.array(SHAPE) - 0.49)).any(-1)
    assert (image.dataobj.get_unscaled()[outer] == 0).all()
    # the grid covers every voxel of the image
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in SHAPE])).reshape(3, -1).T @ matrix[:3, :3].T + matrix[:3, 3]
    assert (corners.min(0) >= image.affine[:3, 3] - 0.4).all()
    assert (corners.max(0) <= image.affine[:3, 3] + 0.8 * (np.array(image.shape) - 0.5)).all()


@pytest.mark.parametrize("matrix", [STORED, oblique_matrix()], ids=["stored", "oblique"])
def test_large_volume_is_reduced_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: np.ndarray) -> None:
    monkeypatch.setattr(page, "LARGEST", 1500)
    volume = at_voxels(matrix, SHAPE)
    text = write(tmp_path, volume.astype(np.float32), matrix)
    image = embedded(text)
    assert np.prod(image.shape) < 2500
    assert "resampled for display" in text
    index = np.array(image.shape) // 2
    expected = (image.affine[:3, :3] @ index + image.affine[:3, 3]) @ SLOPE
    assert image.get_fdata()[tuple(index)] == pytest.approx(expected, abs=0.01 * np.ptp(volume))


def test_nothing_is_fetched_from_a_network(tmp_path: Path) -> None:
    text = write(tmp_path, np.zeros(SHAPE), STORED)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")  # the browser enforces it
    assert "http" not in policy
    assert "*" not in policy
    ours = text.replace(gzip.decompress((files("medrl.data") / "niivue/niivue.umd.js.gz").read_bytes()).decode(), "")
    assert len(text) - len(ours) > 2_000_000  # the viewer is inside
    assert not re.search(r"(src|href|url|import|fetch)\s*[=(]", ours)
    assert re.findall(r"https?://[^\s*]*", ours) == ["https://github.com/niivue/niivue"]  # where the viewer comes from
    assert "Redistribution and use in source and binary forms" in ours


def test_viewer_may_stand_inside_a_script_element() -> None:
    folder = files("medrl.data") / "niivue"
    viewer = gzip.decompress((folder / "niivue.umd.js.gz").read_bytes()).decode()
    assert "</script" not in viewer.lower()
    assert "<!--" not in viewer
    assert page.VERSION in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "THIRD_PARTY_LICENSES.txt").is_file()


def test_table_and_points(tmp_path: Path) -> None:
    waiting = np.repeat(np.cumsum(np.ones((300, 3)), 0), 2, axis=0)
    marks = [
        Landmark("apex", (1.25, -20.0, 3.0), uncertainty_mm=1.5, presence=0.9, steps=600, path_mm=waiting),
        Landmark("toe", (0.0, 0.0, 0.0), status=MISSING, presence=0.04, steps=12),
        Landmark("tip", (0.0, 2.0, 3.0), status=NOT_CONVERGED),
    ]
    text = write(tmp_path, np.zeros(SHAPE), STORED, marks, window=(-3.0, 9.0))
    scene = json.loads(part(text, "scene"))
    assert [point["ras"] for point in scene["points"]] == [[1.25, -20.0, 3.0], [0.0, 2.0, 3.0]]
    assert [point["found"] for point in scene["points"]] == [True, False]
    assert scene["window"] == [-3.0, 9.0]
    (path,) = scene["paths"]
    assert len(path) == 100
    assert (path[0], path[-1]) == ([1.0, 1.0, 1.0], [300.0, 300.0, 300.0])
    rows = re.findall(r"<tr[ >].*?</tr>", text)[-3:]
    assert [row.startswith('<tr tabindex="0">') for row in rows] == [True, False, True]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells[0] == ["apex", "found", "1.2, -20.0, 3.0<br><i>-1.2, 20.0, 3.0</i>", "1.5", "0.90", "600"]
    assert cells[1] == ["toe", "missing", "", "", "0.04", "12"]
    assert cells[2][2] == "0.0, 2.0, 3.0<br><i>0.0, -2.0, 3.0</i>"  # no minus zero
    assert "2 of 3 landmarks present" in text


def test_labels_and_title_are_escaped(tmp_path: Path) -> None:
    label = "</script><script>alert('$x')</script>&\""
    text = write(tmp_path, np.zeros(SHAPE), STORED, [Landmark(label, (0.0, 0.0, 0.0))], title="<b>$title</b>")
    assert "alert('$x')</script>" not in text
    assert f"<td>{html.escape(label)}</td>" in text
    assert "<h1>&lt;b&gt;$title&lt;/b&gt;</h1>" in text
    assert json.loads(part(text, "scene"))["points"][0]["label"] == label
    assert text.lower().count("</script") == 4  # volume, scene, viewer, page


def test_wrong_inputs_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="landmark a has no finite position"):
        write_page(tmp_path / "x.html", np.zeros(SHAPE), STORED, [Landmark("a", (np.inf, 0.0, 0.0))])
    with pytest.raises(InputError, match="expected"):
        write_page(tmp_path / "x.html", np.zeros((3, *SHAPE)), STORED, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_constant_and_empty_images_are_embedded(tmp_path: Path, value: float) -> None:
    image = embedded(write(tmp_path, np.full(SHAPE, value), STORED))
    assert image.get_fdata().max() == (0.0 if np.isnan(value) else 5.0)
