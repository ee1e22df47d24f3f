"""Agreement of end points, by numbers worked by hand."""

from __future__ import annotations

import torch

from medrl.inference.consensus import agree, shape_posterior


def test_an_outlier_is_left_out():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [100, 0, 0]])[:, None]
    agreed = agree(points, torch.ones(5, 1))
    assert torch.allclose(agreed.position_mm[0], torch.tensor([0.5, 0.5, 0.0]))
    assert torch.allclose(agreed.scatter_mm, torch.tensor([0.5**0.5]))
    assert torch.allclose(agreed.kept, torch.tensor([0.8]))


def test_weights_pull():
    points = torch.tensor([[0.0, 0, 0], [3.0, 0, 0]])[:, None]
    assert torch.allclose(agree(points, torch.tensor([[2.0], [1.0]])).position_mm[0, 0], torch.tensor(1.0))


def test_shape_posterior_trusts_by_doubt():
    points, shape = torch.tensor([[4.0, 0, 0], [4.0, 0, 0]]), torch.zeros(2, 3)
    pulled = shape_posterior(points, torch.tensor([1.0, 3.0]), shape, torch.tensor([1.0, 1.0]))
    assert torch.allclose(pulled[:, 0], torch.tensor([2.0, 0.4]))
