"""The network that cuts an object out of its context, and the pair of networks of a cutting agent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medrl.geometry.colour_chance import colour_chance

CHANNELS = (
    "red", "green", "blue", "red before", "green before", "blue before", "mask before", "object box",
    "colour chance", "fine colour chance",
)  # fmt: skip


class Cutter(nn.Module):
    """Cuts an object: object-context pairs (B, 10, n, n) in 0..1 to logits (B, 1, n, n).

    The channels are ``CHANNELS``: the context box of this frame and of the frame before, the mask that was found
    before, where the object box lies, and how likely every colour is the object's by the frame that was given, which
    does not forget.  n must be a multiple of 4.  Beside them the network sees the same by histograms of the frame
    before, coarse and fine (`colour_chance`).  It is a small U-Net on a half and a quarter of the resolution, from 2 x
    2 cells and to 2 x 2 cells a place [Shi 2016]: half the time of MONAI's UNet of these widths, which, too, would
    normalise its one output channel.  Rows never mix.
    """

    def __init__(self, *, widths: Sequence[int] = (32, 64), bins: Sequence[int] = (4, 8)) -> None:
        super().__init__()
        first, second = widths
        self.bins = tuple(bins)
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), _block(4 * (len(CHANNELS) + len(self.bins)), first))
        self.coarse = nn.Sequential(_block(first, second, stride=2), _block(second, second))
        self.back = nn.Sequential(nn.Conv2d(second, first, 1), nn.Upsample(scale_factor=2))
        self.out = nn.Sequential(_block(first, first), nn.Conv2d(first, 4, 1), nn.PixelShuffle(2))

    def forward(self, pair: Tensor) -> Tensor:
        """Logits (B, 1, n, n)."""
        now, before, mask = pair[:, :3], pair[:, 3:6], pair[:, 6:7]
        fine = self.fine(torch.cat([pair, *(colour_chance(now, before, mask, bins) for bins in self.bins)], 1))
        return self.out(fine + self.back(self.coarse(fine)))


class CuttingNetworks(nn.Module):
    """A cutter, and the policy that moves its boxes; called with object-context pairs it cuts."""

    def __init__(self, *, cutter: nn.Module, policy: nn.Module) -> None:
        super().__init__()
        self.cutter, self.policy = cutter, policy

    def forward(self, pair: Tensor) -> Tensor:
        """Logits (B, 1, n, n) of pairs (B, 10, n, n)."""
        return self.cutter(pair)


def cut_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy and soft Dice of logits (B, 1, n, n) against the share of each cell that is object."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, truth)
    chance = logits.sigmoid()
    both, total = ((x).flatten(1).sum(1) for x in (chance * truth, chance + truth))
    return entropy + (1 - (2 * both + 1) / (total + 1)).mean()


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.SiLU()
    )
