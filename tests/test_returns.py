"""Returns against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from medrl.returns import gae, leave_one_out, n_step, td_target


def flags(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_n_step_by_hand():
    reward = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    ended = flags([0, 0, 1], [0, 1, 0], [0, 0, 0])
    total, steps, discount = n_step(reward, ended, 0.5)
    assert total.tolist() == [1 + 1 + 1, 1 + 1, 1]
    assert steps.tolist() == [3, 2, 1]
    assert discount.tolist() == [0.125, 0.25, 0.5]


def test_n_step_of_several_heads_ignores_what_follows_the_end():
    reward = torch.tensor([[[1.0, 10.0]], [[torch.nan, torch.inf]]])  # (2, 1, 2): the second step is another episode
    total, steps, _ = n_step(reward, flags([1], [0]), 0.9)
    assert total.tolist() == [[1.0, 10.0]]
    assert steps.tolist() == [1]


def test_td_target_bootstraps_a_truncated_step_only():
    reward, discount = torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.9])
    terminated = torch.tensor([True, False])
    assert td_target(reward, discount, terminated, torch.tensor([10.0, 10.0])).tolist() == pytest.approx([1.0, 10.0])


def test_gae_by_hand():
    # gamma = decay = 0.5; one row, three steps
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    value = torch.tensor([[4.0], [2.0], [1.0]])
    after = torch.tensor([[2.0], [1.0], [8.0]])
    none = torch.zeros(3, 1, dtype=torch.bool)
    # delta: 1 + 0.5 * 2 - 4 = -2; 2 + 0.5 * 1 - 2 = 0.5; 3 + 0.5 * 8 - 1 = 6
    # advantage: 6; 0.5 + 0.25 * 6 = 2; -2 + 0.25 * 2 = -1.5
    advantage = gae(reward, value, after, none, none, gamma=0.5, decay=0.5)
    assert advantage[:, 0].tolist() == [-1.5, 2.0, 6.0]
    last = flags([0], [1], [0])
    # terminated at the second step: delta 2 - 2 = 0, and nothing flows over the end
    advantage = gae(reward, value, after, last, last, gamma=0.5, decay=0.5)
    assert advantage[:, 0].tolist() == [-2.0, 0.0, 6.0]
    # truncated there: the bootstrap stays, but nothing flows over the end
    advantage = gae(reward, value, after, none, last, gamma=0.5, decay=0.5)
    assert advantage[:, 0].tolist() == [-2 + 0.25 * 0.5, 0.5, 6.0]


def test_gae_with_decay_one_is_the_return_less_the_value(torch_generator):
    reward = torch.rand(6, 4, generator=torch_generator)
    value = torch.rand(7, 4, generator=torch_generator)
    end = torch.zeros(6, 4, dtype=torch.bool)
    end[-1] = True
    advantage = gae(reward, value[:-1], value[1:], end, end, gamma=0.9, decay=1.0)
    total = torch.zeros(4)
    for t in range(5, -1, -1):
        total = reward[t] + 0.9 * total
        torch.testing.assert_close(advantage[t], total - value[t])


@pytest.mark.filterwarnings("ignore")
def test_gae_equals_torchrls(torch_generator):
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    reward, value, after = torch.randn(3, 12, 5, generator=torch_generator)
    ended = torch.rand(12, 5, generator=torch_generator) < 0.3
    terminated = ended & (torch.rand(12, 5, generator=torch_generator) < 0.5)
    ours = gae(reward, value, after, terminated, ended, gamma=0.9, decay=0.8)
    parts = [x.T[..., None] for x in (value, after, reward)]  # (B, T, 1)
    theirs, _ = functional.generalized_advantage_estimate(
        0.9, 0.8, *parts, done=ended.T[..., None], terminated=terminated.T[..., None]
    )
    torch.testing.assert_close(ours, theirs[..., 0].T)


def test_leave_one_out_by_hand():
    score = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert leave_one_out(score, 3).tolist() == [1 - 4.0, 2 - 3.5, 6 - 1.5, 0.0, 0.0, 0.0]
    assert leave_one_out(torch.tensor([3.0, 4.0]), 1).tolist() == [3.0, 4.0]
