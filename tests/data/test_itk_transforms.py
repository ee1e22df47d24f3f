"""ITK transform files: every digit comes back, and ITK maps points as the matrix does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrl.data.itk_transforms import read_transform, write_transform
from medrl.geometry.transforms import from_parameters, transform_points
from medrl.types import InputError


@pytest.fixture
def matrices(generator):
    parameters = generator.normal(size=(20, 7)) * [1, 1, 1, 0.2, 80, 80, 80]
    return from_parameters(torch.as_tensor(parameters), torch.as_tensor(generator.normal(size=(20, 3)) * 300))


def test_round_trip(tmp_path, matrices, generator):
    points = torch.as_tensor(generator.uniform(-500, 500, (50, 3)))
    for matrix in matrices:
        write_transform(tmp_path / "a.tfm", matrix)
        back = read_transform(tmp_path / "a.tfm")
        assert back.dtype == torch.float64
        gap_mm = (transform_points(back, points) - transform_points(matrix, points)).abs().max()
        assert float(gap_mm) < 1e-9


def test_itk_maps_the_same_points(tmp_path, matrices, generator):
    simpleitk = pytest.importorskip("SimpleITK")
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    for number, matrix in enumerate(matrices):
        path = tmp_path / f"{number}.tfm"
        write_transform(path, matrix)
        transform = simpleitk.ReadTransform(str(path))
        assert transform.GetName() == "AffineTransform"
        points = torch.as_tensor(generator.uniform(-500, 500, (10, 3)))
        found = [transform.TransformPoint(point) for point in (points * flip).tolist()]
        expected = transform_points(matrix, points) * flip
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-9)


def test_transforms_of_other_programs(tmp_path):
    simpleitk = pytest.importorskip("SimpleITK")
    euler = simpleitk.Euler3DTransform((10.0, 20.0, 30.0), 0.0, 0.0, np.pi / 2, (1.0, 2.0, 3.0))
    size = simpleitk.ScaleTransform(3, (2.0, 2.0, 2.0))
    simpleitk.WriteTransform(simpleitk.CompositeTransform([euler, size]), str(tmp_path / "chain.tfm"))
    found = transform_points(read_transform(tmp_path / "chain.tfm"), torch.tensor([[-11.0, -20.0, 30.0]]).double())
    # LPS (11, 20, 30) is doubled (22, 40, 60), turned by 90 degrees about (10, 20, 30), (-10, 32, 60), and shifted
    np.testing.assert_allclose(found.numpy(), [[9.0, -34.0, 63.0]], atol=1e-9)


def test_plane(tmp_path):
    simpleitk = pytest.importorskip("SimpleITK")
    matrix = torch.tensor([[0.0, -1.5, 4.0], [1.5, 0.0, -5.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    write_transform(tmp_path / "plane.tfm", matrix)
    torch.testing.assert_close(read_transform(tmp_path / "plane.tfm"), matrix, rtol=0, atol=1e-12)
    transform = simpleitk.ReadTransform(str(tmp_path / "plane.tfm"))
    assert transform.TransformPoint((-2.0, -3.0)) == pytest.approx((0.5, 2.0))  # RAS (2, 3) -> (-0.5, -2)


@pytest.mark.parametrize("matrix", [np.eye(2), np.full((4, 4), np.nan), np.zeros((4, 4))])
def test_bad_matrices_are_not_written(tmp_path, matrix):
    with pytest.raises(InputError, match="invertible matrix"):
        write_transform(tmp_path / "bad.tfm", matrix)
    assert not list(tmp_path.iterdir())


def test_bad_files(tmp_path):
    simpleitk = pytest.importorskip("SimpleITK")
    (tmp_path / "text.tfm").write_text("no transform")
    bspline = simpleitk.BSplineTransformInitializer(simpleitk.Image((8, 8, 8), simpleitk.sitkFloat32), (2, 2, 2))
    simpleitk.WriteTransform(bspline, str(tmp_path / "warp.tfm"))
    for name, words in (("none.tfm", "no such file"), ("text.tfm", "cannot be read"), ("warp.tfm", "not linear")):
        with pytest.raises(InputError, match=words) as caught:
            read_transform(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(name)
