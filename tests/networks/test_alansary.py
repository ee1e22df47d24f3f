from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medrl.agents.base import every_value, own_value
from medrl.networks.alansary import AlansaryNet


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_peer_form_has_the_published_size_and_cost() -> None:
    network = AlansaryNet()
    with FlopCounterMode(display=False) as flops:
        values = network(torch.zeros(1, 4, 45, 45, 45, dtype=torch.uint8))
    assert values.shape == (1, 6)
    assert count(network) == 550_860
    # 43^3 * 32 * 500 + 19^3 * 32 * 4000 + 8^3 * 64 * 2048 + 2^3 * 64 * 1728 + dense, two operations each
    by_hand = (
        43**3 * 32 * 500 + 19**3 * 32 * 4000 + 8**3 * 64 * 2048 + 2**3 * 64 * 1728 + 512 * 256 + 256 * 128 + 128 * 6
    )
    assert flops.get_total_flops() == 2 * by_hand


def test_padded_form_follows_the_paper() -> None:
    network = AlansaryNet(same=True)
    convolutions = 4 * 125 * 32 + 32 + 32 * 125 * 32 + 32 + 32 * 64 * 64 + 64 + 64 * 27 * 64 + 64 + 4
    dense = 8000 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128 + 128 * 6 + 6
    assert count(network) == convolutions + dense == 4_647_370


def test_dueling_centres_the_advantage() -> None:
    network = AlansaryNet(channels=1, size=25, dueling=True, same=True)
    image = torch.randint(0, 256, (3, 1, 25, 25, 25), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = network(image)
    feature = network.trunk(image / 255)
    assert values.shape == (3, 6)
    torch.testing.assert_close(values.mean(1), network.value(feature)[:, 0])
    assert values.std(1).min() > 0


def test_grey_values_are_scaled_and_every_crop_is_seen() -> None:
    network = AlansaryNet(channels=2).eval()
    image = torch.zeros(1, 2, 45, 45, 45, dtype=torch.uint8)
    first, second = image.clone(), image.clone()
    first[:, 0, 20:25], second[:, 1, 20:25] = 255, 255
    answers = [network(x) for x in (image, first, second, first.float())]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2])
    torch.testing.assert_close(answers[1], answers[3])


def test_scripts_and_serves_as_a_value_network() -> None:
    network = AlansaryNet(channels=1, dueling=True).eval()
    image = torch.randint(0, 256, (2, 1, 45, 45, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    output = network(image)
    torch.testing.assert_close(torch.jit.script(network)(image), output)
    observation = {"image": image, "head": torch.zeros(2, dtype=torch.long)}
    torch.testing.assert_close(own_value(every_value(network, output, observation), observation), output)


def test_too_small_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="25 voxels are too small"):
        AlansaryNet(size=25)
