"""One HTML file that lays the moving image of a registration on the fixed one in a browser, without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.page import rounded
from medrl.data.pair_pictures import Shown, middle_of_pair, shown_image, summary_of
from medrl.data.write import whole_file
from medrl.geometry.grids import bounding_box, spacing_of, thin, to_grey
from medrl.geometry.transforms import resample
from medrl.types import Registration

LARGEST = 160**3  # voxels of each of the three volumes that are embedded


def write_pair_page(
    path: str | Path, fixed: MetaTensor, moving: MetaTensor, registration: Registration, *, title: str = ""
) -> None:
    """Write a page with three slices of the fixed image and the moving one over it: a blend, a checkerboard, colours.

    ``fixed`` and ``moving`` are (1, X, Y, Z).  Both are resampled to 8 bits on one isotropic grid in patient axes,
    as registered and as the headers say; the file works from a disk and fetches nothing.
    """
    ground, other = shown_image(fixed), shown_image(moving)
    shape, ras_from_grid = _patient_grid(ground)
    moving_from_fixed = registration.moving_from_fixed.double().cpu()
    identity = torch.eye(4, dtype=torch.float64)
    middle = middle_of_pair(fixed, moving, moving_from_fixed)
    step_mm, origin = float(ras_from_grid[0, 0]), ras_from_grid[:3, 3].numpy()
    start = np.clip(np.rint((middle - origin) / step_mm), 0, np.array(shape) - 1).astype(int).tolist()
    scene = {"shape": list(shape), "step_mm": step_mm, "origin_mm": rounded(origin), "start": start}
    text = Template((files("medrl.data") / "pair_page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title or "Registration"),
        summary=html.escape(summary_of(registration)),
        rows="\n".join(_rows(registration)),
        scene=json.dumps(scene, allow_nan=False),
        fixed=_pack(ground, identity, shape, ras_from_grid),
        after=_pack(other, moving_from_fixed, shape, ras_from_grid),
        before=_pack(other, identity, shape, ras_from_grid),
    )
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _patient_grid(image: Shown) -> tuple[tuple[int, int, int], Tensor]:
    """An isotropic grid along R, A, S over an image: its shape and ras_from_grid."""
    lower, upper = bounding_box(image.matrix, tuple(image.volume.shape), torch.eye(4, dtype=torch.float64))
    step_mm = max(float(spacing_of(image.matrix).min()), float((upper - lower).prod() / LARGEST) ** (1 / 3))
    ras_from_grid = torch.diag(torch.tensor([step_mm] * 3 + [1.0], dtype=torch.float64))
    ras_from_grid[:3, 3] = lower + step_mm / 2
    first, second, third = ((upper - lower) / step_mm).ceil().long().tolist()
    return (first, second, third), ras_from_grid


def _pack(image: Shown, image_from_fixed: Tensor, shape: tuple[int, int, int], ras_from_grid: Tensor) -> str:
    """An image on a grid, 8 bits, 0 where it was not measured; compressed, as text."""
    volume, matrix = thin(image.volume, image.matrix, float(ras_from_grid[0, 0]))
    grey = to_grey(resample(volume, matrix, image_from_fixed, shape, ras_from_grid), *image.window)
    return base64.b64encode(gzip.compress(grey.numpy().tobytes(), 6, mtime=0)).decode()


def _rows(registration: Registration) -> list[str]:
    facts = {"status": registration.status, "reason": registration.reason}
    facts |= {"confidence": f"{registration.confidence:.2f}", "scale": f"{registration.scale:.4f}"}
    facts["polish"] = f"{registration.polish_mm:.1f} mm"
    rows = [f'<tr><th>{name}</th><td colspan="4">{html.escape(text)}</td></tr>' for name, text in facts.items() if text]
    for number, line in enumerate(registration.moving_from_fixed[:3].tolist()):
        cells = "".join(f'<td class="number">{value + 0.0:.5f}</td>' for value in line)
        rows.append(f"<tr><th>{'' if number else 'matrix'}</th>{cells}</tr>")
    return rows
