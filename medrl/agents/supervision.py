"""What one crop teaches beside actions: where each landmark is, how sure that is, and whether it is in view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from medrl.networks.concentric import Heads
from medrl.networks.localisation import LocalisationHeads
from medrl.networks.seednet import SeedHeads


class MaskSupervision:
    """Loss of the segmentation head (cross-entropy and soft Dice) and of the mask's estimated IoU (cross-entropy)."""

    def __init__(self, *, mask: float = 1.0, quality: float = 0.2) -> None:
        self.mask, self.quality = mask, quality

    def __call__(
        self, heads: SeedHeads, targets: dict[str, Tensor], place_loss: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; ``targets`` come from ``SeedingTask.targets``."""
        truth = targets["mask"].float()
        chance = heads.mask_logits.sigmoid()
        dice = 1 - (2 * (chance * truth).sum(1) + 1) / ((chance + truth).sum(1) + 1)
        mask = binary_cross_entropy_with_logits(heads.mask_logits, truth) + dice.mean()
        quality = binary_cross_entropy_with_logits(heads.quality, targets["quality"])
        return self.mask * mask + self.quality * quality, {"mask": mask.detach(), "quality": quality.detach()}


class OverlapSupervision:
    """Loss of the head that tells the IoU of a box with the object in it: cross-entropy with the IoU itself."""

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(
        self, heads: LocalisationHeads, targets: dict[str, Tensor], place_loss: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; ``targets`` come from ``LocalisationTask.targets``."""
        overlap = binary_cross_entropy_with_logits(heads.overlap, targets["overlap"])
        return self.weight * overlap, {"overlap": overlap.detach()}


class OffsetSupervision:
    """Loss of the offset, spread and presence heads.

    The offset's L1 error counts ``(near_mm / (near_mm + distance)) ** power``: far crops need only point the way.
    The spread learns the length of the (detached) error by Laplace likelihood, the presence by cross-entropy.
    Landmarks whose truth is unknown count nowhere.
    """

    def __init__(
        self, *, near_mm: float = 3.0, power: float = 1.0, place: float = 0.3, spread: float = 0.1,
        presence: float = 0.2,
    ) -> None:  # fmt: skip
        self.near_mm, self.power, self.place = near_mm, power, place
        self.spread, self.presence = spread, presence

    def __call__(
        self, heads: Heads, targets: dict[str, Tensor], place_loss: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; ``targets`` come from ``LandmarkTask.targets``.

        ``place_loss`` (B, L) is the cross-entropy of a network that votes over places, weighted like the offset.
        """
        known = targets["known"].float()
        error = heads.offset_mm - targets["offset_mm"]
        weight = near_weight(targets, self.near_mm, self.power)
        offset = (weight * error.abs().sum(-1)).sum() / self.near_mm
        length = error.detach().norm(dim=-1)
        spread = (known * (length / heads.spread_mm + heads.spread_mm.log())).mean()
        presence = binary_cross_entropy_with_logits(heads.presence, targets["present"].float(), weight=known)
        loss = 2 * offset + self.spread * spread + self.presence * presence
        if place_loss is not None:
            loss = loss + self.place * (weight * place_loss).sum()
        return loss, {"offset": offset.detach(), "spread": spread.detach(), "presence": presence.detach()}


def near_weight(targets: dict[str, Tensor], near_mm: float, power: float = 1.0) -> Tensor:
    """Weight (B, L), summing to 1, of each landmark's loss: crops far from a landmark teach its head less."""
    weight = targets["known"].float()
    if "offset_mm" in targets:
        weight = weight * (near_mm / (near_mm + targets["offset_mm"].norm(dim=-1))) ** power
    return weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
