"""Similarity fits recover known transforms, shrug off a wild point, and average shapes."""

from __future__ import annotations

import pytest
import torch

from medrl.geometry.similarity import apply, compose, fit, fit_robust, mean_shape, random_rotations, rotation


def points(generator: torch.Generator, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) * 40


def random_matrix(generator: torch.Generator) -> torch.Tensor:
    scale = torch.exp(0.3 * torch.randn((), generator=generator, dtype=torch.float64))
    return compose(random_rotations(1, generator)[0], scale, torch.randn(3, generator=generator) * 100)


def test_fit_recovers_known_transforms(torch_generator):
    for _ in range(20):
        source, matrix = points(torch_generator), random_matrix(torch_generator)
        torch.testing.assert_close(fit(apply(matrix, source), source), matrix)


def test_fit_without_scale_is_rigid(torch_generator):
    source, matrix = points(torch_generator), random_matrix(torch_generator)
    rigid = fit(apply(matrix, source), source, scaled=False)
    torch.testing.assert_close(rigid[:3, :3] @ rigid[:3, :3].T, torch.eye(3, dtype=torch.float64))
    scale = torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
    torch.testing.assert_close(rigid[:3, :3] * scale, matrix[:3, :3])


def test_fit_never_mirrors(torch_generator):
    source = points(torch_generator)
    matrix = fit(source * torch.tensor([-1.0, 1, 1]), source)
    assert float(torch.linalg.det(matrix[:3, :3])) > 0


def test_fit_ignores_points_without_weight(torch_generator):
    source, matrix = points(torch_generator), random_matrix(torch_generator)
    target = apply(matrix, source)
    target[5:] += 1000
    torch.testing.assert_close(fit(target, source, torch.tensor([1.0] * 5 + [0.0] * 3)), matrix)


def test_points_on_a_line_match_their_centroid_only():
    source = torch.tensor([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]])
    matrix = fit(source + torch.tensor([5.0, 6, 7]), source)
    torch.testing.assert_close(matrix, compose(torch.eye(3), 1.0, torch.tensor([5.0, 6, 7])))


def test_robust_fit_resists_an_outlier(torch_generator):
    for _ in range(10):
        source, matrix = points(torch_generator, 10), random_matrix(torch_generator)
        target = apply(matrix, source) + 0.5 * torch.randn(10, 3, generator=torch_generator)
        target[3] += 80
        keep = torch.arange(10) != 3
        error = [
            (apply(f(target, source), source) - apply(matrix, source))[keep].norm(dim=1).max()
            for f in (fit, fit_robust)
        ]
        assert float(error[1]) < 1.5
        assert float(error[1]) < float(error[0]) / 5


def test_rotation_vectors():
    quarter = rotation(torch.tensor([0, 0, torch.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.0, 1, 0]).double())
    torch.testing.assert_close(rotation(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))


def test_random_rotations_are_rotations_spread_evenly(torch_generator):
    turns = random_rotations(4000, torch_generator)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand(4000, 3, 3))
    assert float(torch.linalg.det(turns).min()) == pytest.approx(1.0)
    assert float(turns.mean(0).abs().max()) < 0.04  # every axis points everywhere
    assert float((turns[:, 2, 2].sort().values - torch.linspace(-1, 1, 4000)).abs().max()) < 0.06  # evenly on a sphere


def shapes(generator: torch.Generator, *, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    base = points(generator)
    base = base - base.mean(0)
    out = []
    for _ in range(6):
        matrix = random_matrix(generator)
        if not turned:
            matrix[:3, :3] = torch.eye(3) * torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
        out.append(apply(matrix, base))
    return base, torch.stack(out)


def test_mean_shape_is_invariant_to_rotations_of_the_cases(torch_generator):
    base, cases = shapes(torch_generator, turned=True)
    present = torch.ones(6, 8, dtype=torch.bool)
    mean = mean_shape(cases, present).double()
    size = torch.stack([torch.cdist(c, c).mean() for c in cases]).log().mean().exp() / torch.cdist(base, base).mean()
    torch.testing.assert_close(torch.cdist(mean, mean), torch.cdist(base, base) * size, rtol=1e-4, atol=1e-3)
    matrix = fit(base, mean)  # no mirroring either
    torch.testing.assert_close(apply(matrix, mean), base, rtol=1e-4, atol=1e-3)
    turned = torch.stack([c @ r.T for c, r in zip(cases, random_rotations(6, torch_generator), strict=True)])
    again = mean_shape(turned, present).double()
    torch.testing.assert_close(torch.cdist(again, again), torch.cdist(mean, mean), rtol=1e-4, atol=1e-3)


def test_mean_shape_keeps_the_patient_axes_where_cases_share_them(torch_generator):
    base, cases = shapes(torch_generator, turned=False)
    mean = mean_shape(cases, torch.ones(6, 8, dtype=torch.bool)).double()
    scale = torch.cdist(mean, mean).mean() / torch.cdist(base, base).mean()
    torch.testing.assert_close(mean, base * scale, rtol=1e-4, atol=1e-3)


def test_mean_shape_bears_missing_points_and_empty_cases(torch_generator):
    base, cases = shapes(torch_generator, turned=True)
    present = torch.ones(6, 8, dtype=torch.bool)
    present[0, 2] = present[1, 5] = present[1, 6] = False
    present[4] = False
    cases[~present] = torch.nan
    mean = mean_shape(cases, present).double()
    torch.testing.assert_close(apply(fit(base, mean), mean), base, rtol=1e-3, atol=0.1)
