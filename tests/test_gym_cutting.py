"""The Gymnasium faces of the cutting task, whose actions are two choices."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from cutting_examples import small_cutting_task
from gymnasium.utils.env_checker import check_env

import medrl  # registers the environments


def test_it_passes_the_checks():
    assert medrl.__version__
    env = gymnasium.make(
        "medrl/Cutting-v0", videos=2, frames=4, moves=2, render_mode="rgb_array", disable_env_checker=True
    )
    check_env(env.unwrapped)
    assert env.action_space == gymnasium.spaces.MultiDiscrete([9, 3])
    env.reset(seed=0)
    env.step(np.array([8, 2]))
    picture = env.render()
    assert picture.shape == (6 * 64, 6 * 64, 3)
    assert picture.dtype == np.uint8


def test_many_rows_at_once():
    envs = gymnasium.make_vec("medrl/Cutting-v0", num_envs=5, task=small_cutting_task())
    first, _ = envs.reset(seed=0)
    assert first["image"].shape == (5, 8, 8, 8)
    ended = 0
    for _ in range(8):
        action = np.tile([8, 1], (5, 1))
        assert envs.action_space.contains(action)
        _, reward, terminated, truncated, info = envs.step(action)
        assert reward.shape == (5,)
        assert not truncated.any()
        assert (info["score"] >= 0).all()
        ended += int(terminated.sum())
    assert ended >= 5


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_tensors_stay_tensors(mode):
    envs = gymnasium.make_vec(
        "medrl/Cutting-v0", num_envs=3, task=small_cutting_task(), tensors="torch", autoreset_mode=mode
    )
    envs.reset(seed=0)
    for _ in range(8):
        _, reward, *_ = envs.step(torch.tensor([[8, 0], [0, 1], [8, 2]]))
    assert isinstance(reward, torch.Tensor)
