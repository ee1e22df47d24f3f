"""Advantage actor-critic [A2C, Mnih 2016] and proximal policy optimisation [PPO, Schulman 2017] over states."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from medrl.agents.categorical import divergence, entropy, log_prob
from medrl.agents.cloning import follow
from medrl.agents.on_policy import OnPolicy, mean, value_loss
from medrl.networks.policy import PolicyOutput, restart, unroll
from medrl.rollout import Rollout, Sample


def a2c_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Negative policy gradient surrogate (...), whose gradient is that of the return."""
    return -log_prob * advantage


def ppo_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """Negative clipped surrogate (...): no gain from a probability ratio outside 1 - clip .. 1 + clip."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


class ActorCritic(OnPolicy):
    """Policy gradient with generalised advantages of decay ``decay`` (GAE's lambda).

    ``value_clip`` limits how far a value moves in one ``learn``.  ``anchor`` above 0 weighs the divergence from the
    policy as it was before the first update, such as a clone: learning may leave it where that pays.  It has a memory
    of its own.  The other arguments are those of ``OnPolicy``.
    """

    def __init__(
        self, network: nn.Module, *, rollout: Rollout, gamma: float = 0.99, decay: float = 0.95,
        entropy: float = 0.01, value_weight: float = 0.5, value_clip: float | None = None, normalise: bool = True,
        anchor: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(network, rollout=rollout, **options)
        self.gamma, self.decay, self.normalise = gamma, decay, normalise
        self.entropy_weight, self.value_weight, self.value_clip = entropy, value_weight, value_clip
        self.anchor_weight = anchor
        if anchor > 0:
            self.anchor = copy.deepcopy(network).eval().requires_grad_(False)
            self.anchor_memory = self.memory

    @abstractmethod
    def surrogate(self, log_prob: Tensor, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss (T, R), and scalars to report."""

    def prepare(self) -> dict[str, Tensor]:
        """Advantages, value targets, and the anchor's answers."""
        rollout = self.rollout
        state, memory = rollout.successors()
        after = self.network(rollout.task.observe(state), memory).value
        advantage = rollout.advantage(after, gamma=self.gamma, decay=self.decay)
        value, active = rollout.store["value"], rollout.store["active"]
        target = advantage + value
        rollout.put("target", target)
        spread = mean((target - mean(target, active)).square(), active)
        explained = 1 - mean(advantage.square(), active) / spread.clamp(min=1e-8)
        if self.normalise:
            advantage = advantage - mean(advantage, active)
            advantage = advantage / (mean(advantage.square(), active).sqrt() + 1e-8)
        rollout.put("advantage", advantage)
        if self.anchor_weight > 0:
            self._ask_anchor()
        return {"value": mean(value, active), "explained": explained.clamp(min=-1)}

    def loss(self, output: PolicyOutput, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Surrogate, value error, entropy bonus and anchor."""
        values, active = sample.values, sample.active
        chosen = log_prob(output.logits, values["action"], self.nvec)
        policy, parts = self.surrogate(chosen, sample)
        error = value_loss(output.value, values["target"], values["value"], self.value_clip)
        policy, error, spread = (mean(x, active) for x in (policy, error, entropy(output.logits, self.nvec)))
        total = policy + self.value_weight * error - self.entropy_weight * spread
        parts = {"policy_loss": policy, "value_loss": error, "entropy": spread} | parts
        if self.anchor_weight > 0:
            parts["anchor"] = mean(divergence(output.logits, values["anchor"], self.nvec), active)
            total = total + self.anchor_weight * parts["anchor"]
        return total, parts

    def restart(self, mask: Tensor) -> None:
        """Forget what the rows of a mask (B,) knew; between rollouts the anchor forgets too."""
        super().restart(mask)
        if self.anchor_weight > 0 and self.rollout.time == 0 and self.recurrent:
            fresh = self.anchor.initial_memory(len(mask), self.device)
            self.anchor_memory = restart(self.anchor_memory, fresh, mask)

    def extra_state(self) -> dict[str, Any]:
        """That of every on-policy agent, and the anchor's memory."""
        return super().extra_state() | ({"anchor_memory": self.anchor_memory} if self.anchor_weight > 0 else {})

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Undo ``extra_state``."""
        super().load_extra_state(saved)
        if self.anchor_weight > 0 and self.recurrent:
            self.anchor_memory = saved["anchor_memory"].to(self.device, copy=True)

    def _ask_anchor(self) -> None:
        """Unroll the anchor over the rollout, a few rows at a time, from where its memory stood before it."""
        if self.update == 0:
            follow(self.anchor, self.network, 0.0)
        parts = min(self.minibatches, self.rollout.num_envs)
        outputs = []
        for rows in self.rollout.rows.tensor_split(parts):
            sample = self.rollout.sequences(rows)
            memory = self.anchor_memory[rows] if self.recurrent else None
            outputs.append(unroll(self.anchor, sample.observation, memory, sample.reset))
        self.rollout.put("anchor", torch.cat([o.logits for o in outputs], 1))
        if self.recurrent:
            self.anchor_memory = torch.cat([o.memory for o in outputs])


class A2C(ActorCritic):
    """One gradient step a rollout, as the batched A3C.  The arguments are those of ``ActorCritic``."""

    def surrogate(self, log_prob: Tensor, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The plain policy gradient."""
        return a2c_loss(log_prob, sample.values["advantage"]), {}


class PPO(ActorCritic):
    """Several passes over a rollout, each within ``clip`` of the policy that made it.

    The other arguments are those of ``ActorCritic``.
    """

    def __init__(
        self, network: nn.Module, *, rollout: Rollout, clip: float = 0.2, epochs: int = 4, minibatches: int = 4,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(network, rollout=rollout, epochs=epochs, minibatches=minibatches, **options)
        self.clip = clip

    def surrogate(self, log_prob: Tensor, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate; reports how far the policy has moved and how often it was clipped."""
        change = log_prob - sample.values["log_prob"]
        kl = mean(change.exp() - 1 - change, sample.active)
        clipped = mean((change.exp() - 1).abs().gt(self.clip).float(), sample.active)
        policy = ppo_loss(log_prob, sample.values["log_prob"], sample.values["advantage"], clip=self.clip)
        return policy, {"kl": kl, "clipped": clipped}
