"""The episode on whole volumes: same millimetres for every way of storing one patient."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from blobs import SHAPE_MM, STEP_MM, BlobNet, anatomy, blob_volume

from medrl.geometry.similarity import apply, compose, rotation
from medrl.inference.landmarks import LandmarkInferer
from medrl.types import FOUND, MISSING

SHIFT = torch.tensor([30.0, -12.0, 55.0])
# not the anatomy's own shape: larger, and each point off its place
OFF = torch.tensor([[3.0, -2.0, 2.5], [-3.0, 2.0, 2.0], [2.0, 3.0, -2.0], [-2.5, -2.0, -3.0]])
POINTS = (1.1 * SHAPE_MM + OFF).double() + SHIFT


def grid(spacing, turn=(0.0, 0.0, 0.0), codes="RAS", side_mm=130.0):
    """A grid round the points: ras_from_voxel and shape."""
    spacing = np.array(spacing, float)
    shape = tuple(np.ceil(side_mm / spacing).astype(int))
    affine = np.eye(4)
    affine[:3, :3] = rotation(torch.tensor(turn, dtype=torch.float64)).numpy() @ np.diag(spacing)
    affine[:3, 3] = (SHIFT + SHAPE_MM.mean(0)).numpy() - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = affine @ nib.orientations.inv_ornt_aff(change, shape)
    order = np.argsort(change[:, 0])
    return torch.tensor(affine), tuple(int(shape[n]) for n in order)


@pytest.mark.parametrize("policy", ["jumps", "moves", "both"])
@pytest.mark.parametrize(
    ("spacing", "turn", "codes"),
    [
        ((2, 2, 2), (0, 0, 0), "RAS"), ((2, 2, 2), (0, 0, 0), "LAS"), ((2, 2, 2), (0, 0, 0), "PSR"),
        ((1.3, 1.3, 1.3), (0.3, -0.2, 0.25), "RAS"), ((1, 1, 3), (0, 0.2, 0), "LPS"),
    ],
)  # fmt: skip
def test_every_storage_gives_the_same_points(policy, spacing, turn, codes):
    affine, shape = grid(spacing, turn, codes)
    inferer = LandmarkInferer(anatomy(), policy=policy, step_mm=STEP_MM)
    found = inferer.locate(blob_volume(affine, shape, POINTS), affine, BlobNet())
    places = torch.tensor([point.position_mm for point in found])
    assert (places - POINTS).norm(dim=1).max() < 0.8  # the grid is 2 mm
    assert [point.status for point in found] == [FOUND] * 4
    assert [point.label for point in found] == anatomy().labels
    for point in found:
        assert point.steps > 0
        assert np.allclose(point.path_mm[-1], point.position_mm, atol=1e-3)
        assert np.linalg.norm(point.path_mm[0] - point.position_mm) > 1.0  # it really walked


def test_a_point_outside_the_field_of_view_is_missing():
    affine, shape = grid((2, 2, 2))
    volume = blob_volume(affine, shape, POINTS)
    inverse = torch.linalg.inv(affine)
    cut = int((apply(inverse, POINTS)[3, 2] + apply(inverse, POINTS)[1, 2]) / 2)  # between the lowest two points
    affine = affine.clone()
    affine[:3, 3] += affine[:3, 2] * cut
    found = LandmarkInferer(anatomy(), step_mm=STEP_MM).locate(volume[:, :, cut:].contiguous(), affine, BlobNet())
    assert [point.status for point in found] == [FOUND, FOUND, FOUND, MISSING]
    assert found[3].presence < 0.5 < min(point.presence for point in found[:3])


def test_equal_calls_give_equal_answers():
    affine, shape = grid((2, 2, 2))
    volume = blob_volume(affine, shape, POINTS)
    first, second = (LandmarkInferer(anatomy(), step_mm=STEP_MM).locate(volume, affine, BlobNet()) for _ in range(2))
    assert first == second


def test_a_turned_head_is_found_by_its_template():
    from medrl.data.anatomy import learn_anatomy
    from medrl.data.cases import Source
    from medrl.inference.pose import search_pose

    affine, shape = grid((2, 2, 2))
    generator = torch.Generator().manual_seed(1)
    sources, turns = [], [(0, 0, 0), (0.4, 2.0, -0.3), (2.6, 0.2, 0.4), (-1.0, 1.0, 1.5)]
    centre = SHIFT + SHAPE_MM.mean(0)
    for turn in turns:
        matrix = compose(rotation(torch.tensor(turn, dtype=torch.float64)), 1.0, torch.zeros(3))
        points = apply(matrix, POINTS - centre) + centre
        sources.append(Source(str(turn), blob_volume(affine, shape, points, 8.0), affine, points))
    known, _ = learn_anatomy(
        sources[:2], labels=anatomy().labels, spacing_mm=2.0, margin_mm=14.0, turned=True, window=[0.0, 254.0]
    )
    for source in sources[2:]:
        frame, score = search_pose(source.volume, source.ras_from_voxel, known, generator)
        places = apply(torch.linalg.inv(frame), known.shape_mm.double())
        assert score > 0.8
        assert (places - source.points_ras).norm(dim=1).max() < 3.0


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy"):
        LandmarkInferer(anatomy(), policy="random")
