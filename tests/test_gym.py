"""The Gymnasium faces, judged by Gymnasium's and Stable-Baselines3's own checkers."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from probes import NoHostSync, Probe, small_landmark_task

import medrl
from medrl.gym import SingleEnv, VectorEnv, phantom_task, planes
from medrl.types import rows

NAME = "medrl/Landmark-v0"
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


@pytest.fixture(scope="module")
def task():
    return phantom_task(patients=2, size=5, max_steps=8)


def test_importing_medrl_is_light():
    code = "import medrl, sys; print(medrl.__version__, 'torch' in sys.modules, 'monai' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [medrl.__version__, "False", "False"]


def test_gymnasium_checks_pass():
    check_env(gymnasium.make(NAME, size=5, max_steps=8, render_mode="rgb_array").unwrapped)


@pytest.mark.filterwarnings("ignore:Your observation image has an unconventional shape")
def test_stable_baselines3_checks_pass(task):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make(NAME, task=task))


def test_stable_baselines3_dqn_trains(task):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make(NAME, size=5, max_steps=20)
    model = stable_baselines3.DQN(
        "MultiInputPolicy", env, learning_starts=100, buffer_size=1000, batch_size=16, device="cpu", seed=0
    )
    model.learn(1000)
    assert model.num_timesteps == 1000
    action, _ = model.predict(env.reset(seed=1)[0], deterministic=True)
    assert env.action_space.contains(action.item())


def test_an_ended_episode_must_be_reset(task):
    env = SingleEnv(task)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    for number in range(8):
        *_, terminated, truncated, info = env.step(number % 2)
    assert (terminated, truncated) == (False, True)
    assert info["episode_length"] == 8
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_seeded_episodes_repeat_and_unseeded_do_not(task):
    starts = {env.reset(seed=seed)[0]["image"].tobytes() for seed in (None, None, 5, 5) for env in [SingleEnv(task)]}
    assert len(starts) == 3


@pytest.mark.parametrize("mode", MODES)
def test_make_vec(mode, task):
    env = gymnasium.make_vec(NAME, num_envs=3, task=task, autoreset_mode=mode)
    assert env.metadata["autoreset_mode"] is mode
    assert env.spec.id == NAME
    seen, info = env.reset(seed=1)
    assert env.observation_space.contains(seen)
    assert info["score"].shape == (3,)
    env.action_space.seed(0)
    for _ in range(30):
        seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(seen)
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert info["_score"].all()
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_vector_rows_follow_gymnasiums_own_loop(mode):
    """Every row equals a single environment under Gymnasium's SyncVectorEnv, ends and resets included."""
    task = Probe(lambda task, s, a, n: n.age * (a + 1.0), length=3)
    ours = VectorEnv(task, num_envs=2, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: SingleEnv(task)] * 2, autoreset_mode=mode)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for number in range(11):
        actions = np.array([number % 2, 1])
        mine, other = ours.step(actions), theirs.step(actions)
        assert mine[0][:, 1].tolist() == other[0][:, 1].tolist()  # ages; the signs are drawn
        for k in (1, 2, 3):
            assert mine[k].tolist() == other[k].tolist()
        assert set(mine[4]) == set(other[4])
        for key in ("episode_return", "episode_length", "_score"):
            assert mine[4][key].tolist() == other[4][key].tolist()
        if "final_obs" in mine[4]:
            assert mine[4]["_final_obs"].tolist() == other[4]["_final_obs"].tolist() == [True, True]
            assert [seen[1] for seen in mine[4]["final_obs"]] == [seen[1] for seen in other[4]["final_obs"]] == [3, 3]
            assert set(mine[4]["final_info"]) == set(other[4]["final_info"])
            for key in ("episode_return", "episode_length", "_score"):
                assert mine[4]["final_info"][key].tolist() == other[4]["final_info"][key].tolist()


class Slot(gymnasium.Env):
    """One slot of a vector environment of one row, as a single environment."""

    render_mode = None

    def __init__(self, vector: VectorEnv) -> None:
        self.vector = vector
        self.action_space, self.observation_space = vector.single_action_space, vector.single_observation_space

    def reset(self, *, seed=None, options=None):
        seen, info = self.vector.reset(seed=seed)
        return {k: v[0] for k, v in seen.items()}, {k: v[0] for k, v in info.items() if k[0] != "_"}

    def step(self, action):
        seen, reward, terminated, truncated, info = self.vector.step(np.array([action]))
        info = {k: v[0] for k, v in info.items() if k[0] != "_"}
        return {k: v[0] for k, v in seen.items()}, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


def test_single_environment_matches_a_slot():
    task = phantom_task(patients=2, size=5, max_steps=10)
    slot = Slot(VectorEnv(task, autoreset_mode=AutoresetMode.NEXT_STEP))
    check_environments_match(SingleEnv(task), slot, num_steps=100, seed=4)


def test_every_slot_plays_the_episode_of_a_single_environment(task):
    vector = VectorEnv(task, num_envs=3)
    vector.reset(seed=2)
    singles = []
    for row in range(3):
        single = SingleEnv(task)
        single.reset(seed=0)
        single.environment.state = rows(vector.environment.state, torch.tensor([row]))
        single.path = [single.environment.state]
        singles.append(single)
    generator = np.random.default_rng(0)
    for _ in range(8):
        actions = generator.integers(6, size=3)
        seen, reward, terminated, truncated, info = vector.step(actions)
        for row, single in enumerate(singles):
            alone = single.step(actions[row])
            assert alone[1:4] == (reward[row], terminated[row], truncated[row])
            shown = (
                info["final_obs"][row] if terminated[row] or truncated[row] else {k: v[row] for k, v in seen.items()}
            )
            assert np.array_equal(alone[0]["image"], shown["image"])
    assert truncated.all()


def test_reset_mask_resets_some_rows(task):
    for mode in MODES:
        env = VectorEnv(task, num_envs=4, autoreset_mode=mode)
        env.reset(seed=0)
        for _ in range(3):
            seen, *_ = env.step(np.array([0, 1, 2, 3]))
        mask = np.array([True, False, True, False])
        again, info = env.reset(options={"reset_mask": mask})
        assert info["_score"].tolist() == mask.tolist()
        assert np.array_equal(again["image"][~mask], seen["image"][~mask])
        assert not np.array_equal(again["image"][mask], seen["image"][mask])
        *_, info = env.step(np.array([0, 1, 2, 3]))
        assert info["episode_length"].tolist() == [1, 4, 1, 4]
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(options={"reset_mask": mask[:2]})


def test_next_step_shows_the_end_first_and_then_ignores_one_action(task):
    env = VectorEnv(task, num_envs=2, autoreset_mode="NextStep")
    env.reset(seed=0)
    for _ in range(8):
        seen, _, _, truncated, info = env.step(np.array([0, 1]))
    assert truncated.all()
    assert info["episode_length"].tolist() == [8, 8]
    ended, _ = env.reset(options={"reset_mask": np.array([False, True])})  # the other row still shows its end
    assert np.array_equal(ended["image"][0], seen["image"][0])
    _, reward, terminated, truncated, info = env.step(np.array([0, 1]))
    assert reward[0] == 0
    assert not (terminated | truncated).any()
    assert info["episode_length"].tolist() == [0, 1]


def test_torch_rows_equal_numpy_rows_and_never_make_the_host_wait():
    task = small_landmark_task()
    for mode in MODES:
        arrays, tensors = (VectorEnv(task, num_envs=4, autoreset_mode=mode, tensors=t) for t in ("numpy", "torch"))
        arrays.reset(seed=3)
        tensors.reset(seed=3)
        generator = torch.Generator().manual_seed(0)
        ended = 0
        for _ in range(40):
            action = torch.randint(7, (4,), generator=generator)
            mine, other = tensors.step(action), arrays.step(action.numpy())
            assert all(isinstance(value, torch.Tensor) for value in (*mine[0].values(), *mine[1:4]))
            assert np.array_equal(mine[0]["image"].numpy(), other[0]["image"])
            assert np.array_equal(mine[1].numpy(), other[1])
            over = mine[2] | mine[3]
            ended += int(over.sum())
            if mode is AutoresetMode.SAME_STEP:
                assert torch.equal(mine[4]["_final_obs"], over)
                for row in over.nonzero()[:, 0].tolist():
                    assert np.array_equal(
                        mine[4]["final_obs"]["image"][row].numpy(), other[4]["final_obs"][row]["image"]
                    )
                    assert mine[4]["final_info"]["score"][row] == other[4]["final_info"]["score"][row]
        assert ended > 5
        actions = torch.randint(7, (20, 4), generator=generator)
        if mode is AutoresetMode.NEXT_STEP:  # at SAME_STEP the CPU is asked whether any row ended, a device never is
            with NoHostSync():
                for action in actions:
                    tensors.step(action)


def test_returned_arrays_may_be_changed(task):
    one, two = VectorEnv(task, num_envs=2), VectorEnv(task, num_envs=2)
    for env in (one, two):
        env.reset(seed=0)
    for _ in range(10):
        seen, reward, terminated, truncated, info = one.step(np.array([0, 1]))
        other = two.step(np.array([0, 1]))
        assert np.array_equal(reward, other[1])
        assert np.array_equal(info["episode_length"], other[4]["episode_length"])
        for value in (*seen.values(), reward, terminated, truncated, info["episode_length"], info["episode_return"]):
            value[:] = 1


def test_gymnasiums_vector_wrappers_accept_it(task):
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(gymnasium.make_vec(NAME, num_envs=2, task=task))
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(8):
        _, reward, _, truncated, info = env.step(np.array([2, 3]))
        total += reward
    assert truncated.all()
    assert info["episode"]["l"].tolist() == [8, 8]
    assert info["episode"]["r"] == pytest.approx(total, rel=1e-5)
    assert info["final_info"]["episode_return"] == pytest.approx(total, rel=1e-5)


def test_wrong_modes_are_refused(task):
    with pytest.raises(ValueError, match="SAME_STEP or NEXT_STEP"):
        VectorEnv(task, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="numpy"):
        VectorEnv(task, tensors="jax")
    with pytest.raises(gymnasium.error.ResetNeeded):
        VectorEnv(task).step(np.array([0]))


def test_render_shows_the_middle_planes_and_the_path(task):
    env = SingleEnv(task, render_mode="rgb_array")
    env.reset(seed=1)
    env.step(0)
    frame = env.render()
    assert frame.dtype == np.uint8
    assert frame.shape == (40, 120, 3)
    red = (frame == (255, 0, 0)).all(-1)
    assert red[20, 60]  # the present place, in the middle of every plane
    assert SingleEnv(task).render() is None
    volume = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    flat = planes(volume, enlarge=1)[..., 0]
    assert flat[:, :3].tolist() == volume[1].T[::-1].tolist()
    assert flat[:, 6:].tolist() == volume[:, :, 1].T[::-1].tolist()
    trail = planes(volume, np.array([[1.0, 0, 0], [0, 0, 0]]), enlarge=1)
    assert trail[1, 3 + 2].tolist() == [255, 0, 0]  # seen along the second axis: first axis to the right
