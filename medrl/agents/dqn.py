"""Double, n-step, prioritised deep Q-learning over replayed states [Mnih 2015, van Hasselt 2016, Schaul 2016]."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from medrl.agents.base import Agent, every_quantile, every_value, image_of, look, own_value, schedule
from medrl.agents.cloning import follow
from medrl.agents.supervision import near_weight
from medrl.experience import Replay
from medrl.returns import td_target
from medrl.types import Decision


def double_q_loss(
    q: Tensor, action: Tensor, reward: Tensor, discount: Tensor, terminated: Tensor,
    online_next: Tensor, target_next: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Huber loss (B, H) and TD error (B, H) of values (B, H, A).

    The online network chooses the next action, the target network values it.  ``reward`` is (B, H); ``discount`` and
    ``terminated`` are (B, H) or (B, 1).  Plain Q-learning: pass ``target_next`` for ``online_next``.
    """
    best = online_next.argmax(-1, keepdim=True)
    next_value = target_next.gather(-1, best)[..., 0]
    target = td_target(reward, discount, terminated, next_value)
    chosen = q.gather(-1, action[:, None, None].expand(-1, q.shape[1], 1))[..., 0]
    return huber_loss(chosen, target, reduction="none"), (target - chosen).detach()


def quantile_q_loss(
    quantiles: Tensor, action: Tensor, reward: Tensor, discount: Tensor, terminated: Tensor,
    online_next: Tensor, target_next: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Quantile Huber loss (B, H) and TD error (B, H) of return distributions (B, H, A, N) [Dabney 2018, QR-DQN].

    ``online_next`` (B, H, A, N) chooses the next action by its mean, ``target_next`` (B, H, A, N) is its return.
    """
    best = online_next.mean(-1).argmax(-1)
    count = quantiles.shape[-1]

    def of(values: Tensor, chosen: Tensor) -> Tensor:
        return values.gather(2, chosen[..., None, None].expand(-1, -1, 1, count))[:, :, 0]

    target = td_target(reward[..., None], discount[..., None], terminated[..., None], of(target_next, best))
    value = of(quantiles, action[:, None].expand(-1, quantiles.shape[1]))
    gap = target[..., None, :] - value[..., :, None]  # (B, H, N of the value, N of the target)
    share = (torch.arange(count, device=gap.device) + 0.5) / count
    huber = huber_loss(value[..., :, None].expand_as(gap), target[..., None, :].expand_as(gap), reduction="none")
    loss = ((share[:, None] - (gap < 0).float()).abs() * huber).mean(-1).sum(-1)
    return loss, (target.mean(-1) - value.mean(-1)).detach()


class DQN(Agent):
    """DQN whose every transition teaches every head of the network.

    The network that chooses (in the environment, and the next action of a double-Q target) is the weight average.
    Values are kept in units of the row's own step (``task.step_length``), so that coarse and fine scales learn
    alike.  ``epsilon`` falls linearly over ``explore_updates``; ``temperature`` above 0 makes exploring rows draw from
    the softmax of values over it (Boltzmann) instead of evenly, for tasks with many senseless actions.  ``guide`` tells
    which actions (B, A) are worth trying in the states that are about to be left: exploring rows then draw evenly from
    those, or from all where there is none [guided exploration, Caicedo 2015].
    ``supervision`` (offset, spread, presence; a mask) and ``imitation`` (a weight of the oracle's one-step ranking)
    are added on the same observations.  ``train_only`` names the parameters that learn (a prefix such as
    "value_head"); the others, and batch statistics, stay as they are.  A network with ``quantiles`` learns the
    distribution of its returns.
    """

    def __init__(
        self, network: nn.Module, *, replay: Replay, batch_size: int = 64, learning_rate: float = 5e-4,
        updates: int = 10_000, weight_decay: float = 0.05, double: bool = True, target_half_life: float = 200.0,
        epsilon: tuple[float, float] = (0.5, 0.05), explore_updates: int = 5_000, temperature: float = 0.0,
        guide: Callable[[], Tensor] | None = None, warm_up: int = 2_000,
        near_mm: float = 3.0, supervision: Callable | None = None, imitation: float = 0.0, average: float = 300.0,
        train_only: str = "", bf16: bool = True, clip: float = 5.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        largest = (replay.length - replay.n + 1) * replay.num_envs
        if warm_up > largest:
            raise ValueError(f"warm_up {warm_up} is never reached: the replay holds {largest} transitions")
        self.network = network
        self.target = copy.deepcopy(network).eval().requires_grad_(False)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.replay, self.batch_size, self.double = replay, batch_size, double
        self.learning_rate, self.updates, self.clip, self.bf16 = learning_rate, updates, clip, bf16
        self.follow_target, self.keep = 0.5 ** (1 / target_half_life), 0.5 ** (1 / average)
        self.epsilon_range, self.explore_updates, self.warm_up = epsilon, explore_updates, warm_up
        self.temperature, self.guide = temperature, guide
        self.near_mm, self.supervision, self.imitation = near_mm, supervision, imitation
        self.device = replay.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.train_only = train_only
        learning = [parameter for name, parameter in network.named_parameters() if name.startswith(train_only)]
        if not learning:
            raise ValueError(f"the network has no parameters named {train_only!r}...: nothing would learn")
        network.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=weight_decay)
        self.update = 0

    @property
    def epsilon(self) -> float:
        """Share of random actions at the present update."""
        first, last = self.epsilon_range
        return first + (last - first) * min(1.0, self.update / max(1, self.explore_updates))

    @torch.no_grad()
    def act(self, observation: Any, memory: Any = None, explore: bool = False) -> Decision:
        """Greedy actions, or epsilon-greedy ones to explore; without a branch on a tensor."""
        network = self.average
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = network(image_of(observation)).float()
        values = own_value(every_value(network, output, observation), observation)
        action = values.argmax(-1)
        if explore:
            random = self._random_action(values)
            chance = torch.rand(action.shape, generator=self.generator, device=self.device)
            action = torch.where(chance < self.epsilon, random, action)
        return Decision(action, memory, values.amax(-1))

    def _random_action(self, values: Tensor) -> Tensor:
        """Actions (B,) drawn evenly, from the guided ones, or from the softmax of values over the temperature."""
        if self.guide is not None:
            allowed = self.guide()
            chance = torch.rand(allowed.shape, generator=self.generator, device=self.device)
            return torch.where(allowed, chance + 1, chance).argmax(-1)  # a whole number higher: before all others
        if self.temperature <= 0:
            return torch.randint(values.shape[-1], values.shape[:1], generator=self.generator, device=self.device)
        noise = torch.rand(values.shape, generator=self.generator, device=self.device).clamp(min=1e-20)
        return (values - self.temperature * (-noise.log()).log()).argmax(-1)  # Gumbel noise

    def record(self, state: Any, action: Tensor, step: Any) -> None:
        """Store the transitions of one environment step."""
        ended = step.terminated | step.truncated
        self.replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])

    @property
    def ready(self) -> bool:
        """Whether the replay holds enough to learn from."""
        return len(self.replay) >= max(1, self.warm_up)

    def learn(self) -> dict[str, Tensor]:
        """One update from the replay."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.update, self.updates)
        batch = self.replay.sample(self.batch_size)
        task, network = self.replay.task, self.network
        image, next_image = image_of(batch.observation), image_of(batch.next_observation)
        unit, next_unit = _units(task, batch.state), _units(task, batch.next_state)
        taught = hasattr(task, "targets") and hasattr(network, "split")
        targets = task.targets(batch.state) if taught else None
        network.train(not self.train_only)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output, place = look(network, image, targets)
            with torch.no_grad():
                target_out = self.target(next_image).float()
                online_out = self.average(next_image).float() if self.double else target_out
        distributed = getattr(network, "quantiles", 1) > 1
        read = every_quantile if distributed else every_value
        q = read(network, output, batch.observation)
        online_next = read(network, online_out, batch.next_observation)
        target_next = read(network, target_out, batch.next_observation)
        target_next = target_next * (next_unit / unit).reshape(-1, *[1] * (target_next.ndim - 1))
        if q.shape[1] != batch.reward.shape[1]:
            raise ValueError(f"{q.shape[1]} heads but {batch.reward.shape[1]} rewards: use Replay(every_head=False)")
        loss, error = (quantile_q_loss if distributed else double_q_loss)(
            q, batch.action, batch.reward / unit[:, None], batch.discount, batch.terminated, online_next, target_next
        )
        parts = {"q": q.detach().mean(), "td_error": error.abs().mean()}
        if targets is not None:
            share = near_weight(targets, self.near_mm)
            own = (error.abs() * share).sum(1) / share.sum(1).clamp(min=1e-12)
            total = (loss * share * batch.weight[:, None]).sum()
            heads = network.split(output)
            if self.imitation > 0:
                gap = (heads.q - heads.q.mean(-1, keepdim=True)) - (
                    targets["gains"] - targets["gains"].mean(-1, keepdim=True)
                )
                total = total + self.imitation * (gap.abs().mean((-2, -1)) * share).sum()
            if self.supervision is not None:
                extra, more = self.supervision(heads, targets, place)
                total, parts = total + extra, parts | more
        else:
            own, total = error.abs().mean(1), (loss.mean(1) * batch.weight).mean()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.gradient_hook is not None:
            self.gradient_hook(list(self.network.parameters()))
        nn.utils.clip_grad_norm_(network.parameters(), self.clip)
        self.optimizer.step()
        self.replay.update_priority(batch.index, own)
        self.update += 1
        follow(self.target, network, min(self.follow_target, self.update / (self.update + 10)))
        follow(self.average, network, min(self.keep, self.update / (self.update + 10)))
        return {"loss": total.detach(), **parts}

    def extra_state(self) -> dict[str, Any]:
        """Optimiser, clock, generator and replay."""
        return {
            "optimizer": self.optimizer.state_dict(), "update": self.update, "generator": self.generator.get_state(),
            "replay": self.replay.state_dict(),
        }  # fmt: skip

    def load_extra_state(self, saved: dict[str, Any], state_type: Any = None) -> None:
        """Undo ``extra_state``; ``state_type`` is the NamedTuple class of the task's states."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update = saved["update"]
        self.generator.set_state(saved["generator"].cpu())
        self.replay.load_state_dict(saved["replay"], state_type or self.replay.state_type)


def _units(task: Any, state: Any) -> Tensor:
    """Unit (B,) of the values: the step length, for tasks that have one."""
    return (
        task.step_length(state) if hasattr(task, "step_length") else torch.ones(len(state[0]), device=state[0].device)
    )
