"""Validation of a registration policy, and what is kept of it."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medrl.data.misalignment import LEVELS, body_lattice, draw_misalignment, image_centre, regrid
from medrl.data.write import whole_file, write_json
from medrl.geometry.poses import Pose, from_matrices
from medrl.geometry.transforms import invert, transform_points
from medrl.inference.policy_walk import walk
from medrl.inference.registration import RegistrationInferer
from medrl.inference.registration_calibration import TELLING, fit_confidence
from medrl.networks.features import PairNetworks
from medrl.networks.seed_networks import compact_weights
from medrl.tasks.registration import RegistrationTask
from medrl.training.best import BestNetwork
from medrl.training.feature_folds import FeatureFolds, ImagePair
from medrl.training.measuring import MeasuringEvaluator
from medrl.training.parallel import rank_seed
from medrl.types import Registration

logger = logging.getLogger(__name__)

HOPELESS_MM = 30.0  # errors count up to here: a lost case is lost


class RegistrationEvaluator(MeasuringEvaluator):
    """Walks the policy from the starts of a task's cases; ``state.metrics``: see `measure_walks`.

    The key metric is ``val_error_mm``, lower is better.
    """

    def __init__(
        self, *, device: torch.device | str, task: RegistrationTask, network: nn.Module,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, network=network, val_handlers=val_handlers)
        self.task = task

    def measure(self) -> dict[str, float]:
        """Errors of the walks."""
        return measure_walks(self.task, self.network)


def measure_walks(task: RegistrationTask, network: nn.Module | None, *, rows: int = 64) -> dict[str, float]:
    """Mean error in mm (at most 30 a case), shares below 5 and 10 mm, and steps, from the first start of every case.

    Without a network: of the plain climb of the learned similarity.
    """
    errors, steps = [], []
    device = task.cases.device
    for part in torch.arange(len(task.cases), device=device).split(rows):
        pose = Pose(*(value.to(device) for value in from_matrices(task.starts[part.cpu(), 0])))
        ended = walk(task, network, task.at(part, pose))
        errors.append(-task.score(ended.state))
        steps.append(ended.state.time.float())
    error = torch.cat(errors)
    return {
        "error_mm": float(error.clamp(max=HOPELESS_MM).mean()), "below_5mm": float((error < 5).float().mean()),
        "below_10mm": float((error < 10).float().mean()), "steps": float(torch.cat(steps).mean()),
    }  # fmt: skip


class BestPolicy(BestNetwork):
    """Writes ``model.pt``, a bare state dict in half precision of the feature networks and the policy."""

    def __init__(self, folder: Path | str, *, features: FeatureFolds, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, settings=settings, metric="val_error_mm")
        self.features = features

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Error, success and steps."""
        logger.info(
            "validation: %.2f mm, %.0f %% below 10 mm, %.1f steps", metrics["val_error_mm"],
            100 * metrics["val_below_10mm"], metrics["val_steps"],
        )  # fmt: skip

    def write(self, network: nn.Module) -> None:
        """Write ``model.pt`` and ``agent.json``."""
        networks = self.features.networks(policy=copy.deepcopy(network))
        with whole_file(self.folder / "model.pt") as part:
            torch.save(compact_weights(networks), part)
        write_json(self.folder / "agent.json", self.settings)


def finish(best: BestPolicy, agent: Any, *, success_mm: float = 20.0, repeats: int = 2) -> None:
    """Fit what evidence says about success, on registrations of the validation fold, and write ``agent.json`` with it.

    An error above ``success_mm`` is another optimum; a smaller one may be the reference's own.

    Where no validation has chosen a policy, the agent's last one is kept.
    """
    if rank_seed(0) > 0:
        return
    if not best.weights:
        best.keep(agent.average)
    policy = copy.deepcopy(agent.average)
    policy.load_state_dict(best.weights)
    features = best.features
    fold = min(set(features.fold.values()))
    pairs = [pair for pair in features.pairs if features.fold[pair.subject] == fold]
    networks = features.networks(fold if features.folds > 1 else -1, policy=policy)
    inferer = RegistrationInferer(**best.settings["inference"])
    rows, errors = [], []
    for registration, error_mm, _ in register_again(inferer, networks, pairs, repeats=repeats):
        rows.append({name: registration.evidence[name] for name in TELLING})
        errors.append(error_mm)
    success = [error < success_mm for error in errors]
    best.settings["inference"] = best.settings["inference"] | {"calibration": fit_confidence(rows, success)}
    write_json(best.folder / "agent.json", best.settings)
    logger.info("calibrated on %d registrations, %d of them right", len(rows), sum(success))


def register_again(
    inferer: RegistrationInferer, networks: PairNetworks, pairs: Sequence[ImagePair], *,
    levels: Sequence[str] = ("medium", "large", "similarity"), repeats: int = 2, ball: bool = False, seed: int = 0,
) -> Iterator[tuple[Registration, float, dict[str, Any]]]:  # fmt: skip
    """Move pairs apart and register them again.

    Yields the answer, its mean error in mm over the body's lattice, and what the case was: ``pair``, ``level``,
    ``angle_deg``, ``back`` (N, 3), where the lattice points come to lie, ``walked_mm``, the error before the polish,
    and ``seconds`` of processor time.
    """
    for number, pair in enumerate(pairs):
        lattice = body_lattice(pair.fixed, pair.moving)
        for level, repeat in product(levels, range(repeats)):
            draw = np.random.default_rng([seed, number, sorted(LEVELS).index(level), repeat])
            moved = draw_misalignment(level, image_centre(pair.fixed), draw)
            moving = regrid(pair.moving, moved.matrix, draw, ball=ball)
            start = time.process_time()
            answer = inferer.register(pair.fixed, moving, networks)
            seconds = time.process_time() - start
            walked, back = (
                transform_points(invert(moved.matrix) @ matrix, lattice)
                for matrix in (answer.path[-2], answer.moving_from_fixed)
            )
            about = {
                "pair": pair.name, "level": level, "angle_deg": moved.angle_deg, "back": back, "seconds": seconds,
                "walked_mm": float((walked - lattice).norm(dim=-1).mean()),
            }  # fmt: skip
            yield answer, float((back - lattice).norm(dim=-1).mean()), about
