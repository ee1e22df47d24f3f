"""A policy's logits alone: one tensor in, one out, as MONAI's checks and exports of a bundle expect."""

from __future__ import annotations

from torch import Tensor, nn


class Actor(nn.Module):
    """Observations (B, ...) to logits (B, A) of a policy without a memory."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> Tensor:
        """What the policy would do."""
        return self.policy(observation).logits
