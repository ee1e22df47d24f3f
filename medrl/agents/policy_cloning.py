"""Warm start of a policy from a free oracle, on the states that the policy itself visits [DAgger, Ross 2011]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medrl.agents.categorical import best, cross_entropy, one_hot, same, softmax
from medrl.agents.on_policy import OnPolicy, mean, value_loss
from medrl.networks.policy import PolicyOutput
from medrl.rollout import Rollout, Sample
from medrl.types import Decision


class PolicyCloning(OnPolicy):
    """Learns what the oracle would do wherever it goes, and the value of going there.

    The share of steps that the policy takes itself grows from 0 to 1 over ``mix_updates``; the oracle
    (``task.expert``) takes the others, from the state of ``environment``, the one that is stepped.  Learnt is the
    oracle's action, or where the task tells what every action gains in one step, ``task.action_gains(state)`` (B, A),
    the softmax of that over ``temperature``: near ties are then no mistakes.  The value head regresses the discounted
    return of what was done.  The other arguments are those of ``OnPolicy``.
    """

    def __init__(
        self, network: nn.Module, *, rollout: Rollout, environment: Any, gamma: float = 0.99, decay: float = 1.0,
        temperature: float = 1.0, mix_updates: int = 100, value_weight: float = 0.5, epochs: int = 1,
        minibatches: int = 4, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(network, rollout=rollout, epochs=epochs, minibatches=minibatches, **options)
        if environment.task is not rollout.task or environment.num_envs != rollout.num_envs:
            raise ValueError("the rollout must be of the environment's task and num_envs")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.environment, self.task = environment, rollout.task
        self.gamma, self.decay, self.temperature = gamma, decay, temperature
        self.mix_updates, self.value_weight = mix_updates, value_weight
        self.advice: Tensor | None = None  # what the oracle said when it was last asked by ``act``: it may be dear

    @property
    def share(self) -> float:
        """Share of steps that the policy takes itself at the present update."""
        return min(1.0, self.update / max(1, self.mix_updates)) if self.mix_updates > 0 else 1.0

    @torch.no_grad()
    def act(self, observation: Any, memory: Tensor | None = None, explore: bool = False) -> Decision:
        """The policy's actions; while training, some rows follow the oracle."""
        decision = super().act(observation, memory, explore)
        if self.share == 1 or not explore or not self._is_own(observation, memory):
            return decision
        chance = torch.rand(len(decision.action), generator=self.generator, device=self.device)
        expert = self.advice = self.task.expert(self.environment.state).long()
        own = (chance < self.share).reshape(-1, *[1] * (expert.ndim - 1))
        return decision._replace(action=torch.where(own, decision.action, expert))

    def remarks(self, state: Any) -> dict[str, Tensor]:
        """What the policy (B, A) ought to be in these states."""
        if hasattr(self.task, "action_gains"):
            return {"wanted": softmax(self.task.action_gains(state).float() / self.temperature, self.nvec)}
        expert = self.task.expert(state) if self.advice is None else self.advice
        self.advice = None
        return {"wanted": one_hot(expert, self.asked.output.logits.shape[-1], self.nvec)}

    def prepare(self) -> dict[str, Tensor]:
        """Discounted returns."""
        state, memory = self.rollout.successors()
        after = self.network(self.task.observe(state), memory).value
        advantage = self.rollout.advantage(after, gamma=self.gamma, decay=self.decay)
        self.rollout.put("target", advantage + self.rollout.store["value"])
        return {}

    def loss(self, output: PolicyOutput, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and value error; reports how often the policy's best action is the oracle's."""
        wanted, active = sample.values["wanted"], sample.active
        policy = mean(cross_entropy(output.logits, wanted, self.nvec), active)
        error = mean(value_loss(output.value, sample.values["target"]), active)
        agrees = same(best(output.logits, self.nvec), best(wanted, self.nvec), self.nvec)
        agreement = mean(agrees.float(), active)
        parts = {"policy_loss": policy, "value_loss": error, "agreement": agreement}
        return policy + self.value_weight * error, parts
