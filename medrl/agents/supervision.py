"""What one crop teaches beside actions: where each landmark is, how sure that is, and whether it is in view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from medrl.networks.concentric import Heads


class OffsetSupervision:
    """Loss of the offset, spread and presence heads.

    The offset's L1 error counts ``near_mm / (near_mm + distance)``: far crops need only point the way.  The spread
    learns the length of the (detached) error by Laplace likelihood, the presence by cross-entropy.  Landmarks whose
    truth is unknown count nowhere.
    """

    def __init__(self, *, near_mm: float = 3.0, spread: float = 0.1, presence: float = 0.2) -> None:
        self.near_mm, self.spread, self.presence = near_mm, spread, presence

    def __call__(self, heads: Heads, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; ``targets`` come from ``LandmarkTask.targets``."""
        known = targets["known"].float()
        error = heads.offset_mm - targets["offset_mm"]
        weight = known * self.near_mm / (self.near_mm + targets["offset_mm"].norm(dim=-1))
        offset = (weight * error.abs().sum(-1)).sum() / weight.sum().clamp(min=1e-6) / self.near_mm
        length = error.detach().norm(dim=-1)
        spread = (known * (length / heads.spread_mm + heads.spread_mm.log())).mean()
        presence = binary_cross_entropy_with_logits(heads.presence, targets["present"].float(), weight=known)
        loss = 2 * offset + self.spread * spread + self.presence * presence
        return loss, {"offset": offset.detach(), "spread": spread.detach(), "presence": presence.detach()}


def near_weight(targets: dict[str, Tensor], near_mm: float) -> Tensor:
    """Weight (B, L) of each landmark's action loss: crops far from a landmark teach its head less."""
    weight = targets["known"].float() * near_mm / (near_mm + targets["offset_mm"].norm(dim=-1))
    return weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
