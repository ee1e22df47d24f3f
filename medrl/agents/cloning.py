"""Behaviour cloning of a free oracle: warm start and baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from medrl.agents.base import Agent, every_value, image_of, look, own_value, schedule
from medrl.agents.oracle import oracle_returns
from medrl.agents.supervision import near_weight
from medrl.types import Decision


class Cloning(Agent):
    """Learns what the oracle would do, from states drawn at will; every crop teaches every head at every scale.

    ``imitate`` "actions" is cross-entropy on the oracle's best action (the classical clone); "gains" regresses what
    each action gains in one step, which is also a value function with discount 0 and so a warm start for DQN;
    "returns" what each earns if the oracle goes on for ``horizon`` steps, a value function with the discount ``gamma``.
    ``average`` is the half-life in updates of the weight average that acts.
    """

    def __init__(
        self, network: nn.Module, *, task: Any, batch_size: int = 64, learning_rate: float = 1e-3,
        updates: int = 10_000,
        weight_decay: float = 0.05, imitate: str = "gains", near_mm: float = 3.0, supervision: Callable | None = None,
        average: float = 300.0, bf16: bool = True, clip: float = 5.0, gamma: float = 0.9, horizon: int = 3,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if imitate not in ("actions", "gains", "returns"):
            raise ValueError(f"imitate must be 'actions', 'gains' or 'returns', not {imitate!r}")
        self.network, self.average = network, copy.deepcopy(network).eval().requires_grad_(False)
        self.task, self.batch_size, self.imitate, self.near_mm = task, batch_size, imitate, near_mm
        self.learning_rate, self.updates, self.clip, self.bf16 = learning_rate, updates, clip, bf16
        self.gamma, self.horizon = gamma, horizon
        self.supervision, self.keep = supervision, 0.5 ** (1 / average)
        self.device = torch.device(getattr(task.cases, "device", "cpu"))
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        self.update = 0

    @torch.no_grad()
    def act(self, observation: Any, memory: Any = None, explore: bool = False) -> Decision:
        """Greedy actions of the averaged network."""
        output = self.average(image_of(observation))
        values = own_value(every_value(self.average, output, observation), observation)
        return Decision(values.argmax(-1), memory, values.amax(-1))

    def learn(self) -> dict[str, Tensor]:
        """One update on freshly drawn states."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.update, self.updates)
        state = self.task.sample(self.batch_size, self.generator)
        observation, targets = self.task.observe(state), self.task.targets(state)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output, place = look(self.network, image_of(observation), targets)
        heads = self.network.split(output)
        weight = near_weight(targets, self.near_mm)[..., None]
        gains = targets["gains"]
        if self.imitate == "returns":
            earned = oracle_returns(self.task, state, gamma=self.gamma, horizon=self.horizon)
            action_loss = (smooth_l1_loss(heads.q[:, 0, 0], earned, reduction="none").mean(-1) * weight[:, 0, 0]).sum()
        elif self.imitate == "gains":
            action_loss = ((heads.q - gains).abs().mean(-1) * weight).sum() / gains.shape[-2]
        else:
            best = gains.argmax(-1)
            loss = cross_entropy(heads.q.flatten(0, -2), best.flatten(), reduction="none").reshape(best.shape)
            action_loss = (loss * weight).sum() / gains.shape[-2]
        loss, parts = action_loss, {"action": action_loss.detach()}
        if self.supervision is not None:
            extra, more = self.supervision(heads, targets, place)
            loss, parts = loss + extra, parts | more
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.gradient_hook is not None:
            self.gradient_hook(list(self.network.parameters()))
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.update += 1
        follow(self.average, self.network, min(self.keep, self.update / (self.update + 10)))
        return {"loss": loss.detach(), **parts}

    def extra_state(self) -> dict[str, Any]:
        """Optimiser, clock and generator."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "generator": self.generator.get_state(),
        }

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Undo ``extra_state``."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update = saved["update"]
        self.generator.set_state(saved["generator"].cpu())


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    """Move a weight average towards a network: ``keep`` of the old, the rest of the new."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)
