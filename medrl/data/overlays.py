"""Pictures and pages of a segmentation: the mask over the image, and the seeds in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.page import PLACE, page_decimals, place_cell, rounded, write_viewer
from medrl.data.pictures import PLANES, letter_panel, new_figure, save_figure
from medrl.data.planes import as_volume, cut_plane, display_window
from medrl.data.regions import Region, region_of, sample_image
from medrl.data.seeds import Seeds, make_seeds
from medrl.geometry.grids import bounding_box, spacing_of
from medrl.types import InputError

MASK, TRUTH, INSIDE, OUTSIDE = "#ffb000", "#56b4e9", "#00e08a", "#ff5c5c"
FINEST_PICTURE = 1024**2  # pixels of the panel of a single slice


class Panel(NamedTuple):
    """One cut: values, mask and truth (up, across), and where the seeds lie in it."""

    values: np.ndarray
    masks: list[np.ndarray]  # the mask, and the truth where there is one; 0 to 1
    extent: tuple[float, float, float, float]  # mm, of the pixels' borders
    seeds: np.ndarray  # (K, 2) mm, across and up
    near: np.ndarray  # (K,) bool: within half a slice of the plane
    plane: tuple  # of PLANES


def draw_overlay(
    path: str | Path,
    image: Any,
    ras_from_voxel: Any,
    mask: Any,
    *,
    seeds: Seeds | None = None,
    truth: Any = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a PNG with three cuts in patient axes through the middle of the mask, or with the one slice there is.

    ``image``, ``mask`` and ``truth`` are (1, X, Y, Z) or (X, Y, Z) on one grid, ``ras_from_voxel`` (4, 4) its matrix in
    mm.  The mask is tinted and has a solid contour, the truth a dashed one; seeds are numbered in their order, green
    inside and red outside of the object, and hollow where they lie off the plane.

    Raises InputError for a wrong shape or matrix, or if matplotlib is not installed.
    """
    save_figure(path, overlay_figure(image, ras_from_voxel, mask, seeds=seeds, truth=truth, title=title, window=window))


def overlay_figure(
    image: Any,
    ras_from_voxel: Any,
    mask: Any,
    *,
    seeds: Seeds | None = None,
    truth: Any = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> Any:
    """Lay out the figure that `draw_overlay` writes; returns a ``matplotlib.figure.Figure``."""
    volume, matrix = as_volume(image, ras_from_voxel)
    masks = [_mask_of(volume, matrix, part) for part in (mask, truth) if part is not None]
    seeds = make_seeds() if seeds is None else seeds
    panels = _slice_panel(volume, matrix, masks, seeds) if 1 in volume.shape else _cuts(volume, matrix, masks, seeds)
    low, high = display_window(volume, window)
    widths = [panel.extent[1] - panel.extent[0] for panel in panels]
    tallest = max(panel.extent[3] - panel.extent[2] for panel in panels)
    inch = min(14.0 / sum(widths), 6.0 / tallest)  # per mm
    figure = new_figure(max(6.0, inch * sum(widths) + 0.6), inch * tallest + 1.1, dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for part, panel in zip(axes, panels, strict=True):
        _draw(part, panel, seeds, (low, high))
    figure.suptitle(
        f"{title}   {_amount(masks[0], matrix)}".strip(),
        parse_math=False,
        x=0.01,
        ha="left",
        fontsize=11,
        weight="bold",
    )
    _add_legend(figure, truth is not None)
    return figure


def write_overlay_page(
    path: str | Path,
    image: Any,
    ras_from_voxel: Any,
    mask: Any,
    *,
    seeds: Seeds | None = None,
    user_count: int = 0,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a page with three slices and a 3D view of the image, the mask over it, the seeds and a table of them.

    Arguments as in `draw_overlay`; the first ``user_count`` seeds are the user's.  One file that fetches nothing, as
    those of `medrl.data.page.write_page`.
    """
    volume, matrix = as_volume(image, ras_from_voxel)
    inside = _mask_of(volume, matrix, mask)
    seeds = make_seeds() if seeds is None else seeds
    decimals = page_decimals(matrix)
    points, rows = [], []
    for number, (place, foreground) in enumerate(zip(seeds.position_ras, seeds.foreground.tolist(), strict=True), 1):
        kind = "foreground" if foreground else "background"
        author = "user" if number <= user_count else f"agent, step {number - user_count}"
        points.append({"label": f"{number} {kind}", "ras": rounded(place), "foreground": foreground})
        cells = f'<td>{number}</td><td class="{kind}">{kind}</td>{place_cell(place.numpy(), decimals)}<td>{author}</td>'
        rows.append(f'<tr tabindex="0">{cells}</tr>')
    words = {
        "title": title or "Segmentation",
        "summary": f"{_amount(inside, matrix)}, {len(rows)} seed{'s' * (len(rows) != 1)}",
        "points": "seeds",
        "colours": "The mask is orange; green seeds say inside, red ones outside.",
        "notes": "",
    }
    scene = {"points": points, "start": rounded(_middle(matrix, [inside], seeds))}
    columns = ("seed", "kind", PLACE, "placed by")
    write_viewer(
        path, volume, matrix, scene=scene, words=words, columns=columns, rows=rows, mask=inside, window=window
    )  # fmt: skip


def _mask_of(volume: Tensor, matrix: Tensor, mask: Any) -> Tensor:
    inside = as_volume(mask, matrix)[0] > 0
    if inside.shape != volume.shape:
        shapes = [" x ".join(map(str, part.shape)) for part in (inside, volume)]
        raise InputError(f"the mask has {shapes[0]} voxels and the image {shapes[1]}; expected one grid")
    return inside


def _amount(mask: Tensor, matrix: Tensor) -> str:
    voxels = int(mask.sum())
    return f"{voxels} voxels, {voxels * float(spacing_of(matrix).prod()) / 1000:.2f} ml" if voxels else "empty mask"


def _middle(matrix: Tensor, masks: list[Tensor], seeds: Seeds) -> np.ndarray:
    """RAS mm of the voxel of the mask nearest to its centroid; without a mask of a seed, or the image's middle."""
    for mask in masks:
        places = mask.nonzero().double()
        if len(places):
            place = places[(places - places.mean(0)).norm(dim=1).argmin()]
            return (matrix[:3, :3] @ place + matrix[:3, 3]).numpy()
    if len(seeds.foreground):
        return seeds.position_ras[int(seeds.foreground.long().argmax())].numpy()
    return (matrix[:3, :3] @ ((torch.tensor(masks[0].shape).double() - 1) / 2) + matrix[:3, 3]).numpy()


def _cuts(volume: Tensor, matrix: Tensor, masks: list[Tensor], seeds: Seeds) -> list[Panel]:
    middle = _middle(matrix, masks, seeds)
    box = tuple(corner.numpy() for corner in bounding_box(matrix, tuple(volume.shape), torch.eye(4).double()))
    step_mm = max(float(spacing_of(matrix).min()), float((box[1] - box[0]).max()) / 400)
    places = seeds.position_ras.numpy()
    panels = []
    for plane in PLANES:
        _, across, up, _ = plane
        normal = 3 - across - up
        values, extent = cut_plane(volume, matrix, middle, across, up, box, step_mm)
        cuts = [np.nan_to_num(cut_plane(m, matrix, middle, across, up, box, step_mm)[0]) for m in masks]
        depth_mm = float((matrix[normal, :3].abs()).max())  # of a voxel along the normal
        near = np.abs(places[:, normal] - middle[normal]) <= 0.5 * depth_mm + 1e-6
        panels.append(Panel(values, cuts, extent, places[:, [across, up]], near, plane))
    return panels


def _slice_panel(volume: Tensor, matrix: Tensor, masks: list[Tensor], seeds: Seeds) -> list[Panel]:
    """The one slice as it lies, also where it is oblique."""

    def read(part: Tensor) -> np.ndarray:
        return sample_image(MetaTensor(part[None].float(), affine=matrix), region).T.numpy()

    region = region_of(MetaTensor(volume[None].float(), affine=matrix), largest=FINEST_PICTURE)
    spacing_mm = np.array(region.spacing_mm)
    size_mm = spacing_mm * region.shape
    index = region.index(seeds.position_ras).numpy()
    extent = (-spacing_mm[0] / 2, size_mm[0] - spacing_mm[0] / 2, -spacing_mm[1] / 2, size_mm[1] - spacing_mm[1] / 2)
    return [
        Panel(read(volume), [read(m) for m in masks], tuple(map(float, extent)), index[:, :2] * spacing_mm,
              np.abs(index[:, 2]) <= 0.5 + 1e-6, _plane_of(region))
    ]  # fmt: skip


def _plane_of(region: Region) -> tuple:
    """The plane of PLANES to which the two axes of a slice are nearest."""
    normal = int(region.ras_from_index[:3, 2].abs().argmax())
    return next(plane for plane in PLANES if normal not in plane[1:3])


def _draw(axes: Any, panel: Panel, seeds: Seeds, window: tuple[float, float]) -> None:
    name, _, _, letters = panel.plane
    left, right, low, high = panel.extent
    axes.set(xlim=(right, left), ylim=(low, high), xticks=[], yticks=[], facecolor="black")  # radiological convention
    axes.set_title(name, fontsize=9)
    axes.imshow(
        panel.values, origin="lower", extent=panel.extent, cmap="gray", vmin=window[0], vmax=window[1], aspect="equal"
    )
    rows, columns = panel.values.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = low + (np.arange(rows) + 0.5) * (high - low) / rows
    styles = ((MASK, "solid", 1.4), (TRUTH, "dashed", 1.4))
    for part, (colour, line, width) in zip(panel.masks, styles, strict=False):
        inside = np.pad(part, 1) > 0.5  # so that a contour closes at the border
        if inside.any():
            grid = [np.concatenate([[2 * a[0] - a[1]], a, [2 * a[-1] - a[-2]]]) for a in (x, y)]
            axes.contour(*grid, np.pad(part, 1), levels=[0.5], colors=[colour], linestyles=[line], linewidths=width)
    if panel.masks[0].max() > 0.5:
        tint = np.zeros((rows, columns, 4))
        tint[...] = (*(int(MASK[k : k + 2], 16) / 255 for k in (1, 3, 5)), 0)
        tint[..., 3] = 0.25 * (panel.masks[0] > 0.5)
        axes.imshow(tint, origin="lower", extent=panel.extent, aspect="equal")
    letter_panel(axes, letters)
    for number, ((across, up), near) in enumerate(zip(panel.seeds, panel.near, strict=True), start=1):
        colour = INSIDE if seeds.foreground[number - 1] else OUTSIDE
        axes.plot(across, up, "o", ms=6, mec=colour, mfc=colour if near else "none", alpha=1.0 if near else 0.6)
        axes.annotate(
            str(number), (across, up), (4, 4), textcoords="offset points", color=colour, fontsize=8, weight="bold"
        )
    axes.set(xlim=(right, left), ylim=(low, high))


def _add_legend(figure: Any, with_truth: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label="mask", color=MASK),
        Line2D([], [], label="inside", marker="o", color=INSIDE, ls=""),
        Line2D([], [], label="outside", marker="o", color=OUTSIDE, ls=""),
        Line2D([], [], label="off the plane", marker="o", mfc="none", color="0.4", ls=""),
        Line2D([], [], label="truth", color=TRUTH, ls="--"),
    ]
    figure.legend(
        handles=handles[: 5 if with_truth else 4], loc="outside lower left", ncol=5, frameon=False, fontsize=8
    )
