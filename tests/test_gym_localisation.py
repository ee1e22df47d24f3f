"""The Gymnasium faces of localisation."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

import medrl  # registers the environments


def test_it_passes_the_checks_and_can_be_seen():
    assert medrl.__version__
    env = gymnasium.make(
        "medrl/Localisation-v0", pictures=4, max_steps=5, render_mode="rgb_array", disable_env_checker=True
    )
    check_env(env.unwrapped)
    first, info = env.reset(seed=0)
    assert first.shape == (2, 24, 24)
    assert 0 <= info["score"] <= 1
    assert env.render().dtype == np.uint8
    _, reward, terminated, _, _ = env.step(8)
    assert terminated
    assert reward in (3.0, -3.0)


def test_many_rows_at_once():
    envs = gymnasium.make_vec("medrl/Localisation-v0", num_envs=6, pictures=6, view=16)
    first, _ = envs.reset(seed=0)
    assert first.shape == (6, 2, 16, 16)
    _, reward, terminated, truncated, _ = envs.step(np.array([0, 1, 2, 3, 4, 8]))
    assert terminated.tolist() == [False] * 5 + [True]
    assert not truncated.any()
    assert set(np.abs(reward).tolist()) <= {0.0, 1.0, 3.0}
