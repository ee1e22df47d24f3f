"""The best network of a training: a handler of evaluators that keeps it, in memory and in files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn

from medrl.training.parallel import rank_seed

logger = logging.getLogger(__name__)


class BestNetwork(ABC):
    """Keeps the best averaged network of all stages: a handler of their evaluators.

    Whenever the validation's ``metric`` is as low as ever (``highest``: as high), `write` puts the network and the
    ``settings`` into files of ``folder``, each whole: a later stage that learns only what validation does not see, such
    as action values, replaces its equal.  Put it among what ``TrainingState`` watches.
    """

    def __init__(self, folder: Path | str, *, settings: Mapping[str, Any], metric: str, highest: bool = False) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.metric, self.highest = metric, highest
        self.best = -torch.inf if highest else torch.inf
        self.weights: dict[str, Tensor] = {}

    @abstractmethod
    def write(self, network: nn.Module) -> None:
        """Write the files."""

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Log a validation."""
        logger.info("validation: %s %.4g", self.metric, metrics[self.metric])

    def attach(self, engine: Any) -> None:
        """Listen to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Keep the evaluator's network if it is the best so far."""
        metrics = engine.state.metrics
        if rank_seed(0) == 0:
            self.tell(metrics)
        value = float(metrics[self.metric])
        if value >= self.best if self.highest else value <= self.best:
            self.best = value
            self.keep(engine.network)

    def keep(self, network: nn.Module) -> None:
        """Take a network for the best, and write it; of several ranks the first does."""
        self.weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        if rank_seed(0) == 0:
            self.write(network)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and its network."""
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.best, self.weights = saved["best"], saved["weights"]
