"""The Gymnasium faces of the registration tasks."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import medrl  # registers the environments
from medrl.gym_registration import field_image_registration, field_registration


def test_numbers_pass_the_checks():
    assert medrl.__version__
    env = gymnasium.make("medrl/Registration-v0", patients=2, max_steps=4, disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == (3 * 43 + 5 + 27,)


@pytest.mark.parametrize(("size", "shape"), [((24, 20), (160, 192, 3)), ((12, 10, 8), None)])
def test_images_pass_the_checks(size, shape):
    env = gymnasium.make(
        "medrl/ImageRegistration-v0", patients=2, size=size, render_mode="rgb_array", disable_env_checker=True
    )
    check_env(env.unwrapped)
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert shape is None or picture.shape == shape


def test_many_rows_at_once():
    envs = gymnasium.make_vec("medrl/ImageRegistration-v0", num_envs=10, task=field_image_registration(size=(16, 16)))
    first, _ = envs.reset(seed=0)
    assert first.shape == (10, 3, 16, 16)
    _, reward, terminated, truncated, info = envs.step(np.arange(10) % 9)
    assert terminated.tolist() == [n == 8 for n in range(10)]
    assert not truncated.any()
    assert (info["score"] <= 0).all()
    assert reward.shape == (10,)
    envs = gymnasium.make_vec("medrl/Registration-v0", num_envs=3, task=field_registration(patients=2, scaled=False))
    assert envs.reset(seed=0)[0].shape == (3, 3 * 37 + 5 + 27)
