"""Volumes on a canonical grid: axis-aligned in the patient's (or an anatomical) frame, isotropic, anti-aliased."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample

OUTSIDE = 0  # grey value of everything beyond the field of view; tissue and air take 1..255


def spacing_of(ras_from_voxel: Tensor) -> Tensor:
    """Voxel size (3,) in mm along the storage axes."""
    return ras_from_voxel[:3, :3].norm(dim=0)


def bounding_box(ras_from_voxel: Tensor, shape: Sequence[int], frame_from_ras: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (3,), (3,) in mm of the field of view in a frame; voxels are boxes, so half a voxel is added."""
    ends = torch.tensor(shape, dtype=torch.float64) - 0.5
    corners = torch.cartesian_prod(*(torch.tensor([-0.5, float(end)], dtype=torch.float64) for end in ends))
    matrix = frame_from_ras @ ras_from_voxel
    corners = corners @ matrix[:3, :3].T + matrix[:3, 3]
    return corners.amin(0), corners.amax(0)


def grey_window(volume: Tensor, window: Sequence[float] | None = None) -> tuple[float, float]:
    """Lower and upper intensity that become 1 and 255.

    With ``window`` None (MRI): from the darkest 1 % to 1.6 times the 90th percentile of the foreground, where
    foreground is all above the mean; so a skull-stripped brain and a whole head get alike tissue values.  Voxels that
    are not finite count nowhere.  ValueError if no finite voxel differs from the others.
    """
    if window is not None:
        return float(window[0]), float(window[1])
    sample = volume.flatten()
    sample = sample[:: max(1, len(sample) // 500_000)].float()
    sample = sample[sample.isfinite()]
    check_contrast(sample)
    low = torch.quantile(sample, 0.01)
    foreground = sample[sample > sample.mean()]
    high = low + 1.6 * (torch.quantile(foreground, 0.9) - low)
    return float(low), float(torch.maximum(high, low + 1e-6))


def check_contrast(volume: Tensor) -> None:
    """ValueError if a volume has no finite voxel, or only one value."""
    few = _finite(volume[tuple(slice(None, None, max(1, n // 32)) for n in volume.shape)])
    if few.numel() > 0 and few.amin() != few.amax():
        return  # some voxels differ: no need to read them all
    finite = _finite(volume)
    if finite.numel() == 0:
        raise ValueError("no voxel has a finite value")
    if finite.amin() == finite.amax():
        raise ValueError("all voxels have the same value")


def _finite(volume: Tensor) -> Tensor:
    return volume[volume.isfinite()] if volume.is_floating_point() else volume


def thin(volume: Tensor, ras_from_voxel: Tensor, spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Average blocks of voxels along axes that are at least twice as fine as ``spacing_mm``; returns volume, affine."""
    factor = [max(1, int(spacing_mm / s + 0.25)) for s in spacing_of(ras_from_voxel).tolist()]
    if max(factor) == 1:
        return volume, ras_from_voxel
    factor = [min(f, n) for f, n in zip(factor, volume.shape, strict=True)]
    kept = [n - n % f for n, f in zip(volume.shape, factor, strict=True)]
    # a remainder of less than one block stays on the far side; the affine is unchanged by it
    thinned = []
    for slab in volume[: kept[0], : kept[1], : kept[2]].split(factor[0] * 32):  # slab by slab: no float copy of it all
        thinned.append(avg_pool3d(slab[None, None].float(), tuple(factor))[0, 0])
    volume = torch.cat(thinned)
    voxel = torch.diag(torch.tensor([*map(float, factor), 1.0], dtype=torch.float64))
    voxel[:3, 3] = (torch.tensor(factor, dtype=torch.float64) - 1) / 2
    return volume, ras_from_voxel @ voxel


def sample(volume: Tensor, voxel_from_grid: Tensor, shape: tuple[int, int, int], shift: Tensor | None = None) -> Tensor:
    """Read a volume (X, Y, Z) trilinearly on a grid; returns float32 (shape) with NaN outside the field of view.

    ``voxel_from_grid`` (4, 4) maps grid indices to voxel indices of the volume; ``shift`` (shape, 3) is added to the
    voxel indices (a deformation).  Slab by slab, so that memory stays small.
    """
    size = torch.tensor(volume.shape, dtype=torch.float32, device=volume.device)
    matrix = voxel_from_grid.to(volume.device, torch.float32)
    axes = [torch.arange(n, dtype=torch.float32, device=volume.device) for n in shape]
    plane = axes[1][:, None, None] * matrix[:3, 1] + axes[2][None, :, None] * matrix[:3, 2] + matrix[:3, 3]
    source = volume[None, None].float()
    out = torch.empty(shape, dtype=torch.float32, device=volume.device)
    slab = max(1, 2_000_000 // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], slab):
        x = axes[0][start : start + slab]
        voxel = plane[None] + x[:, None, None, None] * matrix[:3, 0]
        if shift is not None:
            voxel = voxel + shift[start : start + slab]
        inside = ((voxel >= -0.5) & (voxel <= size - 0.5)).all(-1)
        unit = (2 * voxel + 1) / size - 1
        value = grid_sample(source, unit.flip(-1)[None], padding_mode="border", align_corners=False)[0, 0]
        out[start : start + slab] = torch.where(inside, value, torch.nan)
    return out


def to_grey(volume: Tensor, low: float, high: float) -> Tensor:
    """Quantise to uint8: NaN becomes OUTSIDE, ``low`` 1 and ``high`` 255."""
    grey = (1.5 + 254 * ((volume - low) / (high - low)).clamp(0, 1)).floor()
    return torch.nan_to_num(grey, nan=float(OUTSIDE)).to(torch.uint8)


def canonical(
    volume: Tensor,
    ras_from_voxel: Tensor,
    *,
    spacing_mm: float,
    frame_from_ras: Tensor | None = None,
    box_mm: tuple[Tensor, Tensor] | None = None,
    window: Sequence[float] | None = None,
    multiple: int = 4,
    largest: int = 40_000_000,
) -> tuple[Tensor, Tensor]:
    """Resample a volume (X, Y, Z) to a uint8 grid that is axis-aligned in a frame (default: patient RAS).

    Returns the grid and ``ras_from_centre`` (4, 4): RAS mm from mm in the frame, measured from the grid's centre.
    ``box_mm`` limits the grid to a box of the frame; its sides become multiples of ``multiple`` voxels.  A grid of
    more than ``largest`` voxels, or a volume without contrast, is refused with ValueError.
    """
    frame_from_ras = torch.eye(4, dtype=torch.float64) if frame_from_ras is None else frame_from_ras.double()
    ras_from_voxel = ras_from_voxel.double()
    scale = float(torch.linalg.det(frame_from_ras[:3, :3]).abs()) ** (1 / 3)
    check_contrast(volume)
    low, high = grey_window(volume, window)
    lower, upper = bounding_box(ras_from_voxel, tuple(volume.shape), frame_from_ras)
    if box_mm is not None:
        lower, upper = box_mm
    volume, ras_from_voxel = thin(volume, ras_from_voxel, spacing_mm / scale)
    count = ((upper - lower) / spacing_mm / multiple).ceil().clamp(min=1).long() * multiple
    if int(count.prod()) > largest:
        raise ValueError(f"a grid of {count.tolist()} voxels is too large; crop the volume or raise spacing_mm")
    centre = (lower + upper) / 2
    frame_from_grid = torch.eye(4, dtype=torch.float64) * spacing_mm
    frame_from_grid[3, 3] = 1
    frame_from_grid[:3, 3] = centre - (count - 1) / 2 * spacing_mm
    ras_from_frame = torch.linalg.inv(frame_from_ras)
    voxel_from_grid = torch.linalg.inv(ras_from_voxel) @ ras_from_frame @ frame_from_grid
    grid = to_grey(sample(volume, voxel_from_grid, tuple(count.tolist())), low, high)
    ras_from_centre = ras_from_frame.clone()
    ras_from_centre[:3, 3] = ras_from_frame[:3, :3] @ centre + ras_from_frame[:3, 3]
    return grid, ras_from_centre


def coarsen(grid: Tensor) -> Tensor:
    """Half the resolution of a uint8 grid with even sides, averaging the part inside the field of view."""
    value = grid[None, None].float()
    inside = (value != OUTSIDE).float()
    share = avg_pool3d(inside, 2)
    mean = avg_pool3d(value * inside, 2) / share.clamp(min=1e-6)
    return torch.where(share >= 0.5, mean.round().clamp(min=1), OUTSIDE).to(torch.uint8)[0, 0]


def smooth(grid: Tensor) -> Tensor:
    """Low-pass a uint8 grid with the binomial kernel (1, 2, 1) / 4 along each axis, inside the field of view only."""
    value = grid.float()
    inside = (grid != OUTSIDE).float()
    total, share = value * inside, inside
    for axis in range(3):
        total, share = _binomial(total, axis), _binomial(share, axis)
    mean = (total / share.clamp(min=1e-6)).round().clamp(min=1)
    return torch.where(grid != OUTSIDE, mean, OUTSIDE).to(torch.uint8)


def _binomial(value: Tensor, axis: int) -> Tensor:
    if value.shape[axis] < 2:
        return value
    out = value * 0.5
    n = value.shape[axis]
    out.narrow(axis, 1, n - 1).add_(value.narrow(axis, 0, n - 1), alpha=0.25)
    out.narrow(axis, 0, n - 1).add_(value.narrow(axis, 1, n - 1), alpha=0.25)
    # the missing neighbour beyond the border counts as nothing, for value and share alike
    return out
