"""Networks over concentric crops: one shared trunk, one set of heads a landmark."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

ACTIONS = 7  # six moves along the axes, and settle
SETTLE_INDEX = 6
EXTRA = 5  # offset (3), spread, presence


class Heads(NamedTuple):
    """What the network says of each of L landmarks, seen from one crop."""

    q: Tensor  # (B, L, scales, ACTIONS) action values in step lengths of distance gained
    offset_mm: Tensor  # (B, L, 3) from the crop's centre to the landmark
    spread_mm: Tensor  # (B, L) expected length of the offset's error (Laplace scale)
    presence: Tensor  # (B, L) logit: the landmark lies inside the field of view


class LandmarkNet(nn.Module):
    """What networks of landmark agents share: the layout of the one output tensor (B, L, scales * 7 * N + 5).

    N is the number of ``quantiles`` of each action's return: 1 is its mean, more a distribution [Dabney 2018].
    """

    def __init__(self, *, landmarks: int, scales: int, unit_mm: float, quantiles: int = 1) -> None:
        super().__init__()
        self.landmarks, self.scales, self.unit_mm, self.quantiles = landmarks, scales, unit_mm, quantiles
        self.actions, self.moves = ACTIONS, scales * ACTIONS * quantiles  # as attributes: TorchScript reads no globals

    @torch.jit.unused
    def split(self, output: Tensor) -> Heads:
        """Name the parts of the output; lengths in mm."""
        moves = self.moves
        q = self._quantiles(output).mean(-1)
        offset = output[..., moves : moves + 3] * self.unit_mm
        spread = (softplus(output[..., moves + 3]) + 0.005) * self.unit_mm
        return Heads(q, offset, spread, output[..., moves + 4])

    @torch.jit.unused
    def action_values(self, output: Tensor, scale: Tensor) -> Tensor:
        """Values (B, L, ACTIONS) of all landmarks at each row's scale (B,)."""
        return self.action_quantiles(output, scale).mean(-1)

    @torch.jit.unused
    def action_quantiles(self, output: Tensor, scale: Tensor) -> Tensor:
        """Quantiles (B, L, ACTIONS, N) of the returns of all landmarks at each row's scale (B,)."""
        quantiles = self._quantiles(output)
        return quantiles[torch.arange(len(quantiles), device=quantiles.device), :, scale]

    @torch.jit.unused
    def _quantiles(self, output: Tensor) -> Tensor:
        shape = (*output.shape[:-1], self.scales, self.actions, self.quantiles)
        return output[..., : self.moves].reshape(shape)


def grey_to_float(image: Tensor) -> Tensor:
    """uint8 grey values to floats in [0, 1]; what lies outside the field of view (0) becomes -0.5."""
    grey = image.to(torch.float32)
    return torch.where(grey > 0, (grey - 1) / 254, torch.full_like(grey, -0.5))


def convolve(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, rectifier."""
    return nn.Sequential(
        nn.Conv3d(before, after, 3, stride, 1, bias=False), nn.BatchNorm3d(after), nn.ReLU(inplace=True)
    )


def small_linear(before: int, after: int) -> nn.Linear:
    """A last layer whose first answers are near 0."""
    layer = nn.Linear(before, after)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def dueling_values(raw: Tensor, dueling: bool) -> Tensor:
    """Values (..., A, N) from (..., A + 1, N): ``V + A - mean A`` with V last [Wang 2016], or the first A alone."""
    raw = raw.float()
    advantages = raw[..., :-1, :]
    if not dueling:
        return advantages
    return raw[..., -1:, :] + advantages - advantages.mean(-2, keepdim=True)


class ConcentricNet(LandmarkNet):
    """3D convolutions with a stride-2 stem over crops (B, levels, n, n, n), levels as channels, one hidden layer.

    The cheap network: 60 MFLOP a crop of 17^3 at three levels.  ``communicate`` adds to each head's output what the
    mean of all heads says [Leroy 2020].
    """

    def __init__(
        self, *, landmarks: int, levels: int = 3, size: int = 17, scales: int = 3, width: int = 32, hidden: int = 256,
        unit_mm: float = 10.0, dueling: bool = True, communicate: bool = False, quantiles: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(landmarks=landmarks, scales=scales, unit_mm=unit_mm, quantiles=quantiles)
        self.dueling, self.communicate = dueling, communicate
        self.trunk = nn.Sequential(
            convolve(levels, width, 2), convolve(width, 2 * width, 2), convolve(2 * width, 2 * width),
            convolve(2 * width, 4 * width, 2), nn.Flatten(),
        )  # fmt: skip
        side = size
        for _ in range(3):
            side = (side + 1) // 2
        self.hidden = nn.Sequential(nn.Linear(4 * width * side**3, hidden), nn.ReLU(inplace=True))
        self.place_head = small_linear(hidden, landmarks * EXTRA)
        self.value_head = small_linear(hidden, landmarks * scales * (ACTIONS + 1) * quantiles)
        self.talk = nn.Linear(hidden, landmarks * 32) if communicate else nn.Identity()
        self.listen = small_linear(64, EXTRA + scales * (ACTIONS + 1) * quantiles) if communicate else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Crops (B, levels, n, n, n) -> (B, landmarks, scales * 7 + 5)."""
        feature = self.hidden(self.trunk(grey_to_float(image)))
        out = self.place_head(feature).reshape(-1, self.landmarks, 5).float()
        raw = self.value_head(feature).reshape(len(out), self.landmarks, -1).float()
        if self.communicate:
            said = torch.relu(self.talk(feature)).reshape(-1, self.landmarks, 32)
            heard = self.listen(torch.cat([said, said.mean(1, keepdim=True).expand_as(said)], -1)).float()
            out, raw = out + heard[..., :5], raw + heard[..., 5:]
        shape = (-1, self.landmarks, self.scales, self.actions + 1, self.quantiles)
        q = dueling_values(raw.reshape(shape), self.dueling)
        return torch.cat([q.flatten(2), out], -1)
