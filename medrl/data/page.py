"""One HTML file that shows an image, with its landmarks or its mask, in a browser, without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from medrl.data.planes import as_volume, display_window, finite_quantiles, present_landmarks
from medrl.data.write import whole_file
from medrl.geometry.grids import bounding_box, sample, spacing_of, thin
from medrl.types import FOUND, MISSING, Landmark

LARGEST = 256**3  # voxels that are embedded; the page stays below some 20 MB
UPRIGHT = 0.9998  # cosine of the tilt, 1 degree, up to which a volume is embedded as it is
LONGEST_PATH = 100  # points of a path that are drawn
VERSION = "0.69.0"  # of the viewer in medrl/data/niivue
PLACE = "x, y, z (mm)<br>RAS / <i>LPS</i>"  # head of the column of `place_cell`


def write_page(
    path: str | Path,
    image: Any,
    ras_from_voxel: Any,
    landmarks: Sequence[Landmark],
    *,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a page with three slices, a 3D view, the landmarks, the paths of the agent and a table of the answers.

    ``image`` is (1, X, Y, Z) or (X, Y, Z), ``ras_from_voxel`` (4, 4) its matrix in mm; ``window`` is the intensity
    shown black and white (default: the 0.5 and 99.5 % quantiles).  Volume and viewer (NiiVue) are inside the file,
    which works from a disk and fetches nothing.  The volume is embedded as 8-bit NIfTI with the intensities of the
    image between its 0.1 and 99.9 % quantiles; in patient axes if oblique, so that the slices are those of
    ``draw_landmarks``; and at half the resolution, as often as needed, if above 256^3 voxels.

    Raises InputError for a wrong shape or matrix.
    """
    present = present_landmarks(landmarks)
    decimals = page_decimals(ras_from_voxel)
    scene = {
        "points": [{"label": m.label, "ras": rounded(m.position_mm), "found": m.status == FOUND} for m in present],
        "paths": [_thin_path(m.path_mm) for m in present if len(m.path_mm) > 1],
    }
    words = {
        "title": title or "Landmarks",
        "summary": f"{len(present)} of {len(landmarks)} landmarks present",
        "points": "landmarks",
        "colours": "Orange points were found, red ones did not converge; blue lines are paths of the agent from their "
        "starts.",
        "notes": "Presence is the probability that the point lies inside the image.",
    }
    columns = ("label", "status", PLACE, "uncertainty<br>(mm)", "presence", "steps")
    write_viewer(
        path, image, ras_from_voxel, scene=scene, words=words, columns=columns,
        rows=[_row(mark, decimals) for mark in landmarks], window=window,
    )  # fmt: skip


def write_viewer(
    path: str | Path,
    image: Any,
    ras_from_voxel: Any,
    *,
    scene: Mapping[str, Any],
    words: Mapping[str, str],
    columns: Sequence[str],
    rows: Sequence[str],
    mask: Any = None,
    window: tuple[float, float] | None = None,
) -> None:
    """Write the page of an image, `write_page`, with any table and any points.

    ``scene``: ``points``, a dictionary with ``label``, ``ras`` and ``found`` or ``foreground`` for every clickable row,
    ``paths``, and ``start``, where the crosshair shall be (default: at the first point).  ``words`` fill the template;
    ``columns`` and ``rows`` are HTML.  ``mask``, of the shape of the image, is laid over it.
    """
    volume, matrix = as_volume(image, ras_from_voxel)
    low, high = display_window(volume, window)
    lower, upper = bounding_box(matrix, tuple(volume.shape), torch.eye(4).double())
    shown, shown_matrix = _upright(volume, matrix)
    scene = {"paths": [], "window": [low, high], "decimals": page_decimals(matrix)} | dict(scene)
    scene["radius"] = round(float((upper - lower).norm()) / 130, 4)
    overlay = ""
    if mask is not None:
        part, part_matrix = _upright(as_volume(mask, ras_from_voxel)[0].to(torch.uint8), matrix)
        nifti = nibabel.Nifti1Image((torch.nan_to_num(part.float()) > 0.5).to(torch.uint8).numpy(), part_matrix.numpy())
        nifti.header.set_xyzt_units("mm")
        overlay = (
            f'\n<script type="text/plain" id="mask">{_base64(gzip.compress(nifti.to_bytes(), 6, mtime=0))}</script>'
        )
    folder = files("medrl.data") / "niivue"
    reduced = "" if shown is volume else " The image is resampled for display."
    text = Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        {key: html.escape(value) for key, value in words.items()} | {"notes": html.escape(words["notes"]) + reduced},
        columns="".join(f"<th>{column}</th>" for column in columns),
        rows="\n".join(rows),
        volume=_base64(_nifti(shown, shown_matrix.numpy(), (low, high))),
        mask=overlay,
        scene=json.dumps(scene, allow_nan=False).replace("<", "\\u003c"),
        version=VERSION,
        license=(folder / "LICENSE").read_text(encoding="utf-8"),
        niivue=gzip.decompress((folder / "niivue.umd.js.gz").read_bytes()).decode("utf-8"),
    )
    with whole_file(path) as part_path:
        part_path.write_text(text, encoding="utf-8")


def page_decimals(ras_from_voxel: Any) -> int:
    """Digits behind the point of a position in mm, fewer where voxels are large."""
    return 1 if float(spacing_of(torch.as_tensor(ras_from_voxel)).min()) >= 0.5 else 2


def place_cell(ras: np.ndarray, decimals: int) -> str:
    """A cell of the table with a point (3,) in RAS and in LPS."""
    return f"<td>{_text(ras, decimals)}<br><i>{_text(ras * (-1, -1, 1), decimals)}</i></td>"


def rounded(point: Any) -> list[float]:
    """A point as the scene holds it."""
    return [round(float(value), 4) for value in point]


def _upright(volume: Tensor, ras_from_voxel: Tensor) -> tuple[Tensor, Tensor]:
    """Resample an oblique volume to patient axes, since the viewer cuts along voxel axes; halve what is too large.

    A single slice stays as it is.
    """
    spacing_mm = spacing_of(ras_from_voxel)
    step_mm = float(spacing_mm.min())
    if 1 in volume.shape or float((ras_from_voxel[:3, :3] / spacing_mm).abs().amax(0).min()) > UPRIGHT:
        shown, shown_matrix = volume, ras_from_voxel
        while shown.numel() > LARGEST:  # the finest axes first
            step_mm *= 2
            shown, shown_matrix = thin(volume, ras_from_voxel, step_mm)
        return shown, shown_matrix
    lower, upper = bounding_box(ras_from_voxel, tuple(volume.shape), torch.eye(4).double())
    step_mm = max(step_mm, float((upper - lower).prod() / LARGEST) ** (1 / 3))
    volume, ras_from_voxel = thin(volume, ras_from_voxel, step_mm)
    ras_from_grid = torch.diag(torch.tensor([step_mm] * 3 + [1.0], dtype=torch.float64))
    ras_from_grid[:3, 3] = lower + step_mm / 2
    shape = ((upper - lower) / step_mm).ceil().long().tolist()
    return sample(volume, torch.linalg.inv(ras_from_voxel) @ ras_from_grid, tuple(shape)), ras_from_grid


def _row(mark: Landmark, decimals: int) -> str:
    if mark.status == MISSING:
        row, place, uncertainty = "<tr>", "<td></td>", ""
    else:
        row, place = '<tr tabindex="0">', place_cell(np.asarray(mark.position_mm, np.float64), decimals)
        uncertainty = f"{mark.uncertainty_mm:.{decimals}f}"
    status = mark.status.split()[0]
    return (
        f'{row}<td>{html.escape(mark.label)}</td><td class="{html.escape(status)}">{html.escape(mark.status)}</td>'
        f"{place}<td>{uncertainty}</td><td>{mark.presence:.2f}</td><td>{mark.steps}</td></tr>"
    )


def _text(point: np.ndarray, decimals: int) -> str:
    return ", ".join(f"{value + 0.0:.{decimals}f}" for value in np.round(point, decimals))


def _thin_path(path_mm: np.ndarray) -> list[list[float]]:
    """Drop the waiting steps of a path and, of a long one, all but LONGEST_PATH points; both ends stay."""
    path = np.asarray(path_mm, np.float64)
    path = path[np.isfinite(path).all(1)]
    path = path[:1] if len(path) < 2 else path[np.r_[True, (np.diff(path, axis=0) != 0).any(1)]]
    kept = np.unique(np.linspace(0, len(path) - 1, min(len(path), LONGEST_PATH)).round().astype(int))
    return [rounded(point) for point in path[kept]]


def _nifti(volume: Tensor, ras_from_voxel: np.ndarray, window: tuple[float, float]) -> bytes:
    """Return a .nii.gz of 8-bit values whose slope and intercept give the intensities of the image again."""
    low, high = finite_quantiles(volume, 0.001, 0.999)
    low, high = min(low, window[0]), max(high, window[1])
    slope = (high - low) / 255
    grey = torch.nan_to_num((volume.float() - low) / slope, nan=0.0).round().clamp(0, 255).to(torch.uint8).numpy()
    nifti = nibabel.Nifti1Image(grey, ras_from_voxel)
    nifti.header.set_xyzt_units("mm")
    nifti.header.set_slope_inter(slope, low)
    return gzip.compress(nifti.to_bytes(), 6, mtime=0)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
