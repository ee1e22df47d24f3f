"""Pictures of a registration: the moving image against the fixed one, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.body import find_body, tissue_threshold
from medrl.data.pictures import PLANES, letter_panel, new_figure, save_figure
from medrl.data.planes import as_volume, cut_plane, display_window, finite_quantiles
from medrl.data.regions import CT_WINDOW, is_ct
from medrl.geometry.grids import bounding_box, spacing_of
from medrl.geometry.transforms import invert, resample, transform_points
from medrl.types import CONVERGED, Registration

BEFORE, AFTER = "#ff5c5c", "#00e08a"
SQUARES = 8  # of the checkerboard, along the longer side of a panel
BRIGHT = 0.75  # quantile of the tissue at which a second contour lies
FINEST = 400  # pixels along the longest side


class Shown(NamedTuple):
    """An image of a pair as it is drawn."""

    volume: Tensor  # (X, Y, Z)
    matrix: Tensor  # (4, 4) float64: fixed RAS mm from voxel
    window: tuple[float, float]
    levels: tuple[float, float]  # of the contours


def draw_pair(
    path: str | Path, fixed: MetaTensor, moving: MetaTensor, registration: Registration, *, title: str = ""
) -> None:
    """Write a PNG with three cuts in patient axes through the middle of the body that both images show.

    Above, contours of the moving image on the fixed one, as the headers say and as registered; below, both as a
    checkerboard.  ``fixed`` and ``moving`` are (1, X, Y, Z).  Raises InputError if matplotlib is not installed.
    """
    save_figure(path, pair_figure(fixed, moving, registration, title=title))


def pair_figure(fixed: MetaTensor, moving: MetaTensor, registration: Registration, *, title: str = "") -> Any:
    """Lay out the figure that `draw_pair` writes; returns a ``matplotlib.figure.Figure``."""
    ground, before = shown_image(fixed), shown_image(moving)
    fixed_from_moving = invert(registration.moving_from_fixed.double().cpu())
    after = before._replace(matrix=fixed_from_moving @ before.matrix)
    middle = middle_of_pair(fixed, moving, registration.moving_from_fixed)
    corners = bounding_box(ground.matrix, tuple(ground.volume.shape), torch.eye(4).double())
    box = tuple(corner.numpy() for corner in corners)
    step_mm = max(float(spacing_of(ground.matrix).min()), float((box[1] - box[0]).max()) / FINEST)
    sides = box[1] - box[0]
    widths, heights = [sides[plane[1]] for plane in PLANES], [sides[plane[2]] for plane in PLANES]
    inch = min(12.0 / sum(widths), 4.0 / max(heights))  # per mm
    width, height = max(6.0, inch * sum(widths) + 1.0), 3 * inch * max(heights) + 1.8
    figure = new_figure(width, height, dpi=100, layout="constrained")
    rows = figure.subplots(3, len(PLANES), width_ratios=widths, squeeze=False)
    for column, plane in enumerate(PLANES):
        cuts = [_cut(image, middle, plane, box, step_mm) for image in (ground, before, after)]
        for row, (shown, colour) in enumerate(((before, BEFORE), (after, AFTER))):
            _draw(rows[row][column], plane, *cuts[0], ground.window)
            _draw_contours(rows[row][column], *cuts[row + 1], shown.levels, colour)
        values = _checkerboard(_scaled(cuts[0][0], ground.window), _scaled(cuts[2][0], after.window))
        _draw(rows[2][column], plane, values, cuts[0][1], (0.0, 1.0))
    names = ("before: contours of the moving image", "after: the same", "after: checkerboard")
    for axes, name in zip(rows[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=9)
    figure.suptitle(
        f"{title}   {summary_of(registration)}".strip(),
        parse_math=False, x=0.01, ha="left", fontsize=11, weight="bold",
    )  # fmt: skip
    return figure


def summary_of(registration: Registration) -> str:
    """A few words on a registration, for the heads of pictures and pages."""
    words = f"confidence {registration.confidence:.2f}, scale {registration.scale:.3f}"
    return words if registration.status == CONVERGED else f"{registration.status}, {words}"


def middle_of_pair(fixed: MetaTensor, moving: MetaTensor, moving_from_fixed: Tensor) -> np.ndarray:
    """Middle (3,) in fixed RAS mm of the body as far as the registered moving image shows it, or else of all of it."""
    ground, other = shown_image(fixed), shown_image(moving)
    shape = tuple(ground.volume.shape)
    seen = resample(other.volume, other.matrix, moving_from_fixed, shape, ground.matrix).isfinite().numpy()
    body = find_body(fixed)
    for inside in (body & seen, body, np.ones(shape, bool)):
        if inside.any():
            break
    return transform_points(ground.matrix, torch.as_tensor(np.argwhere(inside).mean(0))[None])[0].numpy()


def shown_image(image: MetaTensor) -> Shown:
    """An image (1, X, Y, Z) with what is needed to draw it: a CT in the window of soft tissue."""
    volume, matrix = as_volume(image, image.affine)
    level = tissue_threshold(image)
    tissue = volume[volume > level]
    bright = finite_quantiles(tissue, BRIGHT)[0] if tissue.numel() else level
    window = CT_WINDOW if is_ct(volume) else display_window(volume)
    return Shown(volume.float(), matrix, window, (level, bright))


def _cut(image: Shown, middle: np.ndarray, plane: tuple, box: tuple, step_mm: float) -> tuple[np.ndarray, tuple]:
    return cut_plane(image.volume, image.matrix, middle, plane[1], plane[2], box, step_mm)


def _draw(axes: Any, plane: tuple, values: np.ndarray, extent: tuple, window: tuple[float, float]) -> None:
    left, right, low, high = extent
    axes.imshow(values, origin="lower", extent=extent, cmap="gray", vmin=window[0], vmax=window[1], aspect="equal")
    axes.set(xlim=(right, left), ylim=(low, high), xticks=[], yticks=[], facecolor="black")  # radiological convention
    letter_panel(axes, plane[3])


def _draw_contours(axes: Any, values: np.ndarray, extent: tuple, levels: tuple[float, float], colour: str) -> None:
    from scipy.ndimage import gaussian_filter

    seen = np.isfinite(values)
    if not seen.any():
        return
    left, right, low, high = extent
    rows, columns = values.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = low + (np.arange(rows) + 0.5) * (high - low) / rows
    smooth = gaussian_filter(np.where(seen, values, values[seen].min()), 1.0)
    for level, width in zip(levels, (1.4, 0.7), strict=True):
        if smooth.min() < level < smooth.max():
            axes.contour(x, y, smooth, levels=[level], colors=[colour], linewidths=width)
    axes.set(xlim=(right, left), ylim=(low, high))


def _scaled(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return np.clip((values - window[0]) / (window[1] - window[0]), 0, 1)


def _checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squares of two images by turns; where the second was not measured, the first."""
    side = max(1, round(max(first.shape) / SQUARES))
    up, across = np.indices(first.shape) // side
    return np.where(((up + across) % 2 == 1) & np.isfinite(second), second, first)
