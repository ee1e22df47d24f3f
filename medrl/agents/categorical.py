"""Policies over one choice, or over several independent ones: logits (..., A), or of each in turn (..., sum of nvec).

``nvec`` holds how many actions every choice has, as in ``gymnasium.spaces.MultiDiscrete``; None means one choice.
Actions are (...) of one choice, (..., H) of several; log-probabilities, entropies and divergences are sums over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Choices = Sequence[int] | None


def draw(logits: Tensor, generator: torch.Generator, nvec: Choices = None) -> Tensor:
    """Actions (B,) or (B, H) of the policy with logits (B, A), by Gumbel noise: nothing waits for the device."""
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).clamp(min=1e-20)
    return best(logits - (-noise.log()).clamp(min=1e-20).log(), nvec)


def best(logits: Tensor, nvec: Choices = None) -> Tensor:
    """The likeliest actions (...) or (..., H)."""
    if nvec is None:
        return logits.argmax(-1)
    return torch.stack([part.argmax(-1) for part in logits.split(list(nvec), -1)], -1)


def log_prob(logits: Tensor, action: Tensor, nvec: Choices = None) -> Tensor:
    """Log-probability (...) of actions (...) or (..., H) under logits (..., A)."""
    if nvec is None:
        return logits.log_softmax(-1).gather(-1, action.long()[..., None])[..., 0]
    parts = zip(logits.split(list(nvec), -1), action.unbind(-1), strict=True)
    return torch.stack([log_prob(part, chosen) for part, chosen in parts]).sum(0)


def entropy(logits: Tensor, nvec: Choices = None) -> Tensor:
    """Entropy (...) of policies with logits (..., A)."""
    return _each(_entropy, nvec, logits)


def divergence(logits: Tensor, other: Tensor, nvec: Choices = None) -> Tensor:
    """Kullback-Leibler divergence (...) of a policy from another, of logits (..., A) both."""
    return _each(_divergence, nvec, logits, other)


def cross_entropy(logits: Tensor, wanted: Tensor, nvec: Choices = None) -> Tensor:
    """Cross-entropy (...) of policies with logits (..., A) to wanted probabilities (..., A)."""
    return _each(lambda x, y: -(y * x.log_softmax(-1)).sum(-1), nvec, logits, wanted)


def softmax(logits: Tensor, nvec: Choices = None) -> Tensor:
    """Probabilities (..., A) of every choice."""
    if nvec is None:
        return logits.softmax(-1)
    return torch.cat([part.softmax(-1) for part in logits.split(list(nvec), -1)], -1)


def one_hot(action: Tensor, actions: int, nvec: Choices = None) -> Tensor:
    """Actions (B,) or (B, H) as probabilities (B, A)."""
    each = zip((actions,) if nvec is None else nvec, action.long().reshape(len(action), -1).unbind(1), strict=True)
    empty = [(torch.zeros(len(action), count, device=action.device), chosen) for count, chosen in each]
    return torch.cat([zeros.scatter_(1, chosen[:, None], 1.0) for zeros, chosen in empty], 1)


def same(first: Tensor, second: Tensor, nvec: Choices = None) -> Tensor:
    """(...) bool: actions (...) or (..., H) agree in every choice."""
    equal = first == second
    return equal if nvec is None else equal.all(-1)


def _each(function: Callable[..., Tensor], nvec: Choices, *logits: Tensor) -> Tensor:
    if nvec is None:
        return function(*logits)
    parts = zip(*(x.split(list(nvec), -1) for x in logits), strict=True)
    return torch.stack([function(*part) for part in parts]).sum(0)


def _entropy(logits: Tensor) -> Tensor:
    log = logits.log_softmax(-1)
    return -(log.exp() * log.clamp(min=-1e9)).sum(-1)


def _divergence(logits: Tensor, other: Tensor) -> Tensor:
    log = logits.log_softmax(-1)
    return (log.exp() * (log - other.log_softmax(-1)).clamp(-1e9, 1e9)).sum(-1)
