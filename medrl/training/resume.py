"""Exact resume: everything that a training's next update depends on, in one object for MONAI's checkpoints."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import Workflow
from monai.handlers import CheckpointLoader, CheckpointSaver, EarlyStopHandler

logger = logging.getLogger(__name__)


class TrainingState:
    """Networks, optimiser, schedules, replay, environment, pool, clocks and generators of one training.

    It is a handler: put it among ``train_handlers`` so that it knows the trainer, and into the ``save_dict`` of a
    ``CheckpointSaver`` and the ``load_dict`` of a ``CheckpointLoader``.  A training that is cut off, rebuilt from its
    configuration and loaded goes on bit by bit as if nothing had happened.  Contents are tensors and plain values, as
    ``weights_only`` loading demands.

    ``watched`` names what must remember the best so far: the evaluator, a ``CheckpointSaver`` with
    ``save_key_metric``, an ``EarlyStopHandler``, or anything with a ``state_dict``.  Without them the first validation
    after a resume would count as the best.
    """

    def __init__(self, *, agent: Any, environment: Any = None, pool: Any = None, watched: Sequence[Any] = ()) -> None:
        self.agent, self.environment, self.pool, self.watched = agent, environment, pool, tuple(watched)
        self.trainer: Any = None

    def attach(self, engine: Any) -> None:
        """Know the trainer whose clock and generator are part of the state."""
        self.trainer = engine

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts; tensors are the live ones, not copies."""
        trainer = self._attached()
        saved = {
            "iteration": trainer.state.iteration,
            "environment_steps": trainer.environment_steps,
            "generator": trainer.generator.get_state(),
            "random": torch.get_rng_state(),  # dropout
            "networks": self.agent.state_dict(),
            "agent": self.agent.extra_state(),
            "watched": [_state_of(thing) for thing in self.watched],
        }
        if torch.cuda.is_available():
            saved["cuda_random"] = torch.cuda.get_rng_state()
        if self.environment is not None and self.environment.state is not None:
            saved["environment"] = self.environment.state_dict()
        if self.pool is not None:
            saved["pool"] = _pool_state(self.pool)
        return saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict`` in objects built by the same configuration."""
        trainer = self._attached()
        if self.pool is not None:
            _load_pool(self.pool, saved["pool"])
        self.agent.load_state_dict(saved["networks"])
        self.agent.load_extra_state(saved["agent"])
        if "environment" in saved:
            self.environment.load_state_dict(saved["environment"])
        for thing, state in zip(self.watched, saved["watched"], strict=True):
            _load_state(thing, state)
        trainer.observation = None  # rendered again from the environment's state
        trainer.environment_steps = saved["environment_steps"]
        trainer.generator.set_state(saved["generator"].cpu())
        trainer.state.iteration = saved["iteration"]
        trainer.state.epoch = saved["iteration"] // trainer.state.epoch_length
        torch.set_rng_state(saved["random"].cpu())
        if "cuda_random" in saved and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["cuda_random"].cpu())

    def _attached(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("TrainingState knows no trainer: put it among the trainer's train_handlers")
        return self.trainer


def load_latest(folder: Path | str, load_dict: Mapping[str, Any], engine: Any) -> bool:
    """Load the newest whole checkpoint that a ``CheckpointSaver`` wrote by interval or at the end; False if none is.

    A file that was cut off while it was written is passed over: keep two (``CheckpointSaver(n_saved=2)``).
    """
    files = [path for path in Path(folder).glob("*.pt") if re.search(r"(epoch|iteration)=\d+\.pt$", path.name)]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if zipfile.is_zipfile(path):
            CheckpointLoader(load_path=str(path), load_dict=dict(load_dict), map_location="cpu")(engine)
            return True
        logger.warning("%s is incomplete and passed over", path.name)
    return False


def _pool_state(pool: Any) -> dict[str, Any]:
    """The cases of the moment: they were drawn at random and cannot be drawn again."""
    saved = {"cases": pool.cases.state_dict()}
    if hasattr(pool, "generator"):
        saved["generator"] = pool.generator.get_state()
    return saved


def _load_pool(pool: Any, saved: Mapping[str, Any]) -> None:
    pool.cases.load_state_dict(saved["cases"])
    if "generator" in saved:
        pool.generator.set_state(saved["generator"].cpu())


def _keeper(thing: Any) -> Any:
    """The part of one of MONAI's handlers that remembers; they do not hand it out themselves."""
    if isinstance(thing, CheckpointSaver):
        return thing._key_metric_checkpoint
    return thing._handler if isinstance(thing, EarlyStopHandler) else thing


def _state_of(thing: Any) -> dict[str, Any]:
    if isinstance(thing, Workflow):
        return {"best_metric": thing.state.best_metric, "best_metric_epoch": thing.state.best_metric_epoch}
    return dict(_keeper(thing).state_dict())


def _load_state(thing: Any, saved: Mapping[str, Any]) -> None:
    if isinstance(thing, Workflow):
        thing.state.best_metric, thing.state.best_metric_epoch = saved["best_metric"], saved["best_metric_epoch"]
    else:
        _keeper(thing).load_state_dict(saved)
