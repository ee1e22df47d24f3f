"""Cropped copies of annotated volumes, to train and test the decision that a landmark is absent."""

from __future__ import annotations

import torch

from medrl.data.cases import Source


def crop_third(source: Source, generator: torch.Generator, *, margin_mm: float) -> Source | None:
    """Cut off one slab, so that 15 to 60 % of the landmarks lie outside and none within ``margin_mm`` of the cut.

    The cut is drawn from all such cuts along the storage axes; None where there is none.  Landmarks keep their
    places, so those cut off lie outside the returned volume.
    """
    inverse = torch.linalg.inv(source.ras_from_voxel)
    known = source.points_ras.isfinite().all(1)
    voxel = source.points_ras[known] @ inverse[:3, :3].T + inverse[:3, 3]
    spacing = source.ras_from_voxel[:3, :3].norm(dim=0)
    choices = []
    for axis in range(3):
        for cut in range(4, source.volume.shape[axis] - 4):
            below = voxel[:, axis] < cut - 0.5
            gap = (voxel[:, axis] - (cut - 0.5)).abs().min() * spacing[axis]
            for low, gone in ((True, below), (False, ~below)):
                if gap >= margin_mm and 0.15 <= float(gone.float().mean()) <= 0.6:
                    choices.append((axis, cut, low))
    if not choices:
        return None
    axis, cut, low = choices[int(torch.randint(len(choices), (), generator=generator))]
    size = source.volume.shape[axis]
    volume = source.volume.narrow(axis, cut if low else 0, size - cut if low else cut)
    affine = source.ras_from_voxel.clone()
    if low:
        affine[:3, 3] += affine[:3, axis] * cut
    return Source(source.name, volume, affine, source.points_ras)
