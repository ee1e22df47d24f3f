"""The first stage of a segmentation training: the click network, with MONAI's engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from medrl.data.click_samples import TISSUE_HU, TISSUE_MR, Volume, make_volumes
from medrl.data.clicks import first_clicks, stack_clicks
from medrl.data.masks import MaskCase, read_mask_cases
from medrl.data.planes import finite_quantiles
from medrl.data.regions import grey_levels, is_ct, region_of, sample_image, sample_mask
from medrl.data.seed_pool import largest_slice
from medrl.training.parallel import average_gradients, broadcast_parameters, rank_seed, ranks
from medrl.training.resume import load_latest
from medrl.types import InputError

logger = logging.getLogger(__name__)


def read_volumes(dataset_dirs: Sequence[Path | str], section: str = "training") -> list[Volume]:
    """The masked volumes of some data sets, each named after its folder."""
    found = [make_volumes(read_mask_cases(folder, section), Path(folder).name) for folder in dataset_dirs]
    return [volume for volumes in found for volume in volumes]


def read_click_cases(
    dataset_dirs: Sequence[Path | str], section: str, *, shape: Sequence[int] | None = None, axes: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Batches of one case each as inference sees it, with a random click inside and one outside, for a validation.

    With two ``axes`` it is the axial slice with most of the object; ``shape`` is that of the lattice (default: as
    ``region_of`` has it).
    """
    batches = []
    for folder in dataset_dirs:
        for case in read_mask_cases(folder, section):
            batches.append(
                _click_case(case, Path(folder).name, shape, axes, np.random.default_rng([seed, len(batches)]))
            )
    return batches


def _click_case(
    case: MaskCase, group: str, shape: Sequence[int] | None, axes: int, generator: np.random.Generator
) -> dict[str, Any]:
    region = largest_slice(case, shape) if axes == 2 else region_of(case.image, size=shape)
    values, mask, ct = sample_image(case.image, region), sample_mask(case.mask, region), is_ct(case.image)
    bright = TISSUE_HU if ct else TISSUE_MR * float(finite_quantiles(values, 0.0, 0.995)[1])
    clicks = first_clicks(mask.numpy(), (values > bright).numpy(), variant="random", generator=generator)
    grey = grey_levels(values, ct=ct)
    return {"image": grey[None], "label": mask[None], "clicks": stack_clicks([clicks]), "group": group}


class ClickStage:
    """A ``SupervisedTrainer`` of a click network, and the folder of its checkpoints.

    ``kept`` is what a ``CheckpointSaver`` keeps: the trainer, the network, its optimiser and schedule, and the
    ``average`` of its weights, which is what counts in the end.
    """

    def __init__(
        self, trainer: SupervisedTrainer, *, kept: Mapping[str, Any], average: nn.Module, checkpoint_dir: Path | str
    ) -> None:
        self.trainer, self.kept, self.average = trainer, dict(kept), average
        self.checkpoint_dir = Path(checkpoint_dir)

    def run(self, *, resume: bool = True) -> None:
        """Train to the last epoch, and give the network the averaged weights.

        Raises InputError if the checkpoint is of a training with other settings.
        """
        network = self.trainer.network
        if resume:
            self._resume()
        elif rank_seed(0) == 0:
            for path in self.checkpoint_dir.glob("*.pt"):
                path.unlink()
        if ranks() > 1:
            broadcast_parameters(network)
            hook = self.trainer.optimizer.register_step_pre_hook(lambda *_: average_gradients(network.parameters()))
        epochs = self.trainer.state.max_epochs
        if self.trainer.state.epoch < epochs:
            logger.info("click network: epoch %d of %d", self.trainer.state.epoch, epochs)
            self.trainer.run()
        if ranks() > 1:
            hook.remove()
        network.load_state_dict(self.average.state_dict())
        network.eval().requires_grad_(False)

    def _resume(self) -> None:
        try:
            load_latest(self.checkpoint_dir, self.kept, self.trainer)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.checkpoint_dir.name}: the checkpoint is of a training with other settings; start afresh with "
                "--resume false, or choose another --ckpt_dir"
            ) from error


def one_cycle(optimizer: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """A learning rate that rises over a tenth of the updates to the optimiser's own, and falls to nothing."""
    highest = optimizer.param_groups[0]["lr"]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=updates + 1, pct_start=0.1)
