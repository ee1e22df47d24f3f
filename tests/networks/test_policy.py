"""Policies: rows, sequences and memories, the shortcut, 2D and 3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medrl.networks.convolutional_policy import ConvolutionalPolicyNet
from medrl.networks.policy import PolicyNet, PolicyOutput, choices, count_actions, restart, unroll


def image_net(dims: int, **options) -> ConvolutionalPolicyNet:
    size = (13, 10, 9)[:dims]
    return ConvolutionalPolicyNet(channels=2, actions=5, size=size, dims=dims, width=4, hidden=16, **options)


NETWORKS = {
    "dense": (lambda: PolicyNet(features=7, actions=5, hidden=16), (7,)),
    "gru": (lambda: PolicyNet(features=7, actions=5, hidden=16, recurrent=True), (7,)),
    "image": (lambda: image_net(2, recurrent=False), (2, 13, 10)),
    "image gru": (lambda: image_net(2), (2, 13, 10)),
    "volume gru": (lambda: image_net(3), (2, 13, 10, 9)),
    "volume lstm": (lambda: image_net(3, cell="lstm"), (2, 13, 10, 9)),
}


@pytest.fixture(params=list(NETWORKS))
def built(request, torch_generator):
    """A network whose heads are not small, and observations (T, B, ...) of it."""
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    network = build()
    nn.init.normal_(network.policy_head[-1].weight)
    return network, torch.randn(4, 3, *shape, generator=torch_generator)


def test_answers_have_the_shapes_of_the_contract(built):
    network, seen = built
    output = network(seen[0])
    assert output.logits.shape == (3, 5)
    assert output.value.shape == (3,)
    memory = network.initial_memory(3, "cpu")
    assert (memory is None) == (not network.recurrent) == (output.memory is None)
    if memory is not None:
        assert output.memory.shape == memory.shape
        torch.testing.assert_close(network(seen[0], memory).logits, output.logits)


def test_rows_do_not_leak_into_each_other(built):
    network, seen = built
    memory = network(seen[0]).memory
    together = network(seen[1], memory)
    for row in range(3):
        pick = slice(row, row + 1)
        alone = network(seen[1, pick], None if memory is None else memory[pick])
        for one, all_ in zip(alone, together, strict=True):
            if one is not None:
                torch.testing.assert_close(one[0], all_[row], atol=1e-5, rtol=1e-4)


def test_the_memory_changes_the_answer(built):
    network, seen = built
    if network.recurrent:
        first, other = (network(seen[n]).memory for n in (0, 1))
        assert (network(seen[2], first).logits - network(seen[2], other).logits).abs().max() > 1e-4


@pytest.mark.parametrize("plain", [False, True])
def test_sequences_equal_single_steps(built, plain):
    """Also for networks that have no more than the contract's two methods."""
    network, seen = built
    reset = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]).bool()
    memory = network(seen[3]).memory
    whole = unroll(Plain(network) if plain else network, seen, memory, reset)
    assert whole.logits.shape == (4, 3, 5)
    for t in range(4):
        single = network(seen[t], memory)
        torch.testing.assert_close(whole.logits[t], single.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole.value[t], single.value, atol=1e-5, rtol=1e-4)
        memory = restart(single.memory, network.initial_memory(3, "cpu"), reset[t])
    if network.recurrent:
        torch.testing.assert_close(whole.memory, memory, atol=1e-5, rtol=1e-4)
        assert (memory[2] == 0).all()
        assert not (memory[1] == 0).all()
    else:
        assert whole.memory is None


class Plain(nn.Module):
    """A policy as foreign code would write it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def initial_memory(self, batch: int, device: str) -> torch.Tensor | None:
        return self.network.initial_memory(batch, device)

    def forward(self, observation: torch.Tensor, memory: torch.Tensor | None = None) -> PolicyOutput:
        return self.network(observation, memory)


def test_gradients_stop_at_a_reset():
    torch.manual_seed(0)
    network = PolicyNet(features=3, actions=2, recurrent=True, hidden=8)
    seen = torch.randn(3, 1, 3, requires_grad=True)
    reset = torch.tensor([[False], [True], [False]])
    unroll(network, seen, network.initial_memory(1, "cpu"), reset).value[2].sum().backward()
    assert seen.grad[2].abs().sum() > 0
    assert (seen.grad[:2] == 0).all()
    seen.grad = None
    unroll(network, seen, network.initial_memory(1, "cpu"), torch.zeros_like(reset)).value[2].sum().backward()
    assert (seen.grad.abs().sum(-1) > 0).all()


def test_a_policy_starts_by_climbing(torch_generator):
    network = PolicyNet(features=9, actions=5, shortcut=slice(3, 7), scale=20.0)
    seen = torch.randn(50, 9, generator=torch_generator)
    gains = torch.cat([seen[:, 3:7], torch.zeros(50, 1)], 1)  # the last action, to stop, gains nothing
    logits = network({"vector": seen}).logits
    assert torch.equal(logits.argmax(1), gains.argmax(1))
    torch.testing.assert_close(logits, 20 * gains, atol=0.5, rtol=0)
    assert gains.argmax(1).unique().numel() == 5
    network.log_scale.data.fill_(-30.0)  # positive whatever it becomes
    assert network.log_scale.exp() > 0


def test_the_first_policy_is_even():
    for build, shape in NETWORKS.values():
        torch.manual_seed(0)
        chance = build()(torch.randn(20, *shape)).logits.detach().softmax(-1)
        assert float((chance - 0.2).abs().max()) < 0.01


def test_bytes_are_read_as_fractions():
    network = image_net(2)
    image = torch.randint(256, (2, 2, 13, 10), dtype=torch.uint8)
    torch.testing.assert_close(network({"image": image}).value, network(image.float() / 255).value)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="6 of 9 entries for 5 actions"):
        PolicyNet(features=9, actions=5, shortcut=slice(3, 9))
    with pytest.raises(ValueError, match="scale"):
        PolicyNet(features=9, actions=5, shortcut=slice(3, 8), scale=0.0)
    with pytest.raises(ValueError, match="cell"):
        image_net(2, cell="elman")
    with pytest.raises(ValueError, match="dims"):
        ConvolutionalPolicyNet(channels=1, actions=2, size=(5, 5, 5), dims=2)


def test_actions_as_spaces_tell_them():
    assert (choices(np.int64(5)), count_actions(np.int64(5))) == (None, 5)
    assert (choices(5), count_actions(5)) == (None, 5)
    assert (choices(np.array([9, 3])), count_actions([9, 3])) == ((9, 3), 12)
