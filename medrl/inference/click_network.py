"""The probability of an object, from an image and clicks, by a network: the prior of the random walker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medrl.data.clicks import Clicks, click_input
from medrl.networks.click_network import ClickNet
from medrl.types import InputError


class ClickPrior:
    """A click network with what its input looks like.

    Args:
        network: (B, 7, *S) -> logits (B, 1, *S); the channels are those of `medrl.data.clicks.click_input`.  The
            sides of S are filled up to multiples of its ``multiple``, with what lies outside an image.
        near, wide: scales of the clicks' channels, in nodes.
        mirrors: lattice axes along which the mean over mirrored copies is taken; each doubles the time.
    """

    def __init__(
        self, network: nn.Module, *, near: float = 2.0, wide: float = 12.0, mirrors: Sequence[int] = ()
    ) -> None:
        self.network = network.eval()
        self.near, self.wide, self.mirrors = near, wide, tuple(mirrors)

    @torch.inference_mode()
    def __call__(self, image: Tensor, clicks: Clicks) -> Tensor:
        """Probability of the object at every node, (B, *S) float32.

        Args:
            image: (B, *S) uint8, grey values of a region (`medrl.data.regions.grey_levels`), 0 outside the image.
            clicks: of each row, on S; rows without clicks are answered too.
        """
        logits = self._logits(image, clicks)
        for axes in list(product(*[(False, True)] * len(self.mirrors)))[1:]:
            flips = [axis for axis, flip in zip(self.mirrors, axes, strict=True) if flip]
            logits += self._logits(image, clicks, flips)
        return (logits / 2 ** len(self.mirrors)).sigmoid()

    def _logits(self, image: Tensor, clicks: Clicks, flips: Sequence[int] = ()) -> Tensor:
        shape = image.shape[1:]
        values = click_input(image, clicks, near=self.near, wide=self.wide)
        values = fill_up(values, getattr(self.network, "multiple", 1))
        if flips:
            values = values.flip([axis + 2 for axis in flips])
        logits = self.network(values).float()
        if flips:
            logits = logits.flip([axis + 2 for axis in flips])
        return logits[(slice(None), 0, *(slice(size) for size in shape))]

    def save(self, path: Path | str, settings: Mapping[str, Any]) -> None:
        """Write weights in half precision, and the ``settings`` of the ClickNet that they belong to."""
        weights = {name: value.half() for name, value in self.network.state_dict().items()}
        inputs = {"near": self.near, "wide": self.wide, "mirrors": list(self.mirrors)}
        torch.save({"network": dict(settings), "input": inputs, "weights": weights}, path)

    @classmethod
    def load(cls, path: Path | str, **changes: Any) -> ClickPrior:
        """Read what `save` wrote; ``changes`` replace settings of the constructor, such as ``mirrors``.

        Raises:
            InputError: a file that is no click network.
        """
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            network = ClickNet(**stored["network"])
            network.load_state_dict({name: value.float() for name, value in stored["weights"].items()})
            settings = stored["input"] | changes
        except Exception as error:
            raise InputError(
                f"{Path(path).name}: not a click network ({type(error).__name__}); expected a file of ClickPrior.save"
            ) from error
        return cls(network, **settings)


def fill_up(values: Tensor, multiple: int) -> Tensor:
    """Add nodes at the upper ends of (B, 7, *S) until the sides are multiples: outside the image, far from clicks."""
    rest = [n for size in reversed(values.shape[2:]) for n in (0, -size % multiple)]
    if not any(rest):
        return values
    empty = torch.tensor([-1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], device=values.device)
    empty = empty.view(1, -1, *[1] * (values.ndim - 2))
    return pad(values - empty, rest) + empty
