"""Feature networks: unit vectors where the image is, whatever its size; the pairs that a bundle holds."""

from __future__ import annotations

import pytest
import torch

from medrl.networks.features import CoarseNet, FeaturePair, PairNetworks

SMALL = {"channels": (4, 8), "features": 5}


def test_shapes_and_lengths(torch_generator):
    torch.manual_seed(0)
    image = torch.randn(2, 2, 12, 8, 16, generator=torch_generator)
    seen = CoarseNet(**SMALL)(image)
    assert seen.shape == (2, 5, 6, 4, 8)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(2, *seen.shape[2:]), atol=1e-4, rtol=0)


def test_what_moves_by_whole_strides_moves_its_features(torch_generator):
    """Away from the borders: a place is described by what is round it (GroupNorm sees all, so all moves round)."""
    torch.manual_seed(0)
    network = CoarseNet(**SMALL).eval()
    image = torch.randn(1, 2, 32, 24, 24, generator=torch_generator)
    with torch.no_grad():
        first = network(image)[0]
        second = network(image.roll(4, 2))[0].roll(-2, 1)
    assert float((first * second).sum(0)[6:-6].min()) > 0.98


def test_each_modality_has_its_own_network(torch_generator):
    torch.manual_seed(0)
    pair = FeaturePair(CoarseNet(**SMALL), CoarseNet(**SMALL))
    image = torch.randn(1, 2, 8, 8, 8, generator=torch_generator)
    assert torch.equal(pair(image, "mr"), pair.networks["mr"](image))
    assert not torch.allclose(pair(image, "ct"), pair(image, "mr"))
    assert {name.split(".")[0] for name in pair.state_dict()} == {"networks", "log_scale"}


def test_what_a_bundle_has_learned():
    networks = PairNetworks(coarse=SMALL, policy=torch.nn.Linear(2, 2))
    networks.coarse.log_scale.data.fill_(1.0)
    assert networks.scale.tolist() == pytest.approx(2.718282)
    assert not networks.scale.requires_grad
    other = PairNetworks(coarse=SMALL, policy=torch.nn.Linear(2, 2))
    other.load_state_dict(networks.state_dict())
    assert other.scale.tolist() == networks.scale.tolist()
    assert {name.split(".")[0] for name in networks.state_dict()} == {"coarse", "policy"}


def test_products_of_a_ct_and_an_mr_image(torch_generator):
    networks = PairNetworks(coarse=SMALL)
    images = torch.randn(2, 4, 8, 12, 8, generator=torch_generator)
    expected = (networks.coarse(images[:, :2], "ct") * networks.coarse(images[:, 2:], "mr")).sum(1, keepdim=True)
    assert torch.equal(networks(images), expected)
    assert expected.shape == (2, 1, 4, 6, 4)
