"""What every learner from its own latest steps shares: acting with a memory, recording, minibatches, resuming."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medrl.agents.base import Agent, schedule
from medrl.agents.categorical import best, draw, log_prob
from medrl.agents.cloning import follow
from medrl.networks.policy import PolicyOutput, restart, unroll
from medrl.rollout import Rollout, Sample
from medrl.types import Decision


class Asked(NamedTuple):
    """What ``act`` was asked and answered while training, for ``record``."""

    observation: Any
    memory: Tensor | None  # before the observation
    output: PolicyOutput


class OnPolicy(Agent, ABC):
    """Fills a rollout with what it does, learns from it, and starts the next one.

    One ``learn`` is ``epochs`` passes over the rollout in ``minibatches`` parts: whole sequences for a network with a
    memory, shuffled transitions for one without.  ``updates`` counts calls of ``learn``, and so do the learning rate's
    ``warm_up`` and ``average``, the half-life of the weight average.

    Asked to explore, the network draws its actions; otherwise the average acts greedily.  While training the agent
    keeps the memory of its rows by itself: ``act(observation, explore=True)`` for as many rows as the rollout has, then
    ``record``.  With a memory given, or another number of rows, nothing is kept and the next memory is handed back.
    """

    def __init__(
        self, network: nn.Module, *, rollout: Rollout, learning_rate: float = 3e-4, updates: int = 1000,
        warm_up: int = 10, epochs: int = 1, minibatches: int = 1, gradient_clip: float = 0.5,
        weight_decay: float = 0.0, average: float = 10.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.average = network, copy.deepcopy(network).eval().requires_grad_(False)
        self.rollout, self.device = rollout, rollout.device
        self.learning_rate, self.updates, self.warm_up = learning_rate, updates, warm_up
        self.epochs, self.minibatches, self.gradient_clip = epochs, minibatches, gradient_clip
        self.keep = 0.5 ** (1 / average)
        self.nvec = getattr(network, "nvec", None)  # actions of every choice, where an action is several choices
        self.memory = network.initial_memory(rollout.num_envs, self.device)
        self.units = rollout.num_envs if self.recurrent else rollout.num_envs * rollout.length
        if not 0 < minibatches <= self.units:
            kind = "sequences" if self.recurrent else "transitions"
            raise ValueError(f"minibatches {minibatches} must be 1 to {self.units}, the {kind} of a rollout")
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, eps=1e-5)
        self.update = 0
        self.asked: Asked | None = None

    @property
    def recurrent(self) -> bool:
        """Whether the network has a memory."""
        return self.memory is not None

    @property
    def ready(self) -> bool:
        """Whether the rollout is full."""
        return self.rollout.full

    @abstractmethod
    def prepare(self) -> dict[str, Tensor]:
        """Put what ``loss`` needs beside the steps of a full rollout; returns scalars to report."""

    @abstractmethod
    def loss(self, output: PolicyOutput, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), and scalars to report, of the network's answers (T, R, ...) to a sample."""

    @torch.no_grad()
    def act(self, observation: Any, memory: Tensor | None = None, explore: bool = False) -> Decision:
        """Drawn actions of the network, or greedy ones of the average."""
        own = explore and self._is_own(observation, memory)
        network = self.network if explore else self.average
        if own:
            memory = self.memory
        elif memory is None:
            memory = network.initial_memory(_rows(observation), self.device)
        output = network(observation, memory)
        action = draw(output.logits, self.generator, self.nvec) if explore else best(output.logits, self.nvec)
        if own:
            self.asked = Asked(observation, memory, output)
        return Decision(action, None if own else output.memory, output.value)

    @torch.no_grad()
    def record(self, state: Any, action: Tensor, step: Any) -> None:
        """Store the step that followed the last ``act``, and forget what rows that ended knew.

        Raises RuntimeError without such an ``act``.
        """
        if self.asked is None:
            raise RuntimeError("record follows act(observation, explore=True) with as many rows as the rollout has")
        observation, memory, output = self.asked
        self.rollout.add(
            state, step, memory=memory, next_memory=output.memory, observation=observation, action=action,
            value=output.value, log_prob=log_prob(output.logits, action, self.nvec), **self.remarks(state),
        )  # fmt: skip
        self.memory, self.asked = output.memory, None
        self.restart(step.terminated | step.truncated | ~step.metrics["active"])

    def remarks(self, state: Any) -> dict[str, Tensor]:
        """What else (B, ...) is to be stored of a step."""
        return {}

    def restart(self, mask: Tensor) -> None:
        """Forget what the rows of a mask (B,) knew: they start anew."""
        if self.recurrent:
            self.memory = restart(self.memory, self.network.initial_memory(len(mask), self.device), mask).detach()

    def learn(self) -> dict[str, Tensor]:
        """Learn from a full rollout and clear it; returns the means over all minibatches."""
        if not self.ready:
            raise RuntimeError(f"the rollout holds {self.rollout.time} of {self.rollout.length} steps: act first")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.update, self.updates, self.warm_up)
        with torch.no_grad():
            report = self.prepare()
        seen: dict[str, list[Tensor]] = {}
        for _ in range(self.epochs):
            for sample in self.samples():
                output = unroll(self.network, sample.observation, sample.memory, sample.reset)
                loss, parts = self.loss(output, sample)
                self._descend(loss)
                for name, value in {"loss": loss, **parts}.items():
                    seen.setdefault(name, []).append(value.detach())
        self.rollout.clear()
        self.update += 1
        follow(self.average, self.network, min(self.keep, self.update / (self.update + 10)))
        return {name: torch.stack(values).mean() for name, values in seen.items()} | report

    def samples(self) -> Any:
        """The rollout in shuffled minibatches."""
        order = torch.rand(self.units, generator=self.generator, device=self.device).argsort()
        for part in order.tensor_split(self.minibatches):
            yield self.rollout.sequences(part) if self.recurrent else self.rollout.transitions(part)

    def extra_state(self) -> dict[str, Any]:
        """Optimiser, clock, generator, memory and rollout."""
        return {
            "optimizer": self.optimizer.state_dict(), "update": self.update, "generator": self.generator.get_state(),
            "memory": self.memory, "rollout": self.rollout.state_dict(),
        }  # fmt: skip

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Undo ``extra_state``."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update = saved["update"]
        self.generator.set_state(saved["generator"].cpu())
        self.memory = None if saved["memory"] is None else saved["memory"].to(self.device, copy=True)
        self.rollout.load_state_dict(saved["rollout"])

    def _is_own(self, observation: Any, memory: Tensor | None) -> bool:
        """Whether exploring on this observation is a step of the rollout."""
        return memory is None and _rows(observation) == self.rollout.num_envs

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.gradient_hook is not None:
            self.gradient_hook(list(self.network.parameters()))
        nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        self.optimizer.step()


def mean(values: Tensor, active: Tensor) -> Tensor:
    """Mean over the active entries of (T, R)."""
    return torch.where(active, values, 0.0).sum() / active.sum().clamp(min=1)


def value_loss(value: Tensor, target: Tensor, old: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Squared error of values; with ``clip`` no better than of values that stay within ``clip`` of the ``old`` ones."""
    error = (value - target).square()
    if old is None or clip is None:
        return error
    near = old + (value - old).clamp(-clip, clip)
    return torch.maximum(error, (near - target).square())


def _rows(observation: Any) -> int:
    return len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
