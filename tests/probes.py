"""Small problems with known answers, and a guard against host synchronisation, for the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from monai.data import MetaTensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medrl.data.cases import Cases
from medrl.data.pair_cases import PairCases
from medrl.data.pair_fields import draw_image_pairs, draw_pair_cases
from medrl.data.phantoms import random_affine
from medrl.data.seed_cases import SeedCases
from medrl.geometry.patches import Pyramid
from medrl.tasks.base import Task
from medrl.tasks.image_registration import ImageRegistrationTask
from medrl.tasks.landmark import LandmarkTask
from medrl.tasks.registration import RegistrationTask
from medrl.tasks.seeding import SeedingTask


def smooth_volume(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A uint8 volume 1..255 of smooth random waves: every place looks different."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    total = torch.zeros(shape)
    for _ in range(6):
        wave = torch.rand(4, generator=generator)
        total += torch.cos(sum(a * (0.1 + 0.4 * w) for a, w in zip(axes, wave, strict=False)) + 6.3 * wave[3])
    return (1 + 254 * (total - total.min()) / (total.max() - total.min())).round().to(torch.uint8)


def small_cases(count: int = 3, *, labels: int = 2, strides: tuple[int, ...] = (1, 2), seed: int = 0) -> Cases:
    """Cases of several shapes at 2 mm; the second landmark of the last case is unknown, the first of it out of view."""
    generator = torch.Generator().manual_seed(seed)
    volumes = [smooth_volume((24 + 4 * n, 28, 20 + 4 * n), generator) for n in range(count)]
    points = torch.rand(count, labels, 3, generator=generator) * 24 - 12
    if count > 1:
        points[-1, 0] = torch.tensor([200.0, 0.0, 0.0])
        points[-1, 1:] = torch.nan
    return Cases(volumes, points, labels=[f"point_{n}" for n in range(labels)], spacing_mm=2.0, strides=strides)


def small_landmark_task(**options: Any) -> LandmarkTask:
    """A landmark task on `small_cases` with crops of 5^3; ``options`` go to it, but ``strides`` and ``device``."""
    strides = options.pop("strides", (1, 2))
    device = options.pop("device", "cpu")
    options = {"size": 5, "step_mm": (4.0, 2.0), "max_steps": 12} | options
    return LandmarkTask(small_cases(strides=strides).to(device), **options)


def small_seed_cases(count: int = 3, *, shape: tuple[int, ...] = (18, 15), cells: int = 4, seed: int = 0) -> SeedCases:
    """A bright, noisy ellipse in every image, two pairs of clicks each, on cells of about 4 voxels."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    images, truths, clicks = [], [], []
    for _ in range(count):
        centre = [n / 2 + 2 * float(torch.rand(1, generator=generator)) - 1 for n in shape]
        radius = [n * (0.2 + 0.1 * float(torch.rand(1, generator=generator))) for n in shape]
        truth = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius, strict=True)) < 1
        image = 90 + 60 * truth + 20 * torch.randn(shape, generator=generator)
        images.append(image.clamp(1, 255).to(torch.uint8))
        truths.append(truth)
        inside, outside = truth.flatten().nonzero()[:, 0], (~truth).flatten().nonzero()[:, 0]
        clicks.append(torch.stack([inside[[2, -2]], outside[[1, -2]]], 1))
    grid = [max(2, n // cells) for n in shape]
    return SeedCases(torch.stack(images), torch.stack(truths), torch.stack(clicks), grid=grid)


def small_seeding_task(*, shape: tuple[int, ...] = (18, 15), device: str = "cpu", **options: Any) -> SeedingTask:
    """A seeding task on `small_seed_cases`."""
    return SeedingTask(small_seed_cases(shape=shape).to(device), **({"max_steps": 6} | options))


def small_pair_cases(count: int = 3, *, seed: int = 0, **options: Any) -> PairCases:
    """Pairs whose feature and grey volumes are smooth random fields; ``options`` go to `draw_pair`."""
    options = {"side": 8, "counts": (16, 40), "features": 8} | options
    return draw_pair_cases(count, torch.Generator().manual_seed(seed), **options)


def small_registration_task(*, device: str = "cpu", **options: Any) -> RegistrationTask:
    """A registration task on `small_pair_cases`."""
    options = {"shifts_mm": (12.0, 4.0), "start_mm": 20.0, "start_degrees": 40.0, "max_steps": 8} | options
    return RegistrationTask(cases=small_pair_cases().to(device), **options)


def small_image_task(*, size: tuple[int, ...] = (20, 18), device: str = "cpu", **options: Any) -> ImageRegistrationTask:
    """A registration task on slices, or on volumes."""
    cases = draw_image_pairs(3, torch.Generator().manual_seed(0), size=size).to(device)
    return ImageRegistrationTask(cases=cases, **({"max_steps": 12, "start_degrees": 10.0} | options))


def stored_image(
    function: Callable[[Tensor], Tensor], generator: np.random.Generator, spacing_mm: Sequence[float],
    side_mm: float = 110.0,
) -> MetaTensor:  # fmt: skip
    """An image (1, X, Y, Z) of a function of RAS places about the origin, oblique and flipped."""
    affine = torch.from_numpy(random_affine(generator, np.asarray(spacing_mm))).double()
    shape = [math.ceil(side_mm / s) for s in spacing_mm]
    affine[:3, 3] = -affine[:3, :3] @ ((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape))
    place = index @ affine[:3, :3].T + affine[:3, 3]
    return MetaTensor(function(place).float().reshape(1, *shape), affine=affine)


class ProbeState(NamedTuple):
    """B rows of a probe."""

    case: Tensor  # (B,) int16
    sign: Tensor  # (B,) float32, -1 or 1, drawn at the start
    age: Tensor  # (B,) int16


class Probe(Task):
    """An episode of ``length`` steps whose reward is a given function; the observation is (sign, age).

    With ``endless`` it never terminates, and its clock truncates it after ``length`` steps.
    """

    def __init__(
        self, reward: Callable[..., Tensor], *, length: int = 1, actions: int = 2, endless: bool = False
    ) -> None:
        self.cases = [0, 1]
        self.reward_shape, self.length, self.endless = reward, length, endless
        self.max_steps = length if endless else 100
        self.action_space = spaces.Discrete(actions)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def initial(self, case: Tensor, generator: torch.Generator) -> ProbeState:
        sign = 2.0 * torch.randint(2, case.shape, generator=generator) - 1
        return ProbeState(case.to(torch.int16), sign, torch.zeros_like(case, dtype=torch.int16))

    def observe(self, state: ProbeState) -> Tensor:
        return torch.stack([state.sign, state.age.float()], 1)

    def advance(self, state: ProbeState, action: Tensor) -> ProbeState:
        return state._replace(age=state.age + 1)

    def terminated(self, state: ProbeState) -> Tensor:
        return torch.zeros_like(state.age, dtype=torch.bool) if self.endless else state.age >= self.length

    def score(self, state: ProbeState) -> Tensor:
        return state.sign

    def expert(self, state: ProbeState) -> Tensor:
        return (state.sign > 0).long()

    def outputs(self, state: ProbeState) -> dict[str, Any]:
        return {"sign": state.sign}


class CountState(NamedTuple):
    """B rows that carry their own serial number."""

    case: Tensor  # (B,) int16
    number: Tensor  # (B,) int32


class Counting:
    """What a replay asks of a task; the reward of a transition is the number of its first state."""

    cases = SimpleNamespace(device=torch.device("cpu"))

    def initial(self, case: Tensor, generator: torch.Generator) -> CountState:
        return CountState(case.to(torch.int16), torch.zeros_like(case, dtype=torch.int32))

    def observe(self, state: CountState) -> Tensor:
        return state.number

    def reward(self, state: CountState, action: Tensor, next_state: CountState) -> Tensor:
        return state.number.float()


class NoHostSync(TorchDispatchMode):
    """Raises at any operation that would make the host wait for the device, or send it data, on an accelerator.

    It runs on the CPU: volumes are gathered as on an accelerator while it is active.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "multinomial", "equal", "unique", "lift_fresh")

    def __enter__(self) -> NoHostSync:
        self.kept = {name: getattr(Tensor, name) for name in ("tolist", "numpy")}
        for name in self.kept:
            setattr(Tensor, name, _refuse)
        self.slices = Pyramid._crop_slices
        Pyramid._crop_slices = Pyramid._crop_gather
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, method in self.kept.items():
            setattr(Tensor, name, method)
        Pyramid._crop_slices = self.slices
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if any(word in name for word in self.WAITING):
            raise AssertionError(f"{name} makes the host wait")
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            raise AssertionError("a boolean index makes the host wait")
        return func(*args, **(kwargs or {}))


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("tolist and numpy make the host wait")
