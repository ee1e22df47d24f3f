"""PNG pictures of detections: boxes, and the boxes that the agent went through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medrl.data.pictures import PATH, PLANES, POINT, TRUTH, letter_panel, new_figure, save_figure
from medrl.data.planes import as_volume, cut_plane, display_window
from medrl.geometry.grids import bounding_box, spacing_of
from medrl.types import Detection

WIDTH = 7.0  # inches


def draw_detections(
    path: Path | str, image: Any, detections: Sequence[Detection], *, truth: Sequence[Sequence[float]] = (),
    title: str = "",
) -> None:  # fmt: skip
    """Write a PNG of a picture (Y, X, C) with boxes (in pixels), or of a volume (1, X, Y, Z) (in RAS mm).

    Volumes are cut in patient axes through the middle of the best box, or of the volume.  The thin boxes are those the
    agent went through, from the start on; ``truth`` (K, 2 D) is drawn, too.
    """
    if isinstance(image, np.ndarray):
        figure = _picture_figure(image, detections, truth, title)
    else:
        figure = _volume_figure(image, detections, truth, title)
    save_figure(path, figure)


def _picture_figure(image: np.ndarray, detections: Sequence[Detection], truth: Sequence[Any], title: str) -> Any:
    height, width = image.shape[:2]
    figure = new_figure(WIDTH, WIDTH * height / width + 0.3, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", extent=(0, width, height, 0))
    _draw_boxes(axes, detections, truth, (0, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, parse_math=False, loc="left", fontsize=9)
    return figure


def _volume_figure(image: Any, detections: Sequence[Detection], truth: Sequence[Any], title: str) -> Any:
    volume, matrix = as_volume(image, np.asarray(image.affine))
    low, high = (c.numpy() for c in bounding_box(matrix, tuple(volume.shape), torch.eye(4).double()))
    best = max(detections, key=lambda one: one.score, default=None)
    middle = (low + high) / 2 if best is None else np.asarray(best.box).reshape(2, 3).mean(0)
    step_mm = max(float(spacing_of(matrix).min()), float((high - low).max()) / 300)
    figure = new_figure(12.0, 4.6, dpi=100, layout="constrained")
    black, white = display_window(volume)
    for axes, (name, across, up, letters) in zip(figure.subplots(1, 3), PLANES, strict=True):
        plane, extent = cut_plane(volume, matrix, middle, across, up, (low, high), step_mm)
        axes.imshow(plane, cmap="gray", vmin=black, vmax=white, origin="lower", extent=extent)
        _draw_boxes(axes, detections, truth, (across, up))
        axes.set(xlim=(high[across], low[across]), ylim=(low[up], high[up]), xticks=[], yticks=[], facecolor="black")
        axes.set_title(name, fontsize=9)
        letter_panel(axes, letters)
    figure.suptitle(title, parse_math=False, fontsize=10)
    return figure


def _draw_boxes(axes: Any, detections: Sequence[Detection], truth: Sequence[Any], which: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    def rectangle(box: Any, **style: Any) -> None:
        dims = len(box) // 2
        corner, end = [float(box[n]) for n in which], [float(box[dims + n]) for n in which]
        axes.add_patch(Rectangle(corner, end[0] - corner[0], end[1] - corner[1], fill=False, **style))

    for detection in detections:
        count = len(detection.path)
        for number, box in enumerate(detection.path):
            rectangle(box, ec=PATH, lw=0.8, alpha=0.25 + 0.5 * number / max(1, count))
    for box in truth:
        rectangle(box, ec=TRUTH, lw=1.5, ls="--")
    for detection in detections:
        rectangle(detection.box, ec=POINT, lw=2.2)
        dims = len(detection.box) // 2
        place = detection.box[which[0]], detection.box[which[1]]
        style = {"fontsize": 8, "va": "bottom" if dims == 2 else "top", "bbox": {"fc": POINT, "pad": 1, "lw": 0}}
        axes.text(*place, f"{detection.score:.2f}, {detection.steps} steps", clip_on=True, **style)
