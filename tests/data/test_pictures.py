"""Pictures: what is drawn lies where the patient has it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.pictures import PLANES, draw_curve, draw_landmarks, landmark_figure
from medrl.data.planes import as_volume, cut_plane
from medrl.geometry.grids import bounding_box
from medrl.types import MISSING, NOT_CONVERGED, InputError, Landmark

pytest.importorskip("matplotlib")

SHAPE = (20, 26, 14)
SLOPE = np.array([2.0, -3.0, 5.0])  # of a volume that is linear in RAS mm, which trilinear sampling keeps exactly


def oblique_matrix() -> np.ndarray:
    """A flipped (LAS), turned and anisotropic matrix."""
    a, b = 0.35, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ tilt @ np.diag([-1.0, 1.2, 2.5])
    matrix[:3, 3] = (31.0, -12.0, 7.0)
    return matrix


def ras_of_voxels(matrix: np.ndarray) -> np.ndarray:
    """RAS mm (X, Y, Z, 3) of all voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def linear_volume(matrix: np.ndarray) -> np.ndarray:
    return (ras_of_voxels(matrix) @ SLOPE + 1000).astype(np.float32)


def middle(matrix: np.ndarray) -> np.ndarray:
    return matrix[:3, :3] @ (np.array(SHAPE) / 2 - 0.3) + matrix[:3, 3]


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(("across", "up"), [(0, 1), (0, 2), (1, 2)])
def test_every_sample_of_a_plane_is_the_image_at_its_place(across: int, up: int) -> None:
    matrix, point = oblique_matrix(), middle(oblique_matrix())
    volume, ras_from_voxel = as_volume(linear_volume(matrix), matrix)
    box = bounding_box(ras_from_voxel, SHAPE, torch.eye(4).double())
    values, extent = cut_plane(volume, ras_from_voxel, point, across, up, box, 0.7)
    assert (extent[1] - extent[0]) / values.shape[1] == pytest.approx(0.7)
    assert (extent[3] - extent[2]) / values.shape[0] == pytest.approx(0.7)
    places = np.tile(point, (*values.shape, 1))
    places[..., across] = extent[0] + 0.7 * (np.arange(values.shape[1]) + 0.5)
    places[..., up] = (extent[2] + 0.7 * (np.arange(values.shape[0]) + 0.5))[:, None]
    voxels = (places - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    inner = ((voxels > 0) & (voxels < np.array(SHAPE) - 1)).all(-1)
    outer = ((voxels < -0.51) | (voxels > np.array(SHAPE) - 0.49)).any(-1)
    assert inner.sum() > 100
    assert np.isnan(values[outer]).all()
    np.testing.assert_allclose(values[inner], places[inner] @ SLOPE + 1000, atol=0.02)
    # one sample lies on the point itself
    i, j = round((point[up] - extent[2]) / 0.7 - 0.5), round((point[across] - extent[0]) / 0.7 - 0.5)
    np.testing.assert_allclose(places[i, j], point, atol=1e-9)


def test_panels_are_radiological_and_hold_the_point_the_path_and_the_truth() -> None:
    matrix, point = oblique_matrix(), middle(oblique_matrix())
    path = point + np.array([[6.0, 2.0, -3.0], [3.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    mark = Landmark("apex", tuple(point), uncertainty_mm=2.5, steps=3, path_mm=path)
    target = point + np.array([3.0, 4.0, 0.0])
    figure = landmark_figure(linear_volume(matrix)[None], matrix, [mark], truth={"apex": target}, title="case 7")
    assert len(figure.axes) == 3
    for axes, (_, across, up, letters) in zip(figure.axes, PLANES, strict=True):
        assert axes.get_xlim()[0] > axes.get_xlim()[1]  # right, or front, on the left
        assert axes.get_ylim()[0] < axes.get_ylim()[1]
        width, height = axes.get_position().size * figure.get_size_inches()
        assert width / np.ptp(axes.get_xlim()) == pytest.approx(height / np.ptp(axes.get_ylim()))  # square mm
        assert [text.get_text() for text in axes.texts][:4] == list(letters)
        assert axes.texts[0].get_position()[0] < 0.1 < 0.9 < axes.texts[1].get_position()[0]
        line, start, answer, truth = axes.lines[:4]
        np.testing.assert_allclose(line.get_xydata(), path[:, [across, up]])
        np.testing.assert_allclose(start.get_xydata()[0], path[0, [across, up]])
        np.testing.assert_allclose(answer.get_xydata()[0], point[[across, up]])
        np.testing.assert_allclose(truth.get_xydata()[0], target[[across, up]])
        assert axes.patches[0].get_radius() == 2.5
        left, right, low, high = axes.images[0].get_extent()
        values = axes.images[0].get_array()
        row = int((point[up] - low) / (high - low) * values.shape[0])
        column = int((point[across] - left) / (right - left) * values.shape[1])
        assert values[row, column] == pytest.approx(point @ SLOPE + 1000, abs=0.02)
    assert "error 5.0 mm" in texts(figure)
    assert "case 7" in texts(figure)


def test_the_point_is_painted_on_the_blob_of_an_oblique_volume(tmp_path: Path) -> None:
    from matplotlib.image import imread

    matrix, point = oblique_matrix(), middle(oblique_matrix())
    blob = np.exp(-((ras_of_voxels(matrix) - point) ** 2).sum(-1) / 2 / 2.0**2).astype(np.float32)
    draw_landmarks(tmp_path / "blob.png", blob, matrix, [Landmark("blob", tuple(point))], window=(0.0, 1.0))
    pixels = (imread(tmp_path / "blob.png")[..., :3] * 255).astype(int)
    orange = (abs(pixels - (255, 176, 0)) < 12).all(-1)
    orange[int(0.75 * len(orange)) :] = False  # the legend
    columns = np.flatnonzero(orange.any(0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1)
    assert len(groups) == 3
    for group in groups:
        rows = np.flatnonzero(orange[:, group].any(1))
        y, x = (rows[0] + rows[-1]) / 2, (group[0] + group[-1]) / 2
        around = np.mgrid[int(y) - 30 : int(y) + 31, int(x) - 30 : int(x) + 31]
        patch = pixels[around[0], around[1]]
        grey = np.where((np.ptp(patch, axis=-1) < 3) & (patch[..., 0] > 40), patch[..., 0], 0)
        centre = (around * grey).sum((1, 2)) / grey.sum()
        np.testing.assert_allclose(centre, (y, x), atol=1.5)  # pixels


def test_missing_landmarks_are_listed_and_unsure_ones_flagged() -> None:
    matrix, point = oblique_matrix(), tuple(middle(oblique_matrix()))
    marks = [Landmark("a", point, status=NOT_CONVERGED), Landmark("toe", (0.0, 0.0, 0.0), status=MISSING)]
    figure = landmark_figure(linear_volume(matrix), matrix, marks, truth={"a": np.full(3, np.nan)})
    assert len(figure.axes) == 3
    assert "Missing (outside the field of view): toe" in texts(figure)
    assert NOT_CONVERGED in texts(figure)
    assert "error" not in texts(figure)
    assert len(landmark_figure(linear_volume(matrix), matrix, marks[1:]).axes) == 0


def test_many_landmarks_share_one_page(tmp_path: Path) -> None:
    from matplotlib.image import imread

    matrix = oblique_matrix()
    marks = [Landmark(f"$p_{{{i}$ <{i}>", tuple(middle(matrix) + i * 0.05)) for i in range(45)]  # no mathtext
    figure = landmark_figure(linear_volume(matrix), matrix, marks)
    assert len(figure.axes) == 135
    assert min(axes.get_position().width * figure.get_figwidth() for axes in figure.axes) > 1.0  # inches
    draw_landmarks(tmp_path / "new" / "many.png", linear_volume(matrix), matrix, marks)
    height, width = imread(tmp_path / "new" / "many.png").shape[:2]
    assert width == 2000
    assert width < height < 5000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["many.png"]


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_constant_and_empty_images_are_drawn(tmp_path: Path, value: float) -> None:
    volume = np.full(SHAPE, value, np.float32)
    draw_landmarks(tmp_path / "flat.png", volume, np.eye(4), [Landmark("a", (3.0, 3.0, 3.0))])
    assert (tmp_path / "flat.png").stat().st_size > 1000


def test_image_may_be_a_meta_tensor_or_a_mapped_array() -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    array.flags.writeable = False
    volume, matrix = as_volume(array[::-1], np.eye(4))
    assert volume.tolist() == array[::-1].tolist()
    same, _ = as_volume(MetaTensor(volume[None].float()), torch.eye(4))
    assert type(same) is torch.Tensor
    assert torch.equal(same, volume.float())
    assert matrix.dtype == torch.float64


@pytest.mark.parametrize(
    ("image", "matrix", "marks", "window", "message"),
    [
        (np.zeros((2, 4, 4, 4)), np.eye(4), [], None, r"shape \(2, 4, 4, 4\), expected"),
        (np.zeros((4, 4)), np.eye(4), [], None, r"shape \(4, 4\), expected"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), [], None, "invertible"),
        (np.zeros((4, 4, 4)), np.eye(3), [], None, "invertible"),
        (np.zeros((4, 4, 4)), np.eye(4), [Landmark("a", (np.nan, 0.0, 0.0))], None, "landmark a has no finite"),
        (np.zeros((4, 4, 4)), np.eye(4), [], (1.0, 1.0), "low < high"),
    ],
)
def test_wrong_inputs_are_told_in_one_line(tmp_path: Path, image, matrix, marks, window, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        draw_landmarks(tmp_path / "x.png", image, matrix, marks, window=window)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'medrl\[viz\]'"):
        draw_landmarks(tmp_path / "x.png", np.zeros((4, 4, 4)), np.eye(4), [])
    with pytest.raises(InputError, match=r"pip install 'medrl\[viz\]'"):
        draw_curve(tmp_path / "x.png", {"a": [(0, 1)]}, "x", "y")


def test_curve_is_written_and_an_empty_one_refused(tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw_curve(tmp_path / "c.png", {"seed_0 $": [(0, 30.0), (100, 4.0)], "none": [], "_b": [(0, 2.0)]}, "steps", "mm")
    pixels = imread(tmp_path / "c.png")[..., :3]
    assert pixels.shape == (630, 1050, 3)
    assert (abs(pixels - np.array([0x1F, 0x77, 0xB4]) / 255) < 0.02).all(-1).sum() > 500  # the first line
    with pytest.raises(InputError, match="no points to draw"):
        draw_curve(tmp_path / "d.png", {"seed 0": []}, "steps", "mm")
