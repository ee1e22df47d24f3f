"""PNG pictures of answers: landmarks on their three planes, learning curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medrl.data.planes import as_volume, cut_plane, display_window, present_landmarks
from medrl.data.write import whole_file
from medrl.geometry.grids import bounding_box, spacing_of
from medrl.types import FOUND, MISSING, InputError, Landmark

# plane, axis across, axis up, letters at the left, right, top and bottom; every panel is seen with its axis across
# running from high to low, which is the radiological convention: the patient's right, or front, is on the left
PLANES = (("axial", 0, 1, "RLAP"), ("coronal", 0, 2, "RLSI"), ("sagittal", 1, 2, "APSI"))
CONVENTION = (
    "Radiological convention: the patient's right (R) is on the left of axial and coronal panels, the front (A) on the "
    "left of sagittal panels. All panels at one scale; positions in RAS mm."
)
POINT, PATH, TRUTH, WARNING = "#ffb000", "#56b4e9", "#00e08a", "#d62728"


def draw_landmarks(
    path: str | Path,
    image: Any,
    ras_from_voxel: Any,
    landmarks: Sequence[Landmark],
    *,
    truth: Mapping[str, Any] | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a PNG with an axial, a coronal and a sagittal cut in patient axes through every landmark.

    ``image`` is (1, X, Y, Z) or (X, Y, Z), ``ras_from_voxel`` (4, 4) its matrix in mm (oblique, flipped and
    anisotropic ones are sampled in mm); ``truth`` maps labels to (3,) RAS mm, drawn as a cross with the error;
    ``window`` is the intensity shown black and white (default: the 0.5 and 99.5 % quantiles).  The circle has the
    radius ``uncertainty_mm``; the path is projected on each plane.  Missing landmarks are listed below.

    Raises InputError for a wrong shape or matrix, or if matplotlib is not installed.
    """
    save_figure(path, landmark_figure(image, ras_from_voxel, landmarks, truth=truth, title=title, window=window))


def draw_curve(
    path: str | Path, series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, *, title: str = ""
) -> None:
    """Write a PNG with one line per series of (x, y) points, such as a score over training steps.

    Raises InputError if there is no point to draw or matplotlib is not installed.
    """
    if not any(len(points) for points in series.values()):
        raise InputError("no points to draw: pass series={name: [(x, y), ...]} with at least one point")
    figure = new_figure(7.0, 4.2, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    handles = [
        axes.plot(*zip(*points, strict=True), lw=1.8, marker="o" if len(points) < 30 else "", ms=3.5)[0]
        for points in series.values()
        if len(points)
    ]
    axes.set_xlabel(xlabel, parse_math=False)
    axes.set_ylabel(ylabel, parse_math=False)
    axes.set_title(title, parse_math=False, loc="left", fontsize=11, weight="bold")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(handles) > 1:
        names = [name for name, points in series.items() if len(points)]
        for text in axes.legend(handles, names, frameon=False).get_texts():
            text.set_parse_math(False)
    save_figure(path, figure)


def landmark_figure(
    image: Any,
    ras_from_voxel: Any,
    landmarks: Sequence[Landmark],
    *,
    truth: Mapping[str, Any] | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> Any:
    """Lay out the figure that ``draw_landmarks`` writes; returns a ``matplotlib.figure.Figure``."""
    volume, matrix = as_volume(image, ras_from_voxel)
    low, high = display_window(volume, window)
    volume, shown = volume.float(), present_landmarks(landmarks)
    lower, upper = (corner.numpy() for corner in bounding_box(matrix, tuple(volume.shape), torch.eye(4).double()))
    side = upper - lower
    columns = max(1, math.ceil(math.sqrt(len(shown) / 3)))
    cell = {1: 10.0, 2: 7.0}.get(columns, 5.0)  # inches
    inch = min((cell - 0.4) / (2 * side[0] + side[1]), 0.8 * cell / max(side[1], side[2]))  # per mm
    row = 0.5 + inch * max(side[1], side[2])
    width = columns * cell
    absent = ", ".join(mark.label for mark in landmarks if mark.status == MISSING)
    notes = [f"Missing (outside the field of view): {absent}" if absent else "", CONVENTION]
    lines = [line for note in notes for line in textwrap.wrap(note, int(13 * width))]
    top, bottom = (0.45 if title else 0.1), 0.5 + 0.16 * len(lines)
    height = top + math.ceil(len(shown) / columns) * row + bottom
    figure = new_figure(width, height, dpi=100)

    def write(x: float, y: float, text: str, **style: Any) -> None:  # inches from the upper left corner
        figure.text(x / width, 1 - y / height, text, va="top", parse_math=False, **style)

    write(0.12, 0.12, title, fontsize=13, weight="bold")
    decimals = 1 if float(spacing_of(matrix).min()) >= 0.5 else 2
    step = max(float(spacing_of(matrix).min()), float(side.max()) / 400)
    for index, mark in enumerate(shown):
        x, y = index % columns * cell, top + index // columns * row
        target = _target(mark, truth)
        head = textwrap.shorten(mark.label, int(7 * cell), placeholder="…")
        write(x + 0.12, y, head, fontsize=9, weight="bold")
        if mark.status != FOUND:
            write(x + cell - 0.12, y, mark.status, fontsize=9, weight="bold", color=WARNING, ha="right")
        position = ", ".join(f"{value:.{decimals}f}" for value in mark.position_mm)
        facts = [f"RAS {position} mm", f"uncertainty {mark.uncertainty_mm:.{decimals}f} mm", f"{mark.steps} steps"]
        if target is not None:
            facts.insert(1, f"error {np.linalg.norm(np.subtract(mark.position_mm, target)):.{decimals}f} mm")
        write(x + 0.12, y + 0.18, "   ".join(facts), fontsize=7.5)
        left = x + 0.12
        for plane in PLANES:
            w, h = side[plane[1]] * inch, side[plane[2]] * inch
            axes = figure.add_axes((left / width, 1 - (y + 0.36 + h) / height, w / width, h / height))
            values, extent = cut_plane(volume, matrix, mark.position_mm, plane[1], plane[2], (lower, upper), step)
            axes.imshow(values, origin="lower", extent=extent, cmap="gray", vmin=low, vmax=high)
            _mark_panel(axes, plane, mark, target, (lower, upper), 6 if columns < 3 else 4)
            left += w + 0.08
    for number, line in enumerate(lines):
        write(0.12, height - bottom + 0.42 + 0.16 * number, line, fontsize=8, color="0.25")
    if shown:
        _add_legend(figure, (0.12 / width, (bottom - 0.08) / height), truth is not None)
    return figure


def _target(mark: Landmark, truth: Mapping[str, Any] | None) -> np.ndarray | None:
    target = np.asarray((truth or {}).get(mark.label, (np.nan,) * 3), np.float64)
    return target if np.isfinite(target).all() else None


def _mark_panel(axes: Any, plane: tuple, mark: Landmark, target: np.ndarray | None, box_mm: tuple, size: float) -> None:
    from matplotlib.patches import Circle

    _, across, up, letters = plane
    (left, right), (bottom, top) = ((box_mm[0][axis], box_mm[1][axis]) for axis in (across, up))
    axes.set(xlim=(right, left), ylim=(bottom, top), xticks=[], yticks=[], facecolor="black")
    path = np.asarray(mark.path_mm, np.float64).reshape(-1, 3)
    if len(path):
        axes.plot(path[:, across], path[:, up], color=PATH, lw=size / 5)
        axes.plot(path[0, across], path[0, up], "s", color=PATH, mec="black", ms=size - 1)
    centre = mark.position_mm[across], mark.position_mm[up]
    axes.add_patch(Circle(centre, mark.uncertainty_mm, fill=False, color=POINT, lw=1, ls="--"))
    axes.plot(*centre, "o", mfc="none", mec=POINT, mew=size / 4, ms=size)
    if target is not None:
        axes.plot(target[across], target[up], "x", color=TRUTH, mew=size / 4, ms=size)
    style = letter_panel(axes, letters)
    if (across, up) == (0, 1):  # all panels of a page have one scale
        quarter = (right - left) / 4
        bar = max(n * 10.0**k for k in range(-3, 4) for n in (1, 2, 5) if n * 10.0**k <= quarter)
        axes.plot([0.04, 0.04 + bar / (right - left)], [0.04, 0.04], "w-", lw=2, transform=axes.transAxes)
        axes.text(0.04, 0.07, f"{bar:g} mm", fontsize=6, **style)


def letter_panel(axes: Any, letters: str) -> dict[str, Any]:
    """Write the letters at the left, right, top and bottom of a panel; returns the style of such text."""
    style = {"color": "w", "transform": axes.transAxes, "bbox": {"fc": "black", "alpha": 0.5, "pad": 0.8, "lw": 0}}
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
              (0.5, 0.97, "center", "top"), (0.5, 0.03, "center", "baseline"))  # fmt: skip
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):  # below the marks, which matter more
        axes.text(x, y, letter, ha=ha, va=va, fontsize=8, weight="bold", zorder=1.5, **style)
    return style


def _add_legend(figure: Any, corner: tuple[float, float], with_truth: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label="answer", marker="o", mfc="none", mec=POINT, ls=""),
        Line2D([], [], label="uncertainty (radius)", color=POINT, ls="--", lw=1),
        Line2D([], [], label="path of the agent", color=PATH),
        Line2D([], [], label="start", marker="s", color=PATH, ls=""),
        Line2D([], [], label="truth", marker="x", color=TRUTH, mew=2, ls=""),
    ]
    style = {"ncol": 5, "frameon": False, "fontsize": 8, "borderpad": 0, "borderaxespad": 0}
    figure.legend(handles=handles[: 5 if with_truth else 4], loc="upper left", bbox_to_anchor=corner, **style)


def new_figure(width: float, height: float, **style: Any) -> Any:
    """Make a figure of a size in inches, without pyplot's global state; InputError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'medrl[viz]'") from error
    figure = Figure(figsize=(width, height), facecolor="white", **style)
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: str | Path, figure: Any) -> None:
    """Write a figure as a PNG, whole."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=figure.dpi)
