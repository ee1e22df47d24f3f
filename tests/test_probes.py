"""What the other tests measure with can fail."""

from __future__ import annotations

import pytest
import torch
from probes import NoHostSync


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.equal(x, x),
    ],
)
def test_the_host_is_caught_waiting(wait):
    values = torch.arange(4.0)
    with pytest.raises(AssertionError, match="the host wait"), NoHostSync():
        wait(values)
    wait(values)  # outside it may


def test_work_that_does_not_wait_passes():
    with NoHostSync():
        total = (torch.ones(3) * 2).cumsum(0)
    assert total.tolist() == [2, 4, 6]
