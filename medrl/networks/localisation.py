"""The network of a localisation agent, and a box regressor with the same encoder to compare it with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

HISTORY = 10


class LocalisationHeads(NamedTuple):
    """What the network says of B observations."""

    q: Tensor  # (B, 1, 1, A)
    overlap: Tensor  # (B,) logit of the IoU with the object in view


class BoxEncoder(nn.Module):
    """Images (B, C, *[size]) of bytes to features (B, ``features``)."""

    def __init__(self, *, channels: int, dims: int = 2, size: int = 24, width: int = 16, features: int = 128) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.features = features
        self.trunk = nn.Sequential(
            convolution(channels, width, 5, stride=2, padding=2), nn.SiLU(),
            convolution(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(1, 2 * width), nn.SiLU(),
            convolution(2 * width, 4 * width, 3, stride=1 if dims == 2 else 2, padding=1), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        left = -(-size // 4) if dims == 2 else -(-size // 8)
        self.dense = nn.Sequential(nn.Linear(4 * width * left**dims, features), nn.LayerNorm(features), nn.SiLU())

    def forward(self, image: Tensor) -> Tensor:
        """Answer B images."""
        return self.dense(self.trunk(image.float() / 128 - 1))


class LocalisationNet(nn.Module):
    """Values of all actions and the logit of the IoU (B, A + 1), of observations of ``LocalisationTask``.

    Args:
        channels: C of the images; an observation has one more, the page of the last actions.
        actions: A.
        dims: 2 or 3.
        view: cells of the observation along each axis.
    """

    def __init__(
        self, *, channels: int, actions: int, dims: int = 2, view: int = 24, width: int = 16, hidden: int = 128
    ) -> None:
        super().__init__()
        self.channels, self.actions, self.dims, self.view = channels, actions, dims, view
        self.encoder = BoxEncoder(channels=channels, dims=dims, size=view, width=width, features=hidden)
        self.head = nn.Sequential(nn.Linear(hidden + HISTORY * actions, hidden), nn.SiLU())
        self.values = nn.Linear(hidden, actions)
        # without the history: what a box holds does not depend on how one came to it
        self.overlap = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Answer observations (B, C + 1, *[view])."""
        features = self.encoder(image[:, : self.channels])
        page = image[:, self.channels] if self.dims == 2 else image[:, self.channels, 0]
        history = page[:, :HISTORY, : self.actions].flatten(1).float() / 255
        values = self.values(self.head(torch.cat([features, history], 1)))
        return torch.cat([values, self.overlap(features)], 1)

    def action_values(self, output: Tensor, scale: Tensor | None = None) -> Tensor:
        """Values (B, 1, A)."""
        return output[:, None, : self.actions]

    def split(self, output: Tensor) -> LocalisationHeads:
        """Name the parts of an output."""
        return LocalisationHeads(output[:, None, None, : self.actions], output[:, self.actions])


class BoxRegressor(nn.Module):
    """One box (B, 2 D) as shares of the image, and the logit of its IoU (B,), of images (B, C, *[view])."""

    def __init__(self, *, channels: int, dims: int = 2, view: int = 24, width: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = BoxEncoder(channels=channels, dims=dims, size=view, width=width, features=hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * dims + 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Answer B images."""
        out = self.head(self.encoder(image))
        middle, side = out[:, : self.dims].sigmoid(), out[:, self.dims : 2 * self.dims].sigmoid()
        return torch.cat([middle - side / 2, middle + side / 2], 1), out[:, -1]
