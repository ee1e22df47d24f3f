"""Validation of landmark agents in millimetres, as a MONAI engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medrl.data.cases import Source
from medrl.geometry.grids import spacing_of
from medrl.training.metrics import LandmarkErrorHandler, lower_is_better
from medrl.types import MISSING, InputError, Landmark


class Locator(Protocol):
    """An inferer that finds landmarks, in the order of the labels."""

    def locate(self, volume: Tensor, ras_from_voxel: Tensor, network: nn.Module) -> list[Landmark]:
        """Landmarks of one volume (X, Y, Z) whose voxels lie at ``ras_from_voxel`` (4, 4)."""
        ...


class RLEvaluator(Evaluator):
    """Walks the agent on whole volumes, as a user would, and measures the distance to the truth.

    ``val_data_loader`` is any iterable of :class:`medrl.data.cases.Source`; ``network`` is what acts
    (``agent.average``).  After a case, ``state.output`` is MONAI's decollated form, a list of one dict: ``pred`` and
    ``label`` (L, 3) in RAS mm, ``error_mm`` (L,) (all NaN where there is no answer or no truth), ``diagonal_mm`` of
    the image, ``known`` and ``missing`` (counts: landmarks with a truth, and those of them without an answer),
    ``steps`` (the most of a landmark), ``seconds`` and ``landmarks``; ``state.batch`` names the case for MetricsSaver.

    The key metric is the mean error ``val_error_mm`` with missed landmarks as far as the image's diagonal, lower is
    better: ``CheckpointSaver`` wants ``key_metric_negative_sign=True``, ``EarlyStopHandler`` the score function
    ``medrl.training.metrics.stopping_fn_from_error("val_error_mm")``.  The other arguments are those of
    ``monai.engines.Evaluator``.

    Raises InputError if a case has another number of landmarks than the inferer answers.
    """

    def __init__(
        self, *, device: torch.device | str, val_data_loader: Iterable[Source], network: nn.Module, inferer: Locator,
        epoch_length: int | None = None, key_val_metric: dict | None = None, additional_metrics: dict | None = None,
        metric_cmp_fn: Callable = lower_is_better, postprocessing: Callable | None = None,
        val_handlers: Sequence | None = None, event_names: list | None = None, event_to_attr: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            device=device, val_data_loader=val_data_loader, epoch_length=epoch_length, postprocessing=postprocessing,
            key_val_metric=key_val_metric or {"val_error_mm": LandmarkErrorHandler()},
            additional_metrics=additional_metrics, metric_cmp_fn=metric_cmp_fn, val_handlers=None,
            event_names=event_names, event_to_attr=event_to_attr, decollate=False,
        )  # fmt: skip
        self.network, self.inferer = network, inferer
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    def _iteration(self, engine: Any, batchdata: Source) -> list[dict[str, Any]]:
        """Locate the landmarks of one case and measure them."""
        source = batchdata
        start = time.perf_counter()
        with self.mode(self.network), torch.no_grad():
            landmarks = self.inferer.locate(source.volume, source.ras_from_voxel, self.network)
        seconds = time.perf_counter() - start
        if len(landmarks) != len(source.points_ras):
            raise InputError(
                f"{source.name}: {len(source.points_ras)} landmarks in the truth, but {len(landmarks)} are answered; "
                "use the labels the network was trained on"
            )
        nowhere = (torch.nan,) * 3
        pred = torch.tensor([nowhere if m.status == MISSING else m.position_mm for m in landmarks], dtype=torch.float64)
        label = source.points_ras.double().cpu()
        known = label.isfinite().all(-1)
        size = torch.tensor(source.volume.shape[-3:], dtype=torch.float64)
        engine.state.batch = [{"filename_or_obj": source.name, "source": source}]
        engine.state.output = [
            {
                "pred": pred,
                "label": label,
                "error_mm": (pred - label).norm(dim=-1),
                "diagonal_mm": float((size * spacing_of(source.ras_from_voxel.double().cpu())).norm()),
                "known": int(known.sum()),
                "missing": int((known & ~pred.isfinite().all(-1)).sum()),
                "steps": max((m.steps for m in landmarks), default=0),
                "seconds": seconds,
                "landmarks": landmarks,
            }
        ]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
