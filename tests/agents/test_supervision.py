"""What one crop teaches beside actions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medrl.agents.base import every_value, own_value, schedule
from medrl.agents.supervision import OffsetSupervision, near_weight
from medrl.networks.concentric import Heads


def targets() -> dict[str, torch.Tensor]:
    """Two crops, two landmarks: at hand, 9 mm off, beyond the field of view, unknown."""
    offset = torch.tensor([[[0.0, 0, 0], [9.0, 0, 0]], [[0.0, 0, -9], [5.0, 5, 5]]])
    known = torch.tensor([[True, True], [True, False]])
    present = torch.tensor([[True, True], [False, False]])
    return {"offset_mm": offset, "known": known, "present": present}


def heads(offset_mm: torch.Tensor, spread_mm: float = 1.0, presence: float = 0.0) -> Heads:
    return Heads(torch.zeros(2, 2, 1, 7), offset_mm, torch.full((2, 2), spread_mm), torch.full((2, 2), presence))


def test_near_weights_sum_to_one_and_leave_out_the_unknown():
    weight = near_weight(targets(), 3.0)
    assert weight.flatten().tolist() == pytest.approx([1 / 1.5, 0.25 / 1.5, 0.25 / 1.5, 0.0])
    nothing = {"offset_mm": torch.zeros(2, 2, 3), "known": torch.zeros(2, 2, dtype=torch.bool)}
    assert not near_weight(nothing, 3.0).any()


def test_parts_by_hand():
    guess = targets()["offset_mm"].clone()
    guess[0, 1] += torch.tensor([3.0, 0, 0])
    guess[1, 1] = 1e4  # its truth is unknown
    _, parts = OffsetSupervision(near_mm=3.0)(heads(guess, spread_mm=2.0), targets())
    assert float(parts["offset"]) == pytest.approx(3.0 * (0.25 / 1.5) / 3.0)
    assert float(parts["spread"]) == pytest.approx((3 / 2.0 + 3 * math.log(2.0)) / 4)
    assert float(parts["presence"]) == pytest.approx(3 * math.log(2.0) / 4)


@pytest.mark.parametrize("error_mm", [0.5, 4.0])
def test_best_spread_is_the_error(error_mm):
    guess = targets()["offset_mm"] + torch.tensor([error_mm, 0, 0])
    losses = {s: float(OffsetSupervision()(heads(guess, s), targets())[1]["spread"]) for s in (0.5, 1.0, 2.0, 4.0, 8.0)}
    assert min(losses, key=losses.get) == error_mm


def test_spread_does_not_move_the_offset():
    guess = targets()["offset_mm"].clone().requires_grad_()
    only = OffsetSupervision(spread=1.0, presence=0.0)
    loss, _ = only(heads(guess), targets())
    loss.backward()
    assert not guess.grad.any()  # the guess is right; a spread of 1 mm asks for nothing of it


def test_schedule_warms_up_and_falls():
    assert schedule(0, 1000) == pytest.approx(0.01)
    assert schedule(99, 1000) == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.099)))
    assert schedule(1000, 1000) == schedule(5000, 1000) == pytest.approx(0.02)


def test_values_of_networks_with_and_without_heads():
    flat = torch.arange(6.0).reshape(2, 3)
    plain = torch.nn.Linear(1, 1)
    assert every_value(plain, flat, None).shape == (2, 1, 3)
    assert torch.equal(own_value(flat[:, None], None), flat)
    several = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(every_value(plain, several, None), several)
    own = own_value(several, {"head": torch.tensor([1, 0])})
    assert own.tolist() == [[3, 4, 5], [6, 7, 8]]
