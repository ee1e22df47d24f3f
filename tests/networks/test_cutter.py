"""The cutter: shapes, rows apart, chances of colours by hand, a loss that falls; and the policy beside it."""

from __future__ import annotations

import pytest
import torch

from medrl.networks.cutter import CHANNELS, Cutter, CuttingNetworks, cut_loss
from medrl.networks.image_vector_policy import ImageVectorPolicy
from medrl.networks.policy import unroll


@pytest.fixture
def cutter():
    torch.manual_seed(0)
    return Cutter(widths=(8, 16))


@pytest.mark.parametrize("size", [12, 32])
def test_rows_do_not_mix(cutter, size, torch_generator):
    pairs = torch.rand(3, len(CHANNELS), size, size, generator=torch_generator)
    logits = cutter(pairs)
    assert logits.shape == (3, 1, size, size)
    torch.testing.assert_close(logits[1:2], cutter(pairs[1:2]), rtol=1e-4, atol=1e-5)


def test_the_loss_by_hand():
    truth = torch.tensor([[[[1.0, 0.0]]]])
    even = cut_loss(torch.zeros(1, 1, 1, 2), truth)
    assert float(even) == pytest.approx(0.693147 + 1 - (2 * 0.5 + 1) / (2 + 1), abs=1e-5)
    assert float(cut_loss(torch.tensor([[[[20.0, -20.0]]]]), truth)) == pytest.approx(0.0, abs=1e-5)


def test_it_learns_to_cut_by_colour(cutter, torch_generator):
    pairs = torch.rand(8, len(CHANNELS), 16, 16, generator=torch_generator)
    truth = (pairs[:, :1] > 0.5).float()
    optimizer = torch.optim.Adam(cutter.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = cut_loss(cutter(pairs), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_policy_answers_both_choices(recurrent, torch_generator):
    policy = ImageVectorPolicy(channels=5, size=8, features=6, actions=(9, 3), hidden=16, width=4, recurrent=recurrent)
    assert policy.nvec == (9, 3)
    image = torch.randint(0, 255, (4, 3, 5, 8, 8), dtype=torch.uint8, generator=torch_generator)
    seen = {"image": image, "vector": torch.rand(4, 3, 6, generator=torch_generator)}
    whole = unroll(policy, seen, policy.initial_memory(3, "cpu"), torch.zeros(4, 3, dtype=torch.bool))
    assert whole.logits.shape == (4, 3, 12)
    memory = policy.initial_memory(3, "cpu")
    for t in range(4):
        one = policy({name: value[t] for name, value in seen.items()}, memory)
        torch.testing.assert_close(one.logits, whole.logits[t], rtol=1e-4, atol=1e-5)
        memory = one.memory
    assert ImageVectorPolicy(channels=1, size=8, features=6, actions=4).nvec is None
    networks = CuttingNetworks(cutter=Cutter(), policy=policy)
    assert networks(torch.rand(1, 10, 32, 32)).shape == (1, 1, 32, 32)
