"""Pairs as an agent sees them: errors by hand, and the truth looks best."""

from __future__ import annotations

import math

import pytest
import torch
from probes import small_pair_cases

from medrl.data import pair_cases
from medrl.data.pair_cases import BINS, PairCases, Seen, _hat, _information
from medrl.data.pair_fields import draw_pair
from medrl.geometry.poses import Nudges, Pose, after_every, nudged, nudges, to_matrices
from medrl.geometry.quaternions import from_vector
from medrl.types import InputError

EVERY = nudges(shifts_mm=(20.0, 10.0), turns_degrees=(40.0, 20.0), log_scales=(0.3, 0.2))


@pytest.fixture(scope="module")
def cases() -> PairCases:
    return small_pair_cases(counts=(96, 400), features=16, side=10, mind=True)


def look_around(cases: PairCases) -> tuple[Seen, Seen]:
    """The truth of every case, and the truth after every nudge."""
    index, count = torch.arange(len(cases)), len(EVERY.log_scale)
    after = after_every(cases.truth, EVERY)
    flat = Pose(*(value.flatten(0, 1) for value in after))
    return cases.look(index, cases.truth), cases.look(index.repeat_interleave(count), flat)


def test_errors_by_hand(cases):
    index = torch.arange(3)
    change = Nudges(from_vector(torch.zeros(3, 3)), torch.zeros(3), torch.tensor([[0.0, 3, 4]]).expand(3, 3))
    error = cases.error_mm(index, nudged(cases.truth, change))
    torch.testing.assert_close(error, 5 / cases.truth.log_scale.exp())  # in mm of the fixed image
    assert cases.error_mm(index, cases.truth).tolist() == [0, 0, 0]
    # half a turn about z moves each place by twice its distance from the axis
    half = from_vector(torch.tensor([[0.0, 0, math.pi]]))
    turned = nudged(cases.truth, Nudges(half, torch.zeros(1), torch.zeros(1, 3)))
    axis = to_matrices(cases.truth)[:, 2, :3]
    axis = axis / axis.norm(dim=1, keepdim=True)
    arm = torch.linalg.cross(cases.lattice_mm, axis[:, None].expand_as(cases.lattice_mm)).norm(dim=-1).mean(1)
    torch.testing.assert_close(cases.error_mm(index, turned), 2 * arm, atol=1e-3, rtol=0)
    assert cases.error_mm(index, after_every(cases.truth, EVERY)).shape == (3, len(EVERY.log_scale))


def test_an_unknown_truth_has_no_error(torch_generator):
    pairs = [draw_pair(torch_generator, side=6) for _ in range(2)]
    pairs[1].moving_from_fixed = None
    cases = PairCases(pairs, scale=1.0)
    assert cases.error_mm(torch.arange(2), cases.truth).isnan().tolist() == [False, True]


def test_the_truth_looks_best(cases):
    now, then = look_around(cases)
    count = len(EVERY.log_scale)
    for name in ("score", "information"):
        best = getattr(then, name).reshape(3, count).amax(1)
        assert (getattr(now, name) > best + 0.05).all(), name
    assert (now.inside > 0.98).all()
    # unit features and the same at every place: products are 1 but for the interpolation
    product = cases.products(torch.arange(3), cases.truth)
    assert (product > 0.85).float().mean() > 0.95
    assert product.max() <= 1 + 1e-5
    torch.testing.assert_close(now.score, torch.full((3,), 20.0), atol=2.0, rtol=0)


def test_parts_of_a_look(cases):
    index = torch.arange(3)
    both, alone = cases.look(index, cases.truth), cases.look(index, cases.truth, information=False)
    assert torch.equal(both.score, alone.score)
    torch.testing.assert_close(both.score, cases.products(index, cases.truth).mean(1) * 20)
    assert not alone.information.any()
    assert not alone.inside.any()
    inside, information = cases.information(index, cases.truth)
    assert torch.equal(both.information, information)
    assert torch.equal(both.inside, inside)


@pytest.mark.parametrize("together", [1, 5, 1000])
def test_many_poses_a_row_look_as_one_by_one(cases, monkeypatch, together):
    """However few of them fit into the cache together."""
    monkeypatch.setattr(pair_cases, "CACHED", together * 96)
    index, every = torch.tensor([2, 0, 1, 0]), Pose(*(value[[2, 0, 1, 0]] for value in cases.truth))
    poses = after_every(every, EVERY)
    seen, product, alike = (look(index, poses) for look in (cases.look, cases.products, cases.self_similarity))
    assert (seen.score.shape, product.shape) == ((4, 28), (4, 28, 96))
    for number in range(28):
        pose = Pose(*(value[:, number] for value in poses))
        for many, one in zip(seen, cases.look(index, pose), strict=True):
            torch.testing.assert_close(many[:, number], one)
        torch.testing.assert_close(product[:, number], cases.products(index, pose))
        torch.testing.assert_close(alike[:, number], cases.self_similarity(index, pose))


def test_nothing_is_seen_outside_of_the_moving_image(cases):
    away = cases.truth._replace(translation_mm=cases.truth.translation_mm + 500)
    seen = cases.look(torch.arange(3), away)
    for value in (*seen, cases.products(torch.arange(3), away)):
        assert not value.any()


def test_information_by_hand():
    """Two equally frequent values on the bins: ln 2 where they agree, 0 where they are independent or outside."""
    fixed = _hat(torch.tensor([[0.0, 0, 1, 1]])).mT
    everywhere = torch.ones(1, 1, 4, dtype=torch.bool)
    for moving, wanted in (([0.0, 0, 1, 1], math.log(2)), ([1.0, 1, 0, 0], math.log(2)), ([0.0, 1, 0, 1], 0)):
        assert float(_information(fixed, torch.tensor([[moving]]), everywhere)) == pytest.approx(wanted, abs=1e-5)
    assert float(_information(fixed, torch.tensor([[[0.0, 0, 1, 1]]]), ~everywhere)) == 0
    half, moving = torch.tensor([[[True, False, True, False]]]), torch.tensor([[[0.0, 1, 1, 0]]])
    assert float(_information(fixed, moving, half)) == pytest.approx(math.log(2), abs=1e-5)


def test_a_value_between_two_bins_counts_for_both():
    share = _hat(torch.tensor([0.0, 1.0, 3.25 / (BINS - 1), 9.0, -1.0])).T
    assert share.sum(1).tolist() == pytest.approx([1] * 5)
    assert share[2, 3:5].tolist() == pytest.approx([0.75, 0.25], abs=1e-5)
    assert share[[0, 1, 3, 4], [0, BINS - 1, BINS - 1, 0]].tolist() == [1, 1, 1, 1]


def test_self_similarity_is_best_at_the_truth(torch_generator):
    """For grids that lie alike; the contrast of the moving image is another, and not monotonous."""
    pair = draw_pair(torch_generator, counts=(8, 500), degrees=5.0, scale=1.0, mind=True)
    cases = PairCases([pair], scale=1.0)
    zero = torch.zeros(1, dtype=torch.int16)
    best = cases.self_similarity(zero, cases.truth)
    around = after_every(cases.truth, nudges(shifts_mm=(8.0,), turns_degrees=(15.0,), log_scales=(0.1,)))
    flat = Pose(*(value[0] for value in around))
    assert (cases.self_similarity(zero.expand(14), flat) < best - 0.002).all()
    away = cases.truth._replace(translation_mm=cases.truth.translation_mm + 500)
    assert float(cases.self_similarity(zero, away)) == pytest.approx(-float(pair.mind.square().mean()), abs=1e-6)


def test_self_similarity_needs_descriptors():
    cases = small_pair_cases(1)
    with pytest.raises(InputError, match="mind=True"):
        cases.self_similarity(torch.zeros(1), cases.truth)
