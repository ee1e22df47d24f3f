"""Networks of landmark agents: shapes, parts, TorchScript, and what they must tell apart."""

from __future__ import annotations

import io

import pytest
import torch

from medrl.networks.concentric import ConcentricNet, LandmarkNet, dueling_values, grey_to_float
from medrl.networks.fovea import FoveaNet

SIZE = 9


def build(name: str, landmarks: int = 3) -> LandmarkNet:
    torch.manual_seed(0)
    if name == "fovea":
        return FoveaNet(landmarks=landmarks, strides=(1, 2, 4), spacing_mm=2.0, size=SIZE, width=4, hidden=16).eval()
    options = {"plain": {"dueling": False}, "communicating": {"communicate": True}}.get(name, {})
    return ConcentricNet(landmarks=landmarks, levels=3, size=SIZE, width=4, hidden=16, **options).eval()


@pytest.fixture(params=["concentric", "plain", "communicating", "fovea"])
def network(request) -> LandmarkNet:
    with torch.random.fork_rng():
        return build(request.param)


@pytest.fixture
def image(torch_generator) -> torch.Tensor:
    return torch.randint(256, (4, 3, SIZE, SIZE, SIZE), generator=torch_generator, dtype=torch.uint8)


def test_one_tensor_out_and_its_parts(network, image):
    out = network(image)
    assert out.shape == (4, 3, 3 * 7 + 5)
    assert out.dtype == torch.float32
    heads = network.split(out)
    assert heads.q.shape == (4, 3, 3, 7)
    assert heads.offset_mm.shape == (4, 3, 3)
    assert heads.spread_mm.shape == heads.presence.shape == (4, 3)
    scale = torch.tensor([2, 0, 1, 2])
    values = network.action_values(out, scale)
    assert values.shape == (4, 3, 7)
    assert torch.equal(values, heads.q[torch.arange(4), :, scale])


def test_spread_is_always_positive(network):
    out = torch.full((1, 3, 26), -1e4)
    assert float(network.split(out).spread_mm.min()) > 0


def test_script_saves_and_answers_alike(network, image):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(image), network(image))


def test_weights_alone_restore_it(network, image):
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    expected = network(image)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(network(image), expected)


def test_outside_is_told_from_the_darkest_tissue(network):
    dark = torch.ones(1, 3, SIZE, SIZE, SIZE, dtype=torch.uint8)
    with torch.no_grad():
        tissue, outside = network(dark), network(torch.zeros_like(dark))
    assert float((tissue - outside).abs().max()) > 1e-3 * float(tissue.abs().max())
    assert grey_to_float(torch.tensor([0, 1, 255], dtype=torch.uint8)).tolist() == [-0.5, 0.0, 1.0]


def test_grey_values_may_be_floats(network, image):
    torch.testing.assert_close(network(image.float()), network(image))


def test_rows_do_not_leak(network, image):
    together = network(image)
    for row in range(4):
        torch.testing.assert_close(network(image[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)


def test_dueling_values_are_centred_on_the_value(image):
    raw = torch.tensor([[1.0, 2.0, 6.0, 10.0]])[..., None]  # advantages 1, 2, 6 and value 10
    assert dueling_values(raw, True)[..., 0].tolist() == [[8.0, 9.0, 13.0]]
    assert dueling_values(raw, False)[..., 0].tolist() == [[1.0, 2.0, 6.0]]
    with torch.random.fork_rng():
        network = build("concentric")
    value = network.value_head(network.hidden(network.trunk(grey_to_float(image)))).reshape(4, 3, 3, 8)[..., -1]
    torch.testing.assert_close(network.split(network(image)).q.mean(-1), value)


def test_heads_hear_each_other_only_if_they_communicate(image):
    with torch.random.fork_rng():
        network, deaf = build("communicating"), build("concentric")
    with torch.no_grad():
        network.listen.weight.mul_(100)
        before = network(image)
        network.talk.bias[:32] += 1  # what the first head says
        change = (network(image) - before).abs().amax((0, 2))
    assert float(change.min()) > 1e-3  # all heard it
    assert isinstance(deaf.talk, torch.nn.Identity)


def test_gradients_reach_every_parameter(network, image):
    network.train()
    out = network(image)
    loss = out.square().sum()
    if hasattr(network, "place_loss"):
        out, place = network.locate(image)
        loss = out.square().sum() + network.place_loss(place, torch.zeros(4, 3, 3)).sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
