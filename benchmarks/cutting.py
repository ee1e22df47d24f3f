"""Cutting agents against boxes that stay, boxes that follow their mask, and the true box, under one cutter.

    python benchmarks/cutting.py --models MODELS --output OUT.json [--data DAVIS] [--seeds 3]
    python benchmarks/cutting.py --speed

Procedural videos of 64 x 64 pixels: 400 to train on (seed 1), 40 to choose the best weights of a training by (seed 2),
60 to test (seed 3), nothing is chosen by these.  The cutter is trained once, supervised, and frozen.  For every seed of
the agent: a clone of the greedy expert, the clone improved by PPO with the band reward, and by PPO with the IoU that
every frame ends with.  Controls of ``--controls`` seeds, their last weights: the clone improved by PPO with the band's
rewards of other rows, which must not help; PPO without a clone, of twice the updates, with the band's rewards and with
those of other rows.  What is in ``MODELS`` is used again.  J is the mean IoU over the frames after the first, decay the
mean of its first quarter less that of its last; intervals are 95 %, by Student's t over seeds, or over videos where
nothing has a seed.

``--data`` is a folder of sequences with masks of all frames, such as DAVIS 2016: four folds of sequences that neither
the cutter nor the policy has seen; the cutter is tuned on the others, beside synthetic videos, and so is the policy if
``--tune`` says so, from the procedural ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops import Shuffled, rollouts
from report import markdown
from torch import Tensor, nn

from medrl.agents.actor_critic import PPO
from medrl.agents.policy_cloning import PolicyCloning
from medrl.data.video_cases import VideoCases
from medrl.data.video_phantoms import phantom_cases, video_phantom
from medrl.data.videos import find_sequences, read_videos
from medrl.environment import Environment
from medrl.inference.cutting_walk import agreements, cut_along, decay, follow, given_first
from medrl.networks.cutter import Cutter
from medrl.networks.image_vector_policy import ImageVectorPolicy
from medrl.rewards.cutting import CuttingBand, FrameAgreement
from medrl.rollout import Rollout
from medrl.tasks.cutting import CuttingTask
from medrl.training.cutter import cutter_of, train_cutter
from medrl.training.cutting import RULES

logger = logging.getLogger(__name__)

ROWS, LENGTH = 32, 16
GAMMA = 0.9
CHECK = 10  # updates between looks at the validation videos
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}  # 95 %, by degrees of freedom
CANVAS = (72, 128)  # of DAVIS
FOLDS = 4
REPEATED = 4  # times a sequence is among those to tune a cutter on; as many synthetic videos lie beside them
LOST = 0.15  # share of episodes that start with a box anywhere
CLONE, SHUFFLED, AGENT = "cloning alone", "cloning, then PPO, shuffled reward", "cloning, then PPO"
FRAMES = "cloning, then PPO for what frames end with"
ALONE, ALONE_SHUFFLED = "PPO without cloning", "PPO without cloning, shuffled reward"


def tasks(training: VideoCases, held: VideoCases, cutter: nn.Module) -> tuple[CuttingTask, CuttingTask]:
    """To train on, and to test from the first frames."""
    options: dict[str, Any] = {"cutter": cutter}
    return CuttingTask(training, lost=LOST, **options), CuttingTask(held, random_start=False, **options)


def policy_for(task: CuttingTask) -> ImageVectorPolicy:
    """An untrained policy."""
    image, vector = (task.observation_space[name].shape for name in ("image", "vector"))
    return ImageVectorPolicy(channels=image[0], size=image[1], features=vector[0], actions=task.action_space.nvec)


def improve(
    task: CuttingTask, network: nn.Module, *, kind: type, updates: int, seed: int,
    validation: CuttingTask | None = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """Train a policy from where it stands; returns the weight average, the best of validation if there is one."""
    environment = Environment(task, num_envs=ROWS, seed=seed)
    rollout = Rollout(task, length=LENGTH, num_envs=ROWS, keep_observation=True)
    common = {"rollout": rollout, "gamma": GAMMA, "updates": updates, "seed": seed} | options
    if kind is PolicyCloning:
        common |= {"environment": environment, "mix_updates": max(1, updates // 4)}
    agent = kind(network, **common)
    start, best, highest = time.perf_counter(), agent.average, -1.0
    for update, _ in zip(range(updates), rollouts(agent, environment), strict=False):
        parts = agent.learn()
        if update % CHECK == CHECK - 1 or update == updates - 1:
            shown = {name: round(float(value), 3) for name, value in parts.items()}
            logger.info("%s %d: %s, %.0f s", kind.__name__, update + 1, shown, time.perf_counter() - start)
            found = 0.0 if validation is None else summary(look(validation, agent.average))["J"]
            if validation is None or found > highest:
                best, highest = copy.deepcopy(agent.average), found
            logger.info("validation: J %.4f, highest %.4f", found, highest)
    return copy.deepcopy(best).requires_grad_(True).train()


def clone(
    task: CuttingTask, *, updates: int, seed: int, network: nn.Module | None = None,
    validation: CuttingTask | None = None,
) -> nn.Module:  # fmt: skip
    """A clone of the greedy expert."""
    torch.manual_seed(seed)
    network = policy_for(task) if network is None else copy.deepcopy(network)
    return improve(
        task, network, kind=PolicyCloning, updates=updates, seed=seed, learning_rate=3e-3, epochs=8,
        minibatches=4, temperature=0.006, value_weight=0.2, gradient_clip=2.0, warm_up=3,
        validation=validation,
    )  # fmt: skip


def reinforce(
    task: CuttingTask, network: nn.Module, *, updates: int, seed: int, reward: Any = None, gamma: float = GAMMA,
    validation: CuttingTask | None = None,
) -> nn.Module:  # fmt: skip
    """A clone improved by its rewards, those of the band unless others are given."""
    task = copy.copy(task)
    task.reward_shape = CuttingBand() if reward is None else reward
    return improve(
        task, copy.deepcopy(network), kind=PPO, updates=updates, seed=seed, gamma=gamma, learning_rate=2e-4,
        entropy=0.0, epochs=3, minibatches=4, warm_up=5, gradient_clip=1.0, validation=validation,
    )  # fmt: skip


def reinforce_frames(task: CuttingTask, network: nn.Module, *, updates: int, seed: int, **options: Any) -> nn.Module:
    """A clone improved by what its frames end with; it goes on cloning a little, so that its values are of that."""
    task, reward, gamma = copy.copy(task), FrameAgreement(), 0.95
    task.reward_shape = reward
    network = improve(
        task, copy.deepcopy(network), kind=PolicyCloning, updates=max(1, updates // 5), seed=seed + 10, gamma=gamma,
        learning_rate=5e-4, epochs=8, minibatches=4, temperature=0.006, value_weight=0.5, gradient_clip=2.0, warm_up=3,
    )  # fmt: skip
    return reinforce(task, network, updates=updates, seed=seed, reward=reward, gamma=gamma, **options)


def look(task: CuttingTask, network: nn.Module, **options: Any) -> Tensor:
    """J (B, T) of a policy from the first frame of every case."""
    return agreements(task, follow(task, network.eval(), given_first(task), **options))


def summary(value: Tensor) -> dict[str, Any]:
    """J of every video, and means."""
    each = value.nanmean(1)
    return {"J": float(each.mean()), "decay": float(decay(value).mean()), "each": [round(float(x), 4) for x in each]}


def fixed(task: CuttingTask, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The boxes of rules under every fixed context."""
    for name, rule in RULES.items():
        for context, margin in enumerate(task.contexts.tolist()):
            value = agreements(task, cut_along(task, rule, given_first(task), context=context))
            rows[f"{name}, context {margin:.1f}"] = [summary(value)]


def procedural(
    models: Path, *, seeds: int, controls: int, updates: Sequence[int], cases: Sequence[int]
) -> dict[str, Any]:
    """Train, test, and keep the networks of all seeds in ``models``; what is there is not trained again."""
    training, chosen, held = (phantom_cases(count, seed=seed) for seed, count in enumerate(cases, start=1))
    torch.manual_seed(0)
    cutter = cutter_of(models, training, options={}, training={"updates": updates[0]})
    task, test = tasks(training, held, cutter)
    _, validation = tasks(training, chosen, cutter)
    rows: dict[str, list[dict[str, Any]]] = {}
    fixed(test, rows)
    show(rows)
    for seed in range(seeds):
        first = nn.Identity()
        for name in (CLONE, AGENT, FRAMES, *((SHUFFLED, ALONE, ALONE_SHUFFLED) if seed < controls else ())):
            path = models / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.pt"
            network: nn.Module = policy_for(task)
            if path.exists():
                network.load_state_dict(torch.load(path, weights_only=True))
            elif name == CLONE:
                network = clone(task, updates=updates[1], seed=seed, validation=validation)
            elif name == AGENT:
                network = reinforce(task, first, updates=updates[2], seed=seed, validation=validation)
            elif name == FRAMES:
                network = reinforce_frames(task, first, updates=updates[2], seed=seed, validation=validation)
            elif name == SHUFFLED:
                network = reinforce(task, first, updates=updates[2], seed=seed, reward=Shuffled(CuttingBand(), seed))
            else:
                torch.manual_seed(seed)
                reward = CuttingBand() if name == ALONE else Shuffled(CuttingBand(), seed)
                network = reinforce(task, policy_for(task), updates=2 * updates[2], seed=seed, reward=reward)
            torch.save(network.state_dict(), path)
            first = network if name == CLONE else first
            rows.setdefault(name, []).append(summary(look(test, network)))
            logger.info("seed %d, %s: J %.3f", seed, name, rows[name][-1]["J"])
            for context, margin in enumerate(test.contexts.tolist() if name in (AGENT, FRAMES) else []):
                value = summary(look(test, network, context=context))
                rows.setdefault(f"{name}, context always {margin:.1f}", []).append(value)
        if seed == 0:
            drawn = look(test, first, generator=torch.Generator().manual_seed(seed))
            rows["random moves"] = [summary(drawn)]
        show(rows)
    return rows


def sequences(
    models: Path, data: Path, *, seeds: int, updates: Sequence[int], canvas: Sequence[int] = CANVAS
) -> dict[str, Any]:
    """Leave sequences out: tune on the others, and test."""
    videos = read_videos(list(find_sequences(data).values()))
    rows: dict[str, list[dict[str, Any]]] = {}
    for fold in range(min(FOLDS, len(videos))):
        sets = [[v for n, v in enumerate(videos) if (n % FOLDS == fold) == left] for left in (False, True)]
        training, held = (VideoCases.from_videos(part, canvas=canvas) for part in sets)
        generator = np.random.default_rng([1, fold])
        beside = [video_phantom(generator, size=(canvas[0], canvas[1])) for _ in range(REPEATED * len(sets[0]))]
        mixed = VideoCases.from_videos([*REPEATED * sets[0], *beside], canvas=canvas)
        plain = Cutter()
        plain.load_state_dict(torch.load(models / "cutter.pt", weights_only=True))
        tuned = train_cutter(copy.deepcopy(plain), mixed, updates=updates[0], learning_rate=1e-3, seed=fold)
        for kind, cutter in (("procedural", plain), ("tuned", tuned)):
            task, test = tasks(training, held, cutter)
            found: dict[str, list[dict[str, Any]]] = {}
            fixed(test, found)
            for seed in range(seeds):
                policy = policy_for(test)
                name = AGENT.replace(", ", "_").replace(" ", "_")
                policy.load_state_dict(torch.load(models / f"{name}_{seed}.pt", weights_only=True))
                found.setdefault(f"{AGENT} (procedural)", []).append(summary(look(test, policy)))
                if kind == "tuned" and updates[1]:
                    policy = clone(task, updates=updates[1], seed=seed, network=policy)
                    found.setdefault(f"{CLONE}, tuned", []).append(summary(look(test, policy)))
                    policy = reinforce(task, policy, updates=updates[2], seed=seed)
                    found.setdefault(f"{AGENT}, tuned", []).append(summary(look(test, policy)))
            for name, results in found.items():
                for seed, result in enumerate(results):
                    kept = rows.setdefault(f"{kind} cutter: {name}", [{} for _ in results])[seed]
                    kept.setdefault("J of", {}).update(zip(held.names, result["each"], strict=True))
                    kept.setdefault("decays", []).append(result["decay"])
        logger.info("fold %d of %d", fold + 1, FOLDS)
    for results in rows.values():
        for result in results:
            result["each"] = list(result["J of"].values())
            result["J"], result["decay"] = float(np.mean(result["each"])), float(np.mean(result.pop("decays")))
    show(rows)
    return rows


def interval(results: Sequence[dict[str, Any]], name: str) -> str:
    """Mean and 95 % interval over seeds; of one result over its videos."""
    values = [result[name] for result in results]
    if len(values) == 1 and name == "J" and len(results[0]["each"]) > 1:
        values, mean = results[0]["each"], values[0]
        half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    else:
        mean, count = float(np.mean(values)), len(values)
        half = STUDENT.get(count - 1, 2.0) * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0
    return f"{mean:.3f}" + (f" ± {half:.3f}" if half > 1e-6 else "")


def show(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table."""
    cells = [(name, interval(r, "J"), interval(r, "decay"), str(len(r))) for name, r in rows.items()]
    print(markdown(("method", "mean J", "decay", "seeds"), cells), flush=True)
    single = next(iter(rows.values()))[0].get("J of", {})
    if single:
        lines = [
            (name, *(f"{np.mean([r['J of'][s] for r in results]):.3f}" for s in single))
            for name, results in rows.items()
        ]
        print(markdown(("method", *single), lines), flush=True)


def speed(*, rows: int = 256, seconds: float = 6.0) -> None:
    """Print environment steps and updates a second of one thread, in seconds of processor time."""
    torch.manual_seed(0)
    cases = phantom_cases(16, seed=1)
    task = CuttingTask(cases, cutter=Cutter())
    cells, one = [], 0.0
    for count in (1, rows):
        environment = Environment(task, num_envs=count)
        environment.reset()
        generator = torch.Generator().manual_seed(0)
        steps, start = 0, time.process_time()
        while time.process_time() - start < seconds or steps < 3:
            moved, context = (torch.randint(n, (count,), generator=generator) for n in (9, 3))
            environment.step(torch.stack([moved, context], 1))
            steps += 1
        rate = steps * count / (time.process_time() - start)
        one = one or rate
        cells.append((f"environment, {count} rows", f"{rate:,.0f} steps/s", f"{rate / one:.1f}x"))
    for name, learned in (("PPO, rollout and four epochs", True), ("rollout alone", False)):
        environment = Environment(task, num_envs=ROWS)
        rollout = Rollout(task, length=LENGTH, num_envs=ROWS, keep_observation=True)
        agent = PPO(policy_for(task), rollout=rollout, minibatches=6)
        observation, start = environment.reset(), time.process_time()
        for _ in range(2):
            while not agent.ready:
                state, action = environment.state, agent.act(observation, explore=True).action
                step = environment.step(action)
                agent.record(state, action, step)
                observation = step.observation
            agent.learn() if learned else rollout.clear()
        spent = (time.process_time() - start) / 2
        cells.append((f"{name}, {ROWS} x {LENGTH} steps", f"{1 / spent:.2f} updates/s", f"{spent:.2f} s"))
    print(markdown(("what", "rate, one thread", "beside"), cells))


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder for cutter.pt and the policies")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--data", type=Path, help="folder of sequences with masks, such as DAVIS 2016")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--controls", type=int, default=3, help="seeds that get controls, too")
    parser.add_argument("--cases", type=int, nargs=3, default=(400, 40, 60), help="to train, to validate, to test")
    parser.add_argument(
        "--updates", type=int, nargs=3, default=(5000, 60, 60), help="of the cutter, of cloning, of PPO"
    )
    parser.add_argument("--tune", type=int, nargs=3, default=(200, 0, 0), help="the same on the sequences of --data")
    parser.add_argument("--skip_procedural", action="store_true", help="use the networks that are in --models")
    parser.add_argument("--speed", action="store_true", help="print speeds only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if arguments.speed:
        return speed()
    if arguments.models is None or arguments.output is None:
        parser.error("--models and --output are needed to train")
    arguments.models.mkdir(parents=True, exist_ok=True)
    figures = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    if not arguments.skip_procedural:
        figures["procedural"] = procedural(
            arguments.models, seeds=arguments.seeds, controls=arguments.controls, updates=arguments.updates,
            cases=arguments.cases,
        )  # fmt: skip
        arguments.output.write_text(json.dumps(figures, indent=1))
    if arguments.data is not None:
        figures["sequences"] = sequences(
            arguments.models, arguments.data, seeds=arguments.seeds, updates=arguments.tune
        )
        arguments.output.write_text(json.dumps(figures, indent=1))
    return None


if __name__ == "__main__":
    main()
