"""The Gymnasium faces of the tracking tasks."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from track_examples import small_refinement_task, small_tracking_task

import medrl  # registers the environments
from medrl.geometry.track_views import LENGTH


def test_numbers_pass_the_checks():
    assert medrl.__version__
    env = gymnasium.make("medrl/Tracking-v0", videos=2, disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == (LENGTH,)
    assert env.action_space.n == 6


def test_pictures_pass_the_checks():
    env = gymnasium.make(
        "medrl/BoxRefinement-v0", videos=2, length=4, frames=2, size=12, render_mode="rgb_array",
        disable_env_checker=True,
    )  # fmt: skip
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().dtype == np.uint8


def test_many_rows_at_once():
    envs = gymnasium.make_vec("medrl/Tracking-v0", num_envs=10, task=small_tracking_task())
    first, _ = envs.reset(seed=0)
    assert first.shape == (10, LENGTH)
    _, _, terminated, _, info = envs.step(np.array([5, 3] * 5))
    assert terminated.tolist()[::2] == [True] * 5
    assert info["score"].shape == (10,)
    envs = gymnasium.make_vec("medrl/BoxRefinement-v0", num_envs=3, task=small_refinement_task())
    assert envs.reset(seed=0)[0]["image"].shape == (3, 6, 8, 8)
