"""Quantile Q-learning, by numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from medrl.agents.dqn import quantile_q_loss
from medrl.networks.concentric import ConcentricNet
from medrl.networks.fovea import FoveaNet


def test_quantile_loss_by_hand():
    value, following = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[2.0, 4.0]]]])
    loss, error = quantile_q_loss(
        value, torch.tensor([0]), torch.tensor([[1.0]]), torch.tensor([[0.5]]), torch.tensor([[False]]), following,
        following,
    )  # fmt: skip
    # targets 1 + 0.5 * (2, 4) = (2, 3); gaps of quantile 0.25: 2, 3, Huber 1.5, 2.5; of 0.75: 1, 2, Huber 0.5, 1.5
    assert loss.item() == pytest.approx(0.25 * 2.0 + 0.75 * 1.0)
    assert error.item() == pytest.approx(2.5 - 0.5)


def test_a_terminal_step_has_no_future():
    value, following = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2, 4), 100.0)
    loss, error = quantile_q_loss(
        value, torch.tensor([1]), torch.tensor([[0.5]]), torch.tensor([[0.9]]), torch.tensor([[True]]), following,
        following,
    )  # fmt: skip
    assert error.item() == pytest.approx(0.5)
    # every gap is 0.5, Huber 0.125, shares 1/8, 3/8, 5/8, 7/8
    assert loss.item() == pytest.approx(0.125 * 2.0)


@pytest.mark.parametrize("network", [FoveaNet(landmarks=3, quantiles=8), ConcentricNet(landmarks=3, quantiles=8)])
def test_values_are_the_mean_of_the_quantiles(network):
    network.eval()
    image = torch.randint(0, 256, (2, 3, 17, 17, 17), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        output = network(image)
    scale = torch.tensor([0, 2])
    quantiles = network.action_quantiles(output, scale)
    assert quantiles.shape == (2, 3, 7, 8)
    assert torch.allclose(network.action_values(output, scale), quantiles.mean(-1))
    assert torch.allclose(network.split(output).q[1, :, 2], quantiles[1].mean(-1))
