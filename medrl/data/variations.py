"""Random variations of annotated volumes: pose, size, shape, contrast, resolution, field of view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from medrl.data.cases import Cases, Source
from medrl.geometry.grids import OUTSIDE, grey_window, sample, smooth, thin, to_grey
from medrl.geometry.similarity import apply, compose, rotation


class Variations:
    """Draws varied copies of annotated volumes on one grid of the anatomical frame.

    Each draw composes the source's own ``frame_from_ras`` with a random rotation, size and smooth deformation
    (landmarks move along), then changes contrast (gamma, smooth bias, noise), resolution (blur along a random axis)
    and, with probability ``cut``, blanks all beyond a random plane or box: a cropped field of view.  A ``narrow``
    share of the draws keeps pose and size near the frame, as they are in a second pass that knows the pose.  Lengths
    not given follow from the spacing: deformations of 1 voxel, control points 17.5 apart, borders shifted by 12.5.
    """

    def __init__(
        self, sources: Sequence[Source], frames: Sequence[Tensor], *, box_mm: tuple[Tensor, Tensor], spacing_mm: float,
        multiple: int = 4, rotation_degrees: float = 12.0, log_size: float = 0.1, narrow: float = 0.5,
        deformation_mm: float | None = None, control_mm: float | None = None, log_gamma: float = 0.35,
        bias: float = 0.25,
        noise: float = 0.04, cut: float = 0.3, shift_mm: float | None = None, window: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        deformation_mm = spacing_mm if deformation_mm is None else deformation_mm
        control_mm = 17.5 * spacing_mm if control_mm is None else control_mm
        shift_mm = 12.5 * spacing_mm if shift_mm is None else shift_mm
        self.spacing_mm = spacing_mm
        self.points = [s.points_ras.double() for s in sources]
        self.frames = [f.double() for f in frames]
        self.volumes, self.affines, self.windows = [], [], []
        for source in sources:
            self.windows.append(grey_window(source.volume, window))
            volume, affine = thin(source.volume, source.ras_from_voxel.double(), spacing_mm)
            self.volumes.append(volume)
            self.affines.append(affine)
        lower, upper = box_mm
        count = ((upper - lower) / spacing_mm / multiple).ceil().long() * multiple
        self.shape = tuple(count.tolist())
        self.centre = (lower + upper).double() / 2
        self.rotation, self.log_size, self.narrow = rotation_degrees * torch.pi / 180, log_size, narrow
        self.deformation_mm = deformation_mm
        self.control = tuple(max(3, round(n * spacing_mm / control_mm) + 1) for n in self.shape)
        self.log_gamma, self.bias, self.noise, self.cut, self.shift_mm = log_gamma, bias, noise, cut, shift_mm

    def draw(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One varied copy of source ``index``: a uint8 grid and its landmarks (L, 3), mm from the grid's centre."""
        frame_from_ras = self._pose(generator) @ self.frames[index]
        # the grid's border must not tell where the landmarks are: it lies elsewhere in every copy
        frame_from_ras[:3, 3] += self.shift_mm * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)
        frame_from_grid = torch.eye(4, dtype=torch.float64)
        frame_from_grid[:3, :3] *= self.spacing_mm
        offset = (torch.tensor(self.shape, dtype=torch.float64) - 1) / 2 * self.spacing_mm
        frame_from_grid[:3, 3] = self.centre - offset
        voxel_from_frame = torch.linalg.inv(self.affines[index]) @ torch.linalg.inv(frame_from_ras)
        strength = self.deformation_mm * 1.5 * torch.rand((), generator=generator)
        control = strength * torch.randn(1, 3, *self.control, generator=generator)  # mm in the frame
        field = interpolate(control, size=self.shape, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
        shift = field @ voxel_from_frame[:3, :3].T.float()
        volume = sample(self.volumes[index], voxel_from_frame @ frame_from_grid, self.shape, shift)
        points = apply(frame_from_ras, self.points[index]) - self.centre
        points = self._deform(points.float(), control)
        volume = self._contrast(volume, self.windows[index], generator)
        grid = to_grey(volume, 0.0, 1.0)
        if torch.rand((), generator=generator) < 0.25:
            grid = smooth(grid)
        return self._crop(grid, generator), points

    def cases(
        self, count: int, generator: torch.Generator, *, labels: Sequence[str], strides: tuple[int, ...]
    ) -> Cases:
        """A pool of ``count`` varied copies, sources in turn."""
        pairs = [self.draw(n % len(self.volumes), generator) for n in range(count)]
        return Cases(
            [v for v, _ in pairs], torch.stack([p for _, p in pairs]), labels=labels, spacing_mm=self.spacing_mm,
            strides=strides,
        )  # fmt: skip

    def refresh(self, cases: Cases, indices: Sequence[int], generator: torch.Generator) -> None:
        """Draw some cases of a pool anew, each from a random source."""
        for index in indices:
            source = int(torch.randint(len(self.volumes), (), generator=generator))
            cases.replace(index, *self.draw(source, generator))

    def _pose(self, generator: torch.Generator) -> Tensor:
        part = 0.25 if torch.rand((), generator=generator) < self.narrow else 1.0
        turn = rotation(part * self.rotation * torch.randn(3, generator=generator, dtype=torch.float64))
        size = torch.exp(part * self.log_size * torch.randn((), generator=generator, dtype=torch.float64))
        about = compose(turn, size, torch.zeros(3))
        about[:3, 3] = self.centre - about[:3, :3] @ self.centre
        return about

    def _deform(self, points: Tensor, control: Tensor) -> Tensor:
        """Where the points go: the grid place y that reads source place y + u(y) = points, by fixed-point rounds."""
        half = torch.tensor(self.shape, dtype=torch.float32) * self.spacing_mm / 2 - self.spacing_mm / 2
        place = points
        for _ in range(8):
            unit = (torch.nan_to_num(place) / half).flip(-1)[None, :, None, None]
            u = grid_sample(control, unit, padding_mode="border", align_corners=True)[0, :, :, 0, 0].T
            place = points - u
        return place

    def _contrast(self, volume: Tensor, window: tuple[float, float], generator: torch.Generator) -> Tensor:
        low, high = window
        value = ((volume - low) / (high - low)).clamp(0, 1)
        gamma = torch.exp(self.log_gamma * (2 * torch.rand((), generator=generator) - 1))
        gain = 1 + 0.2 * (2 * torch.rand((), generator=generator) - 1)
        value = gain * value.pow(gamma)
        if self.bias > 0:
            coarse = 1 + self.bias * (torch.rand(1, 1, 3, 3, 3, generator=generator) - 0.5) * 2
            value = value * interpolate(coarse, size=self.shape, mode="trilinear", align_corners=True)[0, 0]
        if self.noise > 0:
            level = self.noise * torch.rand((), generator=generator) ** 2
            block = torch.randn(*(n // 2 + 1 for n in self.shape), generator=generator)
            fine = block.repeat_interleave(2, 0).repeat_interleave(2, 1)[: self.shape[0], : self.shape[1]]
            fine = fine.repeat_interleave(2, 2)[..., : self.shape[2]]
            value = value + level * fine
        if torch.rand((), generator=generator) < 0.2:
            value = _thick(value, int(torch.randint(3, (), generator=generator)))
        return value

    def _crop(self, grid: Tensor, generator: torch.Generator) -> Tensor:
        if torch.rand((), generator=generator) >= self.cut:
            return grid
        for _ in range(1 + int(torch.rand((), generator=generator) < 0.3)):
            axis = int(torch.randint(3, (), generator=generator))
            place = int((0.15 + 0.7 * torch.rand((), generator=generator)) * grid.shape[axis])
            low = bool(torch.rand((), generator=generator) < 0.5)
            part = grid.narrow(axis, 0, place) if low else grid.narrow(axis, place, grid.shape[axis] - place)
            part.fill_(OUTSIDE)
        return grid


def _thick(value: Tensor, axis: int) -> Tensor:
    """Average three neighbours along an axis, centred: slices three times as thick, on the same grid."""
    moved = value.movedim(axis, -1)
    padded = torch.cat([moved[..., :1], moved, moved[..., -1:]], -1)
    return ((padded[..., :-2] + moved + padded[..., 2:]) / 3).movedim(-1, axis)
