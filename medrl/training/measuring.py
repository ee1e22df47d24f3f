"""Validation that is one function of the network, as a MONAI engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from torch import nn


class MeasuringEvaluator(Evaluator, ABC):
    """Puts what `measure` says of the network, by name, into ``state.metrics`` as ``val_<name>``."""

    def __init__(
        self, *, device: torch.device | str, network: nn.Module, val_handlers: Sequence | None = None
    ) -> None:
        super().__init__(device=device, val_data_loader=[0], val_handlers=None, decollate=False)
        self.network = network
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Numbers by name; the network is in evaluation mode, and no gradient is kept."""

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, float]:
        with self.mode(self.network), torch.no_grad():
            numbers = self.measure()
        engine.state.metrics.update({f"val_{name}": value for name, value in numbers.items()})
        engine.state.output = numbers
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
