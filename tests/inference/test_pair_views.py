"""Views of a pair put together: frames, places and truths agree with patient space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from probes import stored_image

from medrl.data.pair_cases import PairCases
from medrl.data.pair_images import SPACING_MM, prepare
from medrl.geometry.mind import describe
from medrl.geometry.poses import from_matrices, transform
from medrl.geometry.quaternions import from_vector, to_matrix
from medrl.inference.pair_views import View, fixed_frame, middle_of, pair_of, view
from medrl.networks.features import PairNetworks

COUNTS = (20, 60)
SMALL = {"channels": (4, 8), "features": 5}


def ellipsoid(place):
    return torch.where((place / torch.tensor([40.0, 30.0, 35.0])).norm(dim=1) < 1, 3 * place[:, 0] + 50, -1000.0)


def matrix_of(vector, shift, scale=1.0) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * to_matrix(from_vector(torch.tensor(vector, dtype=torch.float64)))
    matrix[:3, 3] = torch.tensor(shift)
    return matrix


TRUTH = matrix_of((0.3, -0.2, 0.1), (4.0, -6.0, 2.0), 1.1)
FRAME = matrix_of((0.1, 0.5, -0.4), (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def networks() -> PairNetworks:
    torch.manual_seed(0)
    return PairNetworks(coarse=SMALL).eval()


@pytest.fixture(scope="module")
def views(networks) -> tuple[View, View]:
    """One body, and the same one where TRUTH moves it to, seen along other axes."""
    generator = np.random.default_rng(0)
    back = torch.linalg.inv(TRUTH)
    moved = stored_image(lambda p: ellipsoid(p @ back[:3, :3].T + back[:3, 3]), generator, (3.0, 2.5, 4.0))
    first, second = prepare(stored_image(ellipsoid, generator, (2.0, 3.0, 3.5))), prepare(moved)
    return view(first, networks), view(second, networks, frame_from_ras=FRAME)


def put_together(views, **options):
    return pair_of(*views, counts=COUNTS, generator=torch.Generator().manual_seed(0), ras_truth=TRUTH, **options)


def test_shapes(views):
    fixed, _ = views
    shape = tuple(fixed.tissue.shape)
    assert all(side % 4 == 0 for side in shape)
    assert fixed.coarse.shape == (5, *(side // 2 for side in shape))
    assert 0 <= float(fixed.grey.min()) < float(fixed.grey.max()) <= 1
    volume = 4 / 3 * 3.14159 * 40 * 30 * 35 / SPACING_MM**3
    assert int(fixed.tissue.sum()) == pytest.approx(volume, rel=0.08)


def test_the_middle_is_that_of_the_body(views):
    for seen, centre in zip(views, ([0.0, 0, 0], TRUTH[:3, 3].tolist()), strict=True):
        place = middle_of(seen).double() - seen.grid_from_ras[:3, 3]
        ras = torch.linalg.inv(seen.grid_from_ras[:3, :3]) @ place
        assert ras.tolist() == pytest.approx(centre, abs=1.0)
    frame = fixed_frame(views[0])
    assert (frame[:3, :3] @ torch.zeros(3).double() + frame[:3, 3]).abs().max() < 1.0


def test_places_hold_what_the_fixed_image_has_there(views):
    pair, fixed = put_together(views, mind=True), views[0]
    found = []
    for place, volume, spacing_mm in ((pair.coarse.place_mm, fixed.coarse[0], 8.0), (pair.fine_mm, fixed.grey, 4.0)):
        index = (place + middle_of(fixed)) / spacing_mm + (torch.tensor(volume.shape) - 1) / 2
        assert (index - index.round()).abs().max() < 1e-3
        found.append(tuple(index.round().long().T))
    coarse, index = found
    assert [len(axis) for axis in (coarse[0], index[0])] == list(COUNTS)
    assert torch.equal(fixed.coarse[(slice(None), *coarse)].T, pair.coarse.feature)
    assert torch.equal(pair.grey, fixed.grey[index])
    assert torch.equal(pair.mind, describe(fixed.grey)[(slice(None), *index)].T)
    assert put_together(views).mind is None
    # all are in or near the body
    assert (pair.fine_mm / torch.tensor([40.0, 30.0, 35.0])).norm(dim=1).max() < 1.5


def test_the_truth_leads_from_tissue_to_the_same_tissue(views):
    lattice = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 12
    pair = put_together(views, lattice_ras=lattice)
    torch.testing.assert_close(pair.to_ras(pair.moving_from_fixed), TRUTH, atol=1e-4, rtol=0)
    cases = PairCases([pair], scale=1.0)
    seen = cases.look(torch.zeros(1), cases.truth)
    # grey values tell the place along x: 600 HU over 200 mm
    assert float(seen.inside) > 0.99
    there = from_matrices(pair.moving_from_fixed[None])
    moved = cases.table["grey"].sample(torch.zeros(1), transform(there, pair.fine_mm))[0][0, :, 0]
    deep = (pair.fine_mm / torch.tensor([40.0, 30.0, 35.0])).norm(dim=1) < 0.75
    torch.testing.assert_close(moved[deep], pair.grey[deep], atol=0.04, rtol=0)
    # the lattice is where it was said to be
    place = pair.lattice_mm.double() @ torch.linalg.inv(pair.fixed_from_ras)[:3, :3].T
    torch.testing.assert_close(place + torch.linalg.inv(pair.fixed_from_ras)[:3, 3], lattice, atol=1e-4, rtol=0)


def test_one_generator_one_choice_of_places(views):
    assert torch.equal(put_together(views).fine_mm, put_together(views).fine_mm)
