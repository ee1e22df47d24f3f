"""The four-convolution network of the first 3D landmark agents, for reproduction and comparison."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class AlansaryNet(nn.Module):
    """Values (B, actions) of the last crops (B, channels, n, n, n), grey values 0..255 [Alansary 2019, Leroy 2020].

    Convolutions of 5, 5, 4 and 3 voxels with 32, 32, 64 and 64 channels, a pooling by 2 after each but the last, PReLU
    with one slope a layer; then dense layers.  The two public forms differ in padding and dense layers:

    - ``same=False``: padding 1, 1, 1, 0, so 45^3 leaves 2^3 * 64 = 512 features, then 256 and 128 units with PReLU.
      This is Network3d of gml16/rl-medical: 550,860 parameters for four crops and six actions.
    - ``same=True``: padding that keeps the sides, so 45^3 leaves 5^3 * 64 = 8000 features, then 512, 256 and 128 units
      with a leaky rectifier of slope 0.01, as in amiralansary/rl-medical: 4,647,370 parameters.

    ``dueling`` doubles the dense layers into a value and an advantage stream, ``V + A - mean A`` [Wang 2016].  Raises
    ValueError where ``size`` n is too small for the convolutions.
    """

    def __init__(
        self, *, channels: int = 4, size: int = 45, actions: int = 6, dueling: bool = False, same: bool = False
    ) -> None:
        super().__init__()
        kernels, widths, paddings = (5, 5, 4, 3), (channels, 32, 32, 64, 64), (1, 1, 1, 0)
        trunk: list[nn.Module] = []
        side = size
        for n, kernel in enumerate(kernels):
            before, after = ((kernel - 1) // 2, kernel // 2) if same else (paddings[n], paddings[n])
            if before != after:  # an even kernel keeps the sides only if padded by one more on the far side
                trunk.append(nn.ConstantPad3d((0, 1) * 3, 0.0))
            trunk += [nn.Conv3d(widths[n], widths[n + 1], kernel, padding=before), nn.PReLU()]
            side += before + after - kernel + 1
            if n < len(kernels) - 1:
                trunk.append(nn.MaxPool3d(2))
                side //= 2
        if side < 1:
            raise ValueError(f"crops of {size} voxels are too small for four convolutions")
        self.trunk = nn.Sequential(*trunk, nn.Flatten())
        features = widths[-1] * side**3
        self.advantage = _dense(features, actions, same=same)
        self.value = _dense(features, 1, same=same) if dueling else None
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Crops (B, channels, n, n, n), uint8 or float -> (B, actions)."""
        feature = self.trunk(image.to(torch.float32) / 255)
        advantage = self.advantage(feature)
        if self.value is None:
            return advantage
        return self.value(feature) + advantage - advantage.mean(1, keepdim=True)


def _dense(features: int, outputs: int, *, same: bool) -> nn.Sequential:
    """Dense layers down to ``outputs``, in the form of the one or the other publication."""
    widths = (features, 512, 256, 128) if same else (features, 256, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.01) if same else nn.PReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
