"""Transform files of ITK (.tfm), as SimpleITK, ANTs and 3D Slicer read them, <-> matrices in RAS mm.

An ITK registration transform maps points of the fixed image to points of the moving image, in LPS mm: it is
``moving_from_fixed``, and resampling the moving image through it lays it on the fixed one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medrl.data.write import whole_file
from medrl.types import InputError

FAR_MM = 1000.0  # distance of the points from which a linear transform is read


def write_transform(path: Path | str, moving_from_fixed: Any) -> None:
    """Write a matrix in RAS mm, (4, 4) or in the plane (3, 3), as an ITK affine transform in LPS mm, to the last digit.

    Raises:
        InputError: another shape, numbers that are not finite, or a matrix that cannot be inverted.
    """
    matrix = torch.as_tensor(moving_from_fixed).detach().cpu().double().numpy()
    if matrix.shape not in ((3, 3), (4, 4)) or not np.isfinite(matrix).all() or np.linalg.det(matrix[:-1, :-1]) == 0:
        raise InputError(f"{Path(path).name}: expected an invertible matrix (4, 4) or (3, 3) of finite numbers")
    axes = len(matrix) - 1
    flip = _flip(axes)
    lps = flip @ matrix @ flip
    numbers = " ".join(repr(float(value) + 0.0) for value in [*lps[:axes, :axes].ravel(), *lps[:axes, axes]])
    lines = [
        "#Insight Transform File V1.0",
        "#Transform 0",
        f"Transform: AffineTransform_double_{axes}_{axes}",
        f"Parameters: {numbers}",
        f"FixedParameters: {' '.join('0' * axes)}",
    ]
    with whole_file(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="ascii")


def read_transform(path: Path | str) -> Tensor:
    """Read a linear ITK transform of any kind (rigid, similarity, affine, a chain of those) as a matrix in RAS mm.

    Returns:
        ``moving_from_fixed``, float64, (4, 4), or (3, 3) for a transform in the plane.

    Raises:
        InputError: missing or unreadable file, or a transform that is not linear.
    """
    import SimpleITK

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name}: no such file; expected an ITK transform (.tfm)")
    try:
        transform = SimpleITK.ReadTransform(str(path))
    except RuntimeError:
        raise InputError(f"{path.name}: cannot be read; expected an ITK transform (.tfm)") from None
    if not transform.IsLinear():
        raise InputError(f"{path.name}: the transform is not linear; expected a rigid, similarity or affine transform")
    axes = transform.GetDimension()
    start = np.array(transform.TransformPoint((0.0,) * axes))
    ends = [np.array(transform.TransformPoint(tuple(point))) for point in (FAR_MM * np.eye(axes)).tolist()]
    lps = np.eye(axes + 1)
    lps[:axes, :axes] = (np.stack(ends, 1) - start[:, None]) / FAR_MM
    lps[:axes, axes] = start
    if not np.isfinite(lps).all():
        raise InputError(f"{path.name}: the transform holds numbers that are not finite; register again")
    return torch.as_tensor(_flip(axes) @ lps @ _flip(axes))


def _flip(axes: int) -> np.ndarray:
    """LPS from RAS, and back."""
    return np.diag([-1.0, -1.0, *[1.0] * (axes - 1)])
