"""The Gymnasium faces of the seeding task."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import medrl  # registers the environments
from medrl.gym import phantom_seeding

NAME = "medrl/Seeding-v0"


@pytest.fixture(scope="module")
def task():
    return phantom_seeding(patients=2, shape=(40, 40), grid=(8, 8), max_steps=4)


def test_gymnasium_checks_pass():
    env = gymnasium.make(
        NAME, patients=2, shape=(40, 40), grid=(8, 8), max_steps=4, render_mode="rgb_array", disable_env_checker=True
    )
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (320, 320, 3)


@pytest.mark.filterwarnings("ignore:Your observation")
def test_stable_baselines3_dqn_trains(task):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gymnasium.make(NAME, task=task)
    checker.check_env(env)
    model = stable_baselines3.DQN(
        "MlpPolicy", env, learning_starts=20, buffer_size=100, batch_size=8, device="cpu", seed=0,
        policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    model.learn(60)
    assert model.num_timesteps == 60


def test_many_rows_at_once(task):
    envs = gymnasium.make_vec(NAME, num_envs=16, task=task)
    first, _ = envs.reset(seed=0)
    assert first.shape == (16, 6, 40, 40)
    assert first.dtype == np.uint8
    envs.action_space.seed(0)
    _, _, terminated, truncated, info = envs.step(np.array([128] + [k for k in range(15)]))
    assert terminated.tolist() == [True] + [False] * 15
    assert not truncated.any()
    assert 0 <= info["score"].min() <= info["score"].max() <= 1
    assert medrl.__version__
