"""Copies of a case stored in another way: flipped, permuted, oblique, thick slices, cropped; and how answers move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from landmark_scores import Answer, Method, ask, length, score
from report import markdown
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from medrl.data.cases import Source
from medrl.data.fields_of_view import crop_third
from medrl.geometry.grids import sample, spacing_of
from medrl.geometry.similarity import apply, rotation


def reorder(source: Source, axes: Sequence[int], flipped: Sequence[int]) -> Source:
    """The same voxels in another storage order: axes permuted, then some of the new axes reversed."""
    volume = source.volume.permute(*axes).flip(*flipped).contiguous()
    old_from_new = torch.zeros(4, 4, dtype=torch.float64)
    old_from_new[3, 3] = 1
    for new, old in enumerate(axes):
        old_from_new[old, new] = -1.0 if new in flipped else 1.0
        old_from_new[old, 3] = volume.shape[new] - 1.0 if new in flipped else 0.0
    return Source(source.name, volume, source.ras_from_voxel @ old_from_new, source.points_ras)


def flip(source: Source, generator: torch.Generator) -> Source:
    """Reverse the storage axis nearest to left-right: RAS becomes LAS and the other way round."""
    axis = int(source.ras_from_voxel[0, :3].abs().argmax())
    return reorder(source, (0, 1, 2), (axis,))


def permute(source: Source, generator: torch.Generator) -> Source:
    """Cycle the storage axes and reverse two of them."""
    return reorder(source, (1, 2, 0), (0, 1))


def turn(source: Source, generator: torch.Generator) -> Source:
    """Resample on a grid turned by 12 to 35 degrees about a random axis; the whole field of view stays in."""
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    degrees = 12 + 23 * torch.rand((), generator=generator, dtype=torch.float64)
    ras_from_turned = rotation(axis / axis.norm() * torch.deg2rad(degrees)) @ source.ras_from_voxel[:3, :3]
    ends = torch.tensor(source.volume.shape, dtype=torch.float64) - 1
    corners = torch.cartesian_prod(*torch.stack([torch.zeros(3, dtype=torch.float64), ends], 1))
    inside = apply(source.ras_from_voxel, corners) @ torch.linalg.inv(ras_from_turned).T  # turned voxels from RAS 0
    lowest = inside.amin(0)
    shape = ((inside.amax(0) - lowest).ceil().long() + 1).tolist()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = ras_from_turned
    matrix[:3, 3] = ras_from_turned @ lowest
    volume = sample(source.volume, torch.linalg.inv(source.ras_from_voxel) @ matrix, tuple(shape))
    return Source(source.name, torch.nan_to_num(volume, nan=float(source.volume.min())), matrix, source.points_ras)


def thicken(source: Source, generator: torch.Generator, *, factor: int = 3) -> Source:
    """Average ``factor`` slices into one along a random storage axis."""
    axis = int(torch.randint(3, (), generator=generator))
    size = [factor if a == axis else 1 for a in range(3)]
    rest = -source.volume.shape[axis] % factor
    padding = [n for a in (2, 1, 0) for n in (0, rest if a == axis else 0)]
    volume = avg_pool3d(pad(source.volume[None, None].float(), padding, mode="replicate"), size)[0, 0]
    old_from_new = torch.diag(torch.tensor([*map(float, size), 1.0], dtype=torch.float64))
    old_from_new[axis, 3] = (factor - 1) / 2
    return Source(source.name, volume, source.ras_from_voxel @ old_from_new, source.points_ras)


def trim(source: Source, generator: torch.Generator, *, margin_mm: float) -> Source:
    """Cut off background only: the box of all that is not dark, at least ``margin_mm`` round every landmark."""
    volume = source.volume.float()
    grey = volume.flatten()[:: max(1, volume.numel() // 500_000)]
    bright = (volume > grey.min() + 0.05 * (torch.quantile(grey, 0.995) - grey.min())).nonzero().double()
    known = source.points_ras.isfinite().all(1)
    voxel = apply(torch.linalg.inv(source.ras_from_voxel), source.points_ras[known])
    margin = margin_mm / spacing_of(source.ras_from_voxel)
    few, most = (bright.kthvalue(max(1, round(share * len(bright))), dim=0).values for share in (0.005, 0.995))
    lower = torch.minimum(few, voxel.amin(0) - margin).floor().clamp(min=0).long()
    upper = torch.maximum(most, voxel.amax(0) + margin).ceil().long() + 1
    part = source.volume[tuple(slice(a, b) for a, b in zip(lower.tolist(), upper.tolist(), strict=True))]
    matrix = source.ras_from_voxel.clone()
    matrix[:3, 3] = apply(matrix, lower.double())
    return Source(source.name, part.contiguous(), matrix, source.points_ras)


def make_variants(margin_mm: float) -> dict[str, Callable[[Source, torch.Generator], Source | None]]:
    """All ways to store a case; ``margin_mm`` is what cuts keep from every landmark."""
    return {
        "flipped": flip,
        "axes permuted": permute,
        "oblique 12-35°": turn,
        "slices x3": thicken,
        "background cropped": lambda source, generator: trim(source, generator, margin_mm=margin_mm),
        "a third cut off": lambda source, generator: crop_third(source, generator, margin_mm=margin_mm),
    }


def displacement(before: Answer, after: Answer) -> Tensor:
    """How far points moved between two copies of a case, in voxels of the finer spacing; both copies hold them."""
    finer = torch.minimum(*(spacing_of(a.source.ras_from_voxel).min() for a in (before, after)))
    moved = (before.positions() - after.positions()).norm(dim=1) / finer
    return moved[before.in_view() & after.in_view() & moved.isfinite()]


def score_variants(method: Method, originals: Sequence[Answer], *, margin_mm: float, seed: int = 0) -> dict[str, Any]:
    """Every variant's scores, with the displacement of points against the original's answers."""
    rows: dict[str, Any] = {}
    for number, (name, make) in enumerate(make_variants(margin_mm).items()):
        generator = torch.Generator().manual_seed(seed + number)
        copies = [make(original.source, generator) for original in originals]
        pairs = [(before, copy) for before, copy in zip(originals, copies, strict=True) if copy is not None]
        if not pairs:
            continue
        answers = ask(method, [copy for _, copy in pairs])
        moved = torch.cat([displacement(b, a) for (b, _), a in zip(pairs, answers, strict=True)])
        rows[name] = score(answers) | {
            "cases": len(pairs),
            "moved_median_voxels": float(moved.median()) if len(moved) else None,
            "moved_max_voxels": float(moved.max()) if len(moved) else None,
        }
    return rows


def write_variants_table(rows: dict[str, Any]) -> str:
    """The markdown table of all variants."""
    titles = (
        "variant", "cases", "moved, median voxels", "moved, max", "mean mm", "p95", "max", "missing in view",
        "sensitivity for absence", "specificity",
    )  # fmt: skip
    lines = []
    for name, row in rows.items():
        sensitivity = "-" if row["sensitivity"] is None else f"{row['sensitivity']:.3f} of {row['absent']}"
        lengths = (row[key] for key in ("moved_median_voxels", "moved_max_voxels", "mean_mm", "p95_mm", "max_mm"))
        missing = f"{row['missing']} / {row['points']}"
        lines.append(
            [name, str(row["cases"]), *map(length, lengths), missing, sensitivity, f"{row['specificity']:.3f}"]
        )
    return markdown(titles, lines)
