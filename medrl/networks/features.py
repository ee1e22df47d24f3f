"""Feature networks of two modalities, whose dot product under a pose is a learned similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

MODALITIES = ("ct", "mr")


class CoarseNet(nn.Module):
    """Images (B, 2, X, Y, Z) at 4 mm, sides a multiple of 4, in any orientation -> features (B, C, X/2, Y/2, Z/2).

    Features are unit vectors.  (With a learned length, what a place counts, the networks learned to read the edges of
    the field instead of the anatomy.)
    """

    def __init__(self, *, channels: Sequence[int] = (32, 64), features: int = 16) -> None:
        super().__init__()
        near, far = channels
        self.stem = nn.Sequential(nn.Conv3d(2, near, 4, stride=2, padding=1), _Block(near))
        self.deep = nn.Sequential(nn.Conv3d(near, far, 4, stride=2, padding=1), _Block(far), _Block(far))
        self.up = nn.Conv3d(far, near, 1)
        self.middle = _Block(near)
        self.last = nn.Conv3d(near, features, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Look at whole images."""
        value = self.stem(image)
        value = value + interpolate(self.up(self.deep(value)), scale_factor=2, mode="trilinear")
        return _unit(self.last(self.middle(value)))


class FeaturePair(nn.Module):
    """One network a modality, and what makes a likelihood of their products.

    ``log_scale`` () turns a mean product into a log-likelihood.
    """

    def __init__(self, ct: nn.Module, mr: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"ct": ct, "mr": mr})
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor, modality: str) -> Tensor:
        """Features of images (B, 2, X, Y, Z) of one modality."""
        return self.networks[modality](image)


class PairNetworks(nn.Module):
    """All that a registration bundle has learned: feature networks, options of which are given, and the policy."""

    def __init__(self, *, coarse: Mapping[str, Any] | None = None, policy: nn.Module | None = None) -> None:
        super().__init__()
        self.coarse = FeaturePair(*(CoarseNet(**(coarse or {})) for _ in MODALITIES))
        self.policy = policy

    @property
    def scale(self) -> Tensor:
        """() log-likelihood of a unit of mean product."""
        return self.coarse.log_scale.detach().exp()

    def forward(self, image: Tensor) -> Tensor:
        """Products (B, 1, X/2, Y/2, Z/2) of the features of a CT and an MR image (B, 2 + 2, X, Y, Z) on one grid."""
        ct, mr = (self.coarse(part, name) for part, name in zip(image.split(2, 1), MODALITIES, strict=True))
        return (ct * mr).sum(1, keepdim=True)


class _Block(nn.Module):
    """Residual pair of convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.second(torch.relu(self.first(torch.relu(self.norm(value)))))


def _unit(value: Tensor) -> Tensor:
    return normalize(value.float(), dim=1, eps=1e-4)
