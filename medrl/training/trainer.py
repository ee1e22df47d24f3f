"""Reinforcement learning as a MONAI engine: one iteration is a rollout and one gradient update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents, default_metric_cmp_fn
from monai.handlers import ValidationHandler
from monai.inferers import Inferer, SimpleInferer
from monai.utils import ensure_tuple
from torch import Tensor

from medrl.training.progress import EPISODE, Meter, RLEvents


class RLTrainer(Trainer):
    """Trains an agent: ``steps_per_update`` steps of all rows of the environment, then one ``agent.learn()``.

    ``epoch_length`` counts updates; an agent that is not ready (a replay still too empty) steps on within the first
    iteration until it is.  So does one that learns from whole rollouts, in every iteration, until its rollout is full:
    ``steps_per_update`` stays 1.  Without an environment nothing is rolled out (cloning).  ``pool`` renews its cases:
    every ``refresh_every`` updates ``pool.refresh(refresh_count, generator)`` replaces some, answers their indices
    (R,), and the transitions and rows that belong to them are dropped.

    Losses and episodes are summed on the device and read at the first update, every ``log_every`` updates and at the
    end of an epoch; nothing else waits for the device.  ``state.log`` holds the last reading, a dict of numbers:
    the means of what ``learn`` returns, ``episode_return``, ``episode_length``, ``episode_score`` (the task's score at
    the end of an episode), ``epsilon``, ``learning_rate``, ``environment_steps``, ``updates_per_second``.
    ``state.output`` is that reading in MONAI's decollated form, a list of one dict (or the dict, with
    ``decollate=False``), so that MONAI's handlers work without settings.

    The other arguments are those of ``monai.engines.Trainer``.  ``train_data_loader`` is there for bundles that have
    one: it paces the epoch, its batches are not read, because the cases live on the device.
    """

    def __init__(
        self, *, device: torch.device | str, max_epochs: int, agent: Any, epoch_length: int | None = None,
        environment: Any = None, steps_per_update: int = 1, pool: Any = None, refresh_every: int = 50,
        refresh_count: int = 1, log_every: int = 100, seed: int = 0, train_data_loader: Iterable | None = None,
        inferer: Inferer | None = None, postprocessing: Callable | None = None, key_train_metric: dict | None = None,
        additional_metrics: dict | None = None, metric_cmp_fn: Callable = default_metric_cmp_fn,
        train_handlers: Sequence | None = None, event_names: list | None = None, event_to_attr: dict | None = None,
        decollate: bool = True, progress_bar: bool = False,
    ) -> None:  # fmt: skip
        if environment is None and not agent.ready:
            raise ValueError(f"{type(agent).__name__} learns from what it did: give an environment")
        task = getattr(agent, "task", None) if environment is None else environment.task
        rollout = getattr(agent, "rollout", None)
        if rollout is not None and (steps_per_update > rollout.length or environment.num_envs != rollout.num_envs):
            raise ValueError(
                f"the agent's rollout takes {rollout.length} steps of {rollout.num_envs} rows, not "
                f"{steps_per_update} of {environment.num_envs}"
            )
        if getattr(agent, "environment", environment) is not environment:
            raise ValueError(f"{type(agent).__name__} shows what to do in its own environment: step that one")
        if pool is not None and task is not None and task.cases is not pool.cases:
            raise ValueError("the task must walk on pool.cases, or refreshed cases are never seen")
        if pool is not None and not 0 < refresh_count < len(pool.cases):
            raise ValueError(f"refresh_count {refresh_count} must leave some of the {len(pool.cases)} cases in place")
        super().__init__(
            device=device, max_epochs=max_epochs, data_loader=train_data_loader, epoch_length=epoch_length,
            postprocessing=None, key_metric=key_train_metric, additional_metrics=additional_metrics,
            metric_cmp_fn=metric_cmp_fn, handlers=None, decollate=False, event_names=[RLEvents, *(event_names or [])],
            event_to_attr=event_to_attr,
        )  # fmt: skip
        if self.state.epoch_length is None:
            raise ValueError("epoch_length, the number of updates an epoch, is needed")
        self.agent, self.network, self.optimizer = agent, agent.network, agent.optimizer
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.environment, self.steps_per_update = environment, steps_per_update
        self.pool, self.refresh_every, self.refresh_count = pool, refresh_every, refresh_count
        self.log_every, self.decollate = log_every, decollate
        self.generator = torch.Generator().manual_seed(seed)
        self.observation: Any = None  # what the policy sees next; None: ask the environment
        self.environment_steps = 0
        self.meter = Meter()
        self.read_at: tuple[float, int] | None = None  # time and update of the last reading
        self.state.log = {}
        if postprocessing is not None:
            self._register_postprocessing(postprocessing)
        # MONAI attaches handlers within its constructor; here they come last and find a whole trainer
        handlers = list(ensure_tuple(train_handlers)) if train_handlers is not None else []
        if progress_bar:
            from medrl.training.handlers import ProgressBar

            validators = [h.validator for h in handlers if isinstance(h, ValidationHandler)]
            handlers.append(ProgressBar(evaluator=validators[0] if validators else None))
        self._register_handlers(handlers)

    def _iteration(self, engine: Any, batchdata: Any) -> list[dict[str, float]] | dict[str, float]:
        """Roll out, learn once, renew cases, and log if it is time."""
        update = engine.state.iteration
        if self.read_at is None:
            self.read_at = (time.perf_counter(), update - 1)
        if self.environment is not None:
            for _ in range(self.steps_per_update):
                self._step()
            while not self.agent.ready:
                self._step()
            engine.fire_event(RLEvents.ROLLOUT_COMPLETED)
        self.meter.add(self.agent.learn())
        engine.fire_event(RLEvents.UPDATE_COMPLETED)
        if self.pool is not None and update % self.refresh_every == 0:
            self.drop(self.pool.refresh(self.refresh_count, self.generator))
            engine.fire_event(RLEvents.POOL_REFRESHED)
        due = not engine.state.log or update % self.log_every == 0 or update % engine.state.epoch_length == 0
        if due:
            engine.state.log = self._read(update)
        engine.state.output = [dict(engine.state.log)] if self.decollate else dict(engine.state.log)
        if due:
            engine.fire_event(RLEvents.LOG_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _step(self) -> None:
        """One environment step of all rows."""
        if self.observation is None:
            fresh = self.environment.state is None
            self.observation = (
                self.environment.reset() if fresh else self.environment.task.observe(self.environment.state)
            )
        state = self.environment.state
        action = self.agent.act(self.observation, explore=True).action
        step = self.environment.step(action)
        self.agent.record(state, action, step)
        self.observation = step.observation
        self.environment_steps += self.environment.num_envs
        self.meter.add_episodes(step.metrics)

    def drop(self, replaced: Tensor) -> None:
        """Forget what belongs to replaced cases (R,): their transitions, and the episodes that walk on them."""
        if getattr(self.agent, "replay", None) is not None:
            self.agent.replay.discard(replaced)
        if self.environment is not None and self.environment.state is not None:
            case = self.environment.state[0].long()  # the first field of every state is its case
            gone = torch.isin(case, replaced.to(case.device))
            self.observation = self.environment.reset_rows(gone)
            if hasattr(self.agent, "restart"):
                self.agent.restart(gone)

    def _read(self, update: int) -> dict[str, float]:
        """The one place where the host waits for the device."""
        means = self.meter.read()
        # a window in which no episode ended keeps the means of the last one; a loss that is NaN is shown
        silent = {name for name, value in means.items() if name in EPISODE and math.isnan(value)}
        log = means | {name: self.state.log.get(name, math.nan) for name in silent}
        (then, update_then), self.read_at = self.read_at, (time.perf_counter(), update)
        log["updates_per_second"] = (update - update_then) / max(self.read_at[0] - then, 1e-9)
        log["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        if hasattr(self.agent, "epsilon"):
            log["epsilon"] = float(self.agent.epsilon)
        if self.environment is not None:
            log["environment_steps"] = float(self.environment_steps)
        return log
