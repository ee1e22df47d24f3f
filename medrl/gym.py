"""The Gymnasium faces of a task: one row in numpy, or B rows in numpy or torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from monai.data import MetaTensor
from torch import Tensor

from medrl.data.cases import Cases, Source
from medrl.data.lesions import lesion
from medrl.data.masks import MaskCase
from medrl.data.phantoms import LABELS, phantom
from medrl.data.seed_pool import fixed_cases
from medrl.environment import Environment
from medrl.tasks.base import Task
from medrl.tasks.landmark import LandmarkTask
from medrl.tasks.seeding import SeedingTask
from medrl.types import Step, rows, where


class SingleEnv(gymnasium.Env):
    """One row of a task as a `gymnasium.Env` with numpy observations.

    ``info`` holds the task's score, and the return and length of the episode so far.  With ``render_mode``
    "rgb_array", `render` shows the three middle planes of the finest crop and, in red, the path that led there.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: Task, *, render_mode: str | None = None) -> None:
        self.task, self.render_mode = task, render_mode
        self.environment = Environment(task, num_envs=1)
        # spaces hold a generator each: those of the task are left alone
        self.observation_space = copy.deepcopy(task.observation_space)
        self.action_space = copy.deepcopy(task.action_space)
        self.ended = True
        self.path: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; every episode's seed comes from ``np_random``."""
        super().reset(seed=seed)
        self.environment.reset(_seed(self.np_random))
        self.ended, self.path = False, [self.environment.state]
        info = _information(self.environment, self.task.score(self.environment.state))
        return self._observation(), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action; raises ``gymnasium.error.ResetNeeded`` after the end of an episode."""
        if self.ended:
            raise gymnasium.error.ResetNeeded("the episode has ended: call reset before step")
        step = self.environment.advance(torch.as_tensor(np.asarray(action)[None], device=self.environment.device))
        self.path.append(step.final_state)
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        self.ended = terminated or truncated
        return self._observation(), float(step.reward), terminated, truncated, _first(_information_of(step))

    def render(self) -> np.ndarray | None:
        """Picture (height, width, 3) uint8 of what the policy sees, or None without a render mode."""
        if self.render_mode is None:
            return None
        if hasattr(self.task, "picture"):
            return self.task.picture(self.path[-1])
        observation = self._observation()
        image = observation["image"] if isinstance(observation, dict) else observation
        trail = None
        if hasattr(self.path[0], "position"):
            places = torch.cat([state.position for state in self.path])
            trail = ((places - places[-1]) / self.task.cases.pyramid.spacing_mm).cpu().numpy()
        return planes(image[0], trail)

    def _observation(self) -> Any:
        return _first(_map(_numpy, self.task.observe(self.path[-1])))


class VectorEnv(gymnasium.vector.VectorEnv):
    """B rows of a task as a `gymnasium.vector.VectorEnv`, stepped together on the task's device.

    ``autoreset_mode`` is SAME_STEP or NEXT_STEP (the enumeration or its value).  ``tensors`` is "numpy", or "torch" to
    leave everything on the device.  ``options["reset_mask"]`` (B,) bool resets some rows only.

    At SAME_STEP ``final_obs`` and ``final_info`` come with ``_final_obs`` and ``_final_info`` (B,) bool.  In numpy they
    are there when a row ended, ``final_obs`` being an array of single observations.  In torch they are always there,
    ``final_obs`` being a batch whose other rows mean nothing, so that no step waits for the device.
    """

    def __init__(
        self, task: Task, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        tensors: str = "numpy",
    ) -> None:  # fmt: skip
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError("rows reset themselves: autoreset_mode must be SAME_STEP or NEXT_STEP")
        if tensors not in ("numpy", "torch"):
            raise ValueError(f"tensors must be 'numpy' or 'torch', not {tensors!r}")
        self.task, self.num_envs = task, num_envs
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.environment = Environment(task, num_envs=num_envs)
        self.single_observation_space = copy.deepcopy(task.observation_space)
        self.single_action_space = copy.deepcopy(task.action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tensors = tensors
        self.convert: Callable[[Tensor], Any] = _numpy if tensors == "numpy" else _keep
        self.shown: Any = None  # the states that the caller sees; at NEXT_STEP an ended row still shows its end
        # rows that ended and start anew at the next step
        self.waiting = torch.zeros(num_envs, dtype=torch.bool, device=self.environment.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start episodes in all rows, or in those of ``options["reset_mask"]``; seeds come from ``np_random``."""
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        environment, device = self.environment, self.environment.device
        if mask is None or self.shown is None:
            started = torch.ones(self.num_envs, dtype=torch.bool, device=device)
            environment.reset(_seed(self.np_random))
            self.shown = environment.state
        else:
            started = torch.as_tensor(mask, dtype=torch.bool, device=device)
            if started.shape != (self.num_envs,):
                raise ValueError(f"reset_mask must have shape ({self.num_envs},), not {tuple(started.shape)}")
            if seed is not None:
                environment.generator.manual_seed(_seed(self.np_random))
            environment.restart(started)
            self.shown = where(started, environment.state, self.shown)
        self.waiting = self.waiting & ~started
        info = _information(environment, self.task.score(self.shown))
        return self._convert(self.task.observe(self.shown)), self._convert(_masked(info, started))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the actions (B,) of all rows; raises ``gymnasium.error.ResetNeeded`` before the first reset."""
        if self.shown is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        environment, waiting = self.environment, self.waiting
        step = environment.advance(torch.as_tensor(actions, device=environment.device))
        reward, terminated, truncated = step.reward, step.terminated, step.truncated
        every, more = torch.ones_like(terminated), {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            # rows that ended last time start now, whatever their action was
            environment.restart(waiting)
            reward = torch.where(waiting, 0.0, reward)
            terminated, truncated = terminated & ~waiting, truncated & ~waiting
            self.waiting = terminated | truncated
            self.shown = where(self.waiting, step.final_state, environment.state)
            fresh = _information(environment, self.task.score(self.shown))
            ending = _information_of(step)
            info = {name: torch.where(self.waiting, ending[name], fresh[name]) for name in fresh}
            observation = self._convert(self.task.observe(self.shown))
        else:
            self.shown = environment.state
            info = _information(environment, self.task.score(self.shown))
            observation = self._convert(self.task.observe(self.shown))
            more = self._final(step, terminated | truncated, observation)
        info = self._convert(_masked(info, every))
        return observation, self._convert(reward), self._convert(terminated), self._convert(truncated), info | more

    def _final(self, step: Step, ended: Tensor, observation: Any) -> dict[str, Any]:
        """How the rows that ended looked before their reset."""
        if self.tensors == "torch":
            # on the CPU asking costs nothing, and saves the rendering
            idle = self.environment.device.type == "cpu" and not bool(ended.any())
            final = observation if idle else self.task.observe(step.final_state)
        else:
            index = ended.nonzero()[:, 0]
            if len(index) == 0:
                return {}
            seen = self._convert(self.task.observe(rows(step.final_state, index)))
            final = np.full(self.num_envs, None, dtype=object)
            for n, row in enumerate(index.tolist()):
                final[row] = _map(lambda value, n=n: value[n], seen)
        info = self._convert(_masked(_information_of(step), ended))
        return _masked({"final_obs": final, "final_info": info}, self._convert(ended))

    def _convert(self, value: Any) -> Any:
        return _map(self.convert, value)


def landmark(task: Task | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Landmark-v0")``; without a task, ``options`` go to `phantom_task`."""
    return SingleEnv(phantom_task(**options) if task is None else task, render_mode=render_mode)


def landmark_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Landmark-v0")``; as `landmark`."""
    task = phantom_task(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def phantom_task(*, patients: int = 4, seed: int = 0, spacing_mm: float = 4.0, **options: Any) -> LandmarkTask:
    """A landmark task on synthetic CT patients; ``options`` go to `LandmarkTask`."""
    generator = np.random.default_rng(seed)
    sources = []
    for number in range(patients):
        volume, ras_from_voxel, points_ras = phantom(generator, affine="random")
        points = torch.from_numpy(np.stack(list(points_ras.values())))
        sources.append(Source(f"phantom_{number}", torch.from_numpy(volume), torch.from_numpy(ras_from_voxel), points))
    cases = Cases.from_sources(sources, labels=LABELS, spacing_mm=spacing_mm, window=(-200.0, 400.0))
    return LandmarkTask(cases, **{"step_mm": (4 * spacing_mm, 2 * spacing_mm, spacing_mm)} | options)


def seeding(task: Task | None = None, *, render_mode: str | None = None, **options: Any) -> SingleEnv:
    """Entry point of ``gymnasium.make("medrl/Seeding-v0")``; without a task, ``options`` go to `phantom_seeding`."""
    return SingleEnv(phantom_seeding(**options) if task is None else task, render_mode=render_mode)


def seeding_vector(
    task: Task | None = None, *, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    tensors: str = "numpy", **options: Any,
) -> VectorEnv:  # fmt: skip
    """Entry point of ``gymnasium.make_vec("medrl/Seeding-v0")``; as `seeding`."""
    task = phantom_seeding(**options) if task is None else task
    return VectorEnv(task, num_envs=num_envs, autoreset_mode=autoreset_mode, tensors=tensors)


def phantom_seeding(
    *, patients: int = 4, seed: int = 0, shape: tuple[int, ...] = (84, 84), grid: tuple[int, ...] = (20, 20),
    **options: Any,
) -> SeedingTask:  # fmt: skip
    """A seeding task on synthetic lesions in CT; ``options`` go to `SeedingTask`."""
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(patients):
        volume, ras_from_voxel, mask = lesion(generator, affine="random")
        image, truth = (MetaTensor(torch.from_numpy(x)[None], affine=ras_from_voxel) for x in (volume, mask))
        cases.append(MaskCase(f"phantom_{number}", f"phantom_{number}", image.float(), truth))
    return SeedingTask(fixed_cases(cases, shape=shape, grid=grid, seed=seed), **options)


def planes(volume: np.ndarray, trail: np.ndarray | None = None, *, enlarge: int = 8) -> np.ndarray:
    """The three middle planes of a crop (X, Y, Z) uint8 side by side, RGB, with a trail (T, 3) of voxels in red.

    The trail counts from the middle voxel of a cube.  The planes are seen along the first, second and third axis, the
    later of the two remaining axes upwards; a slice (X, Y) is one picture.
    """
    middle = volume.shape[0] // 2
    pictures = []
    for axis in range(volume.ndim if volume.ndim == 3 else 1):
        plane = volume.take(volume.shape[axis] // 2, axis) if volume.ndim == 3 else volume
        picture = np.repeat(plane[..., None], 3, -1)
        if trail is not None:
            spots = np.delete(np.round(trail).astype(int) + middle, axis, 1)
            spots = spots[((spots >= 0) & (spots < volume.shape[0])).all(1)]
            picture[spots[:, 0], spots[:, 1]] = (255, 0, 0)
        pictures.append(picture.swapaxes(0, 1)[::-1].repeat(enlarge, 0).repeat(enlarge, 1))
    height = max(len(picture) for picture in pictures)
    return np.concatenate([np.pad(p, ((0, height - len(p)), (0, 0), (0, 0))) for p in pictures], 1)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


def _information(environment: Environment, score: Tensor) -> dict[str, Tensor]:
    return {
        "score": score,
        "episode_return": environment.total.clone(),
        "episode_length": environment.clock.clone(),
    }


def _information_of(step: Step) -> dict[str, Tensor]:
    metrics = step.metrics
    return {
        "score": metrics["score"],
        "episode_return": metrics["episode_return"],
        "episode_length": metrics["length"],
    }


def _masked(values: dict[str, Any], mask: Any) -> dict[str, Any]:
    """Gymnasium's form: beside every value the rows that have it."""
    return {key: value for name in values for key, value in ((name, values[name]), (f"_{name}", mask))}


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    return {name: _map(function, part) for name, part in value.items()} if isinstance(value, dict) else function(value)


def _first(values: Any) -> Any:
    return _map(lambda value: value.cpu().numpy()[0] if isinstance(value, Tensor) else value[0], values)


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()


def _keep(value: Tensor) -> Tensor:
    return value
