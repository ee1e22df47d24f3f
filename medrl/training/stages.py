"""A training of several stages, such as cloning and then Q-learning: hand-over, resume, and what is kept of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medrl.data.anatomy import Anatomy
from medrl.data.cases import Source
from medrl.data.write import whole_file, write_json
from medrl.inference.calibration import calibrate
from medrl.inference.landmarks import LandmarkInferer
from medrl.training.best import BestNetwork
from medrl.training.parallel import connect, rank_seed
from medrl.training.resume import TrainingState, load_latest
from medrl.training.trainer import RLTrainer
from medrl.types import InputError

logger = logging.getLogger(__name__)


class BestWeights(BestNetwork):
    """Writes ``model.pt`` (a bare state dict), ``anatomy.pt`` and ``agent.json``."""

    def __init__(
        self, folder: Path | str, *, anatomy: Anatomy, settings: Mapping[str, Any], metric: str = "val_error_mm"
    ) -> None:
        super().__init__(folder, settings=settings, metric=metric)
        self.anatomy = anatomy

    def write(self, network: nn.Module) -> None:
        """Write the three files."""
        with whole_file(self.folder / "model.pt") as part:
            torch.save(self.weights, part)
        self.save_anatomy()
        write_json(self.folder / "agent.json", self.settings)

    def save_anatomy(self) -> None:
        """Write ``anatomy.pt``."""
        with whole_file(self.folder / "anatomy.pt") as part:
            self.anatomy.save(part)


@dataclass
class Stage:
    """One trainer of a training, and the folder where a ``CheckpointSaver`` keeps its ``state`` as "training"."""

    trainer: RLTrainer
    state: TrainingState
    checkpoint_dir: Path | str

    def __post_init__(self) -> None:
        self.state.attach(self.trainer)

    def resume(self) -> bool:
        """Go back to the last checkpoint; False if there is none.

        Raises InputError if the checkpoint is of a training with other settings or data.
        """
        try:
            found = load_latest(self.checkpoint_dir, {"training": self.state}, self.trainer)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            where = Path(self.checkpoint_dir).name
            raise InputError(
                f"{where}: the checkpoint is of a training with other settings or data; start afresh with "
                "--resume false, or choose another --ckpt_dir"
            ) from error
        if found and rank_seed(0) > 0:  # the checkpoint is rank 0's; the others must not repeat its draws
            agent = self.trainer.agent
            for thing in (self.trainer, agent, getattr(agent, "replay", None), self.state.environment, self.state.pool):
                if hasattr(thing, "generator"):
                    thing.generator.manual_seed(rank_seed(self.trainer.state.iteration))
        return found

    def forget(self) -> None:
        """Remove checkpoints of an earlier training."""
        for path in Path(self.checkpoint_dir).glob("*.pt"):
            path.unlink()

    def run(self) -> None:
        """Train to the last epoch; a stage that is complete has nothing to do."""
        connect(self.trainer.agent)
        if self.trainer.state.epoch < self.trainer.state.max_epochs:
            self.trainer.run()


def run_stages(stages: Sequence[Stage], *, best: BestNetwork, resume: bool = True) -> None:
    """Run stages in turn, from the last checkpoint where there is one; each starts from the best network before it."""
    first = 0
    if resume:
        first = next((n for n in reversed(range(len(stages))) if stages[n].resume()), 0)
    elif rank_seed(0) == 0:
        for stage in stages:
            stage.forget()
    for number, stage in enumerate(stages[first:], start=first):
        if number > first:
            start_from(stage.trainer.agent, best.weights or stages[number - 1].trainer.agent.average.state_dict())
        done = stage.trainer.state.epoch
        if done:
            logger.info("stage %d goes on after epoch %d of %d", number + 1, done, stage.trainer.state.max_epochs)
        stage.run()


def start_from(agent: Any, weights: Mapping[str, Tensor]) -> None:
    """Let an agent that has not learned yet start from given weights."""
    for name in ("network", "target", "average"):
        if hasattr(agent, name):
            getattr(agent, name).load_state_dict(weights)


def finish(
    best: BestWeights, agent: Any, inferer: LandmarkInferer, sources: Sequence[Source], *, margin_mm: float
) -> None:  # fmt: skip
    """Fit what uncertainty and presence of the best network mean, on validation cases, and write ``anatomy.pt`` again.

    Where no validation has chosen a network, the agent's last one is kept.
    """
    if rank_seed(0) > 0:
        return
    network = copy.deepcopy(agent.average)
    if not best.weights:
        best.keep(network)
    network.load_state_dict(best.weights)
    best.anatomy.calibration = calibrate(inferer, network.eval(), sources, margin_mm=margin_mm)
    best.save_anatomy()
    logger.info("calibrated on %d validation cases", len(sources))
