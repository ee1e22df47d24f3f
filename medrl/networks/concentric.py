"""Network over concentric crops: one shared trunk, one set of heads a landmark."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

ACTIONS = 7  # six moves along the axes, and settle


class Heads(NamedTuple):
    """What the network says of each of L landmarks, seen from one crop."""

    q: Tensor  # (B, L, scales, ACTIONS) action values in step lengths of distance gained
    offset_mm: Tensor  # (B, L, 3) from the crop's centre to the landmark
    spread_mm: Tensor  # (B, L) expected length of the offset's error (Laplace scale)
    presence: Tensor  # (B, L) logit: the landmark lies inside the field of view


class ConcentricNet(nn.Module):
    """3D convolutions with a stride-2 stem over crops (B, levels, n, n, n), uint8 or float grey values.

    The output (B, landmarks, scales * 7 + 5) is one tensor, so that the module scripts, exports and serves as a
    bundle's ``network_def``; ``split`` names its parts.  Grey value 0 (outside the field of view) is set apart from
    the darkest tissue.  ``communicate`` adds to each head's input the mean over the heads [Leroy 2020].
    """

    def __init__(
        self, *, landmarks: int, levels: int = 3, size: int = 17, scales: int = 3, width: int = 32, hidden: int = 256,
        unit_mm: float = 10.0, dueling: bool = True, communicate: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.landmarks, self.scales, self.unit_mm = landmarks, scales, unit_mm
        self.dueling, self.communicate = dueling, communicate

        def block(before: int, after: int, stride: int) -> list[nn.Module]:
            return [nn.Conv3d(before, after, 3, stride, 1, bias=False), nn.BatchNorm3d(after), nn.ReLU(inplace=True)]

        self.trunk = nn.Sequential(
            *block(levels, width, 2), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1),
            *block(2 * width, 4 * width, 2), nn.Flatten(),
        )  # fmt: skip
        side = size
        for _ in range(3):
            side = (side + 1) // 2
        self.hidden = nn.Sequential(nn.Linear(4 * width * side**3, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.outputs = scales * ACTIONS + 5 + (scales if dueling else 0)
        self.head = nn.Linear(hidden, landmarks * self.outputs)
        self.talk = nn.Linear(hidden, landmarks * 32) if communicate else nn.Identity()
        self.listen = nn.Linear(64, self.outputs) if communicate else nn.Identity()
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Crops (B, levels, n, n, n) -> (B, landmarks, scales * 7 + 5)."""
        grey = image.to(torch.float32)
        grey = torch.where(grey > 0, (grey - 1) / 254, torch.full_like(grey, -0.5))
        feature = self.hidden(self.trunk(grey))
        out = self.head(feature).reshape(-1, self.landmarks, self.outputs).float()
        if self.communicate:
            said = torch.relu(self.talk(feature)).reshape(-1, self.landmarks, 32)
            heard = torch.cat([said, said.mean(1, keepdim=True).expand_as(said)], -1)
            out = out + self.listen(heard).float()
        moves = self.scales * ACTIONS
        q = out[..., :moves].reshape(-1, self.landmarks, self.scales, ACTIONS)
        if self.dueling:
            value = out[..., moves + 5 :].unsqueeze(-1)
            q = value + q - q.mean(-1, keepdim=True)
        return torch.cat([q.flatten(2), out[..., moves : moves + 5]], -1)

    def split(self, output: Tensor) -> Heads:
        """Name the parts of the output; lengths in mm."""
        moves = self.scales * ACTIONS
        q = output[..., :moves].reshape(*output.shape[:-1], self.scales, ACTIONS)
        offset = output[..., moves : moves + 3] * self.unit_mm
        spread = (nn.functional.softplus(output[..., moves + 3]) + 0.005) * self.unit_mm
        return Heads(q, offset, spread, output[..., moves + 4])

    def action_values(self, output: Tensor, scale: Tensor) -> Tensor:
        """Values (B, L, ACTIONS) of all landmarks at each row's scale (B,)."""
        moves = self.scales * ACTIONS
        q = output[..., :moves].reshape(*output.shape[:-1], self.scales, ACTIONS)
        return q[torch.arange(len(q), device=q.device), :, scale]
