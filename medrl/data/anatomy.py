"""What a landmark set looks like: names, mean shape, working grid, and a small template volume for the pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medrl.data.cases import Source
from medrl.geometry.grids import OUTSIDE, canonical
from medrl.geometry.similarity import apply, fit_robust, mean_shape
from medrl.types import InputError


@dataclass
class Anatomy:
    """The part of a trained landmark bundle that is not a network.

    ``shape_mm`` (L, 3) is the mean shape in the anatomical frame, centred at 0; ``spread_mm`` (L,) how far training
    landmarks lie from it after a similarity fit.  The frame's box is the shape's own, widened by ``margin_mm``.
    ``template`` (n, n, n) uint8 is the mean training volume in that frame at ``template_spacing_mm``, or None where
    patients are always stored in patient axes.  ``calibration`` turns scatter and depth into an uncertainty in mm and
    a presence probability (see :mod:`medrl.inference.calibration`); empty before it was fitted.
    """

    labels: list[str]
    shape_mm: Tensor
    spread_mm: Tensor
    spacing_mm: float
    strides: list[int] = field(default_factory=lambda: [1, 2, 4])
    size: int = 17
    margin_mm: float = 50.0
    window: list[float] | None = None
    template: Tensor | None = None
    template_spacing_mm: float = 0.0
    calibration: dict[str, float] = field(default_factory=dict)

    def box_mm(self) -> tuple[Tensor, Tensor]:
        """Lower and upper corner (3,) of the working box in the frame."""
        return self.shape_mm.amin(0).double() - self.margin_mm, self.shape_mm.amax(0).double() + self.margin_mm

    def save(self, path: Path | str) -> None:
        """Write as a dictionary of tensors and numbers, loadable with ``weights_only=True``."""
        torch.save(asdict(self), path)

    @classmethod
    def load(cls, path: Path | str) -> Anatomy:
        """Read; InputError where the file is missing or not an anatomy."""
        try:
            return cls(**torch.load(path, weights_only=True))
        except FileNotFoundError as error:
            raise InputError(
                f"{Path(path).name} is missing: train the bundle first, or copy its models folder"
            ) from error
        except Exception as error:
            raise InputError(
                f"{Path(path).name} cannot be read as an anatomy: copy the bundle's models again"
            ) from error


def learn_anatomy(
    sources: Sequence[Source], *, labels: Sequence[str], spacing_mm: float, margin_mm: float, turned: bool = False,
    template_points: int = 17, **options: Any,
) -> tuple[Anatomy, list[Tensor]]:  # fmt: skip
    """Mean shape and working box of training cases, and each case's ``frame_from_ras`` (4, 4).

    ``turned``: cases come in any orientation, so a template volume is averaged for the pose search.
    """
    points = torch.stack([s.points_ras for s in sources]).double()
    known = points.isfinite().all(-1)
    if int(known.any(0).sum()) < len(labels):
        missing = [label for label, any_case in zip(labels, known.any(0), strict=True) if not any_case]
        raise InputError(f"training cases never hold {', '.join(missing)}: check dataset.json's landmarks")
    shape = mean_shape(points, known)
    frames = [fit_robust(shape, torch.nan_to_num(p), k.double()) for p, k in zip(points, known, strict=True)]
    fitted = torch.stack([apply(f, torch.nan_to_num(p)) for f, p in zip(frames, points, strict=True)])
    distance = (fitted - shape).norm(dim=-1) * known
    spread = distance.sum(0) / known.sum(0)
    anatomy = Anatomy(list(labels), shape, spread.float(), spacing_mm, margin_mm=margin_mm, **options)
    if turned:
        lower, upper = anatomy.box_mm()
        side = float((upper - lower).max())
        centre, anatomy.template_spacing_mm = (lower + upper) / 2, side / template_points
        box = (centre - side / 2, centre + side / 2)
        total = torch.zeros((template_points,) * 3)
        count = torch.zeros((template_points,) * 3)
        for source, frame in zip(sources, frames, strict=True):
            grid, _ = canonical(
                source.volume, source.ras_from_voxel, spacing_mm=anatomy.template_spacing_mm, frame_from_ras=frame,
                box_mm=box, window=None if anatomy.window is None else tuple(anatomy.window), multiple=1,
            )  # fmt: skip
            grid = grid[:template_points, :template_points, :template_points]
            total += torch.where(grid != OUTSIDE, grid, 0).float()
            count += grid != OUTSIDE
        anatomy.template = torch.where(count > 0, total / count.clamp(min=1), 0).round().to(torch.uint8)
    return anatomy, frames
