"""Cases: volumes on canonical grids and their landmarks, stacked on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medrl.geometry.grids import canonical
from medrl.geometry.patches import Pyramid
from medrl.geometry.similarity import apply
from medrl.types import InputError

ANSWERS = ("points_mm", "known", "present")


@dataclass
class Source:
    """One volume as read from its file, with its landmarks."""

    name: str
    volume: Tensor  # (X, Y, Z) on its storage grid
    ras_from_voxel: Tensor  # (4, 4) float64
    points_ras: Tensor  # (L, 3) mm; NaN where the truth lacks a landmark


class Cases:
    """N volumes at all scales and the places of L landmarks in them.

    Positions are mm from the centre of a case's canonical grid, along its axes.  ``present`` (N, L) says which
    landmarks lie inside the field of view, ``known`` (N, L) for which the truth names a place (it may lie outside:
    a cropped copy of a larger volume).  Unknown places are 0 and count nowhere.
    """

    def __init__(
        self, volumes: Sequence[Tensor], points_mm: Tensor, *, labels: Sequence[str], spacing_mm: float,
        strides: tuple[int, ...] = (1, 2, 4), names: Sequence[str] | None = None, ras_from_centre: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.pyramid = Pyramid(list(volumes), spacing_mm=spacing_mm, strides=tuple(strides))
        self.labels = tuple(labels)
        self.names = tuple(names) if names is not None else tuple(str(n) for n in range(len(volumes)))
        identity = torch.eye(4, dtype=torch.float64).expand(len(self.names), 4, 4)
        self.ras_from_centre = identity if ras_from_centre is None else ras_from_centre
        self.known = points_mm.isfinite().all(-1)
        self.points_mm = torch.nan_to_num(points_mm.float())
        self.present = self._inside()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where everything lives."""
        return self.pyramid.device

    def to(self, device: torch.device | str) -> Cases:
        """Move to a device; returns self."""
        self.pyramid.to(device)
        self.points_mm, self.known, self.present = (x.to(device) for x in (self.points_mm, self.known, self.present))
        return self

    def replace(self, index: int, volume: Tensor, points_mm: Tensor) -> None:
        """Put another volume of equal shape, and its landmarks (L, 3), in the place of one case."""
        self.pyramid.replace(index, volume)
        self.known[index] = points_mm.isfinite().all(-1).to(self.device)
        self.points_mm[index] = torch.nan_to_num(points_mm.float()).to(self.device)
        self.present[index] = self._inside(index)

    def state_dict(self) -> dict[str, Any]:
        """Volumes and landmarks of the moment, for an exact resume."""
        return {"flat": list(self.pyramid.flat)} | {name: getattr(self, name) for name in ANSWERS}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict`` in place: tasks and views of the volumes hold on to these tensors."""
        for mine, other in zip(self.pyramid.flat, saved["flat"], strict=True):
            mine.copy_(other)
        for name in ANSWERS:
            getattr(self, name).copy_(saved[name])

    def to_ras(self, case: int, position_mm: Tensor) -> Tensor:
        """Patient RAS mm (..., 3) of positions in a case's grid."""
        return apply(self.ras_from_centre[case], position_mm.double().cpu())

    def _inside(self, index: int | slice = slice(None)) -> Tensor:
        """A landmark is present where the voxel that holds it is not OUTSIDE."""
        points = self.points_mm[index].reshape(-1, len(self.labels), 3)
        count = len(points)
        case = torch.arange(len(self), device=self.device)[index].reshape(-1).repeat_interleave(len(self.labels))
        grey = self.pyramid.crop(case, points.reshape(-1, 3), 1)[:, 0, 0, 0, 0]
        inside = (grey != 0).reshape(count, -1) & self.known[index].reshape(count, -1)
        return inside if isinstance(index, slice) else inside[0]

    @classmethod
    def from_sources(
        cls, sources: Sequence[Source], *, labels: Sequence[str], spacing_mm: float,
        strides: tuple[int, ...] = (1, 2, 4), frames: Sequence[Tensor] | None = None,
        box_mm: tuple[Tensor, Tensor] | None = None, window: Sequence[float] | None = None,
    ) -> Cases:  # fmt: skip
        """Resample every source, in patient axes or in its ``frame_from_ras`` (4, 4) and ``box_mm`` of that frame."""
        volumes, points, matrices = [], [], []
        for n, source in enumerate(sources):
            try:
                volume, ras_from_centre = canonical(
                    source.volume, source.ras_from_voxel, spacing_mm=spacing_mm, box_mm=box_mm, window=window,
                    frame_from_ras=None if frames is None else frames[n], multiple=max(2, max(strides) // 2),
                )  # fmt: skip
            except ValueError as error:
                raise InputError(f"{source.name}: {error}") from error
            volumes.append(volume)
            matrices.append(ras_from_centre)
            points.append(apply(torch.linalg.inv(ras_from_centre), source.points_ras.double()))
        return cls(
            volumes, torch.stack(points), labels=labels, spacing_mm=spacing_mm, strides=strides,
            names=[s.name for s in sources], ras_from_centre=torch.stack(matrices),
        )  # fmt: skip
