"""Validation of seeding agents by the masks they end with, and the files that their training leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Average
from monai.engines import Evaluator
from torch import Tensor, nn

from medrl.data.seed_cases import SeedCases
from medrl.data.write import whole_file, write_json
from medrl.networks.seed_networks import SeedNetworks, compact_weights
from medrl.tasks.seeding import SeedingTask
from medrl.training.best import BestNetwork


class SeedingEvaluator(Evaluator):
    """Plays the agent greedily on fixed cases, and measures the intersection over union with the truth.

    ``val_data_loader`` is any iterable of :class:`medrl.data.seed_cases.SeedCases`, one a data set; ``network`` is what
    acts (``agent.average``).  After a set ``state.output`` is MONAI's decollated form, a list of one dict of numbers:
    ``iou`` of the masks that the quality estimate keeps (the key metric ``val_iou`` is their mean over the sets),
    ``start`` from the clicks alone, ``last`` and ``best`` after and on the way of ``max_seeds`` seeds, ``believed`` of
    the segmentation head, ``drops``, the share of seeds that cost more than 0.02.
    """

    def __init__(
        self, *, device: torch.device | str, val_data_loader: Sequence[SeedCases], network: nn.Module,
        max_seeds: int = 10, val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        measured = {f"val_{name}": Average(_reader(name)) for name in ("start", "last", "best", "believed", "drops")}
        super().__init__(
            device=device, val_data_loader=val_data_loader, key_val_metric={"val_iou": Average(_reader("iou"))},
            additional_metrics=measured, val_handlers=None, decollate=False,
        )  # fmt: skip
        self.network, self.max_seeds = network, max_seeds
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    def _iteration(self, engine: Any, batchdata: SeedCases) -> list[dict[str, float]]:
        """Play all cases of a set, from every pair of clicks."""
        with self.mode(self.network), torch.no_grad():
            engine.state.output = [play(self.network, batchdata, self.max_seeds)]
        return engine.state.output


def play(network: nn.Module, cases: SeedCases, max_seeds: int) -> dict[str, float]:
    """What :class:`SeedingEvaluator` measures on one set of cases."""
    task = SeedingTask(cases, max_steps=max_seeds)
    case = torch.arange(len(cases), device=cases.device).repeat_interleave(cases.pairs)
    state = task.start(case, torch.arange(cases.pairs, device=cases.device).repeat(len(cases)))
    score, quality = [], []
    for step in range(max_seeds + 1):
        heads = network.split(network(task.observe(state)).float())
        score.append(task.score(state))
        quality.append(heads.quality)
        if step == 0:
            believed = _iou(heads.mask_logits > 0, cases.masks(case))
        value = heads.q[:, 0, 0].clone()
        value[:, : 2 * task.count].masked_fill_(task.taken(state).repeat(1, 2), -torch.inf)
        state = task.advance(state, value.argmax(1))
    iou = torch.stack(score, 1)
    kept = iou.gather(1, torch.stack(quality, 1).argmax(1)[:, None])
    found = {
        "iou": kept, "start": iou[:, 0], "last": iou[:, -1], "best": iou.amax(1), "believed": believed,
        "drops": (iou.diff(dim=1) < -0.02).float(),
    }  # fmt: skip
    return {name: float(value.mean()) for name, value in found.items()}


class BestSeedNetworks(BestNetwork):
    """Keeps the best averaged agent beside its click network.

    Writes ``model.pt`` (the state dict of ``SeedNetworks``, in half precision) and ``agent.json``.
    """

    def __init__(self, folder: Path | str, *, click: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, settings=settings, metric="val_iou", highest=True)
        self.click = click

    def write(self, network: nn.Module) -> None:
        """Write both files."""
        with whole_file(self.folder / "model.pt") as part:
            torch.save(compact_weights(SeedNetworks([network], [self.click])), part)
        write_json(self.folder / "agent.json", self.settings)


def _reader(name: str) -> Any:
    return lambda output: output[0][name]


def _iou(mask: Tensor, truth: Tensor) -> Tensor:
    return (mask & truth).sum(1) / (mask | truth).sum(1).clamp(min=1)
