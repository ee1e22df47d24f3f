"""Multi-object tracking: the agent beside rules, cloning alone, a shuffled reward, chance and the ideal decisions.

    python benchmarks/tracking.py --output OUT --seeds 3
    python benchmarks/tracking.py --output OUT --speed

All learn from 600 procedural videos, half of which have detectors of their own; rules and thresholds are tuned on 24
videos with the detector of the test, which is 60 videos of other seeds.  Weights and tuned settings are kept in OUT, so
that a run goes on where it was broken off; ``--data`` adds folders of videos with detections and truth, such as
TUD-Stadtmitte.  Intervals are 95 %, over videos.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops import rollouts
from torch import nn
from tracking_arms import AGENT, ARMS, HIDDEN, ROWS, STEPS, tracker_of, trained

from medrl.agents.actor_critic import PPO
from medrl.data.track_cases import TrackCases, stack_videos
from medrl.data.track_phantoms import draw_videos, render
from medrl.data.track_pictures import appearances
from medrl.data.tracks import Boxes, Video, find_videos, make_boxes, read_video
from medrl.environment import Environment
from medrl.geometry.box_motion import MotionNoise, box_of
from medrl.geometry.track_views import LENGTH
from medrl.inference.track_assessment import rule_trackers
from medrl.inference.track_decisions import Overlap, Policy
from medrl.inference.track_scores import accumulate, count_video, intervals, motmetrics_table, summarise
from medrl.inference.track_tuning import BACK, POLICIES, RULES, tune
from medrl.inference.tracking import Tracker, settings_of
from medrl.networks.policy import PolicyNet
from medrl.rollout import Rollout
from medrl.tasks.tracking import ACTIONS, TrackingTask
from medrl.training.track_motion import fit_noise

logger = logging.getLogger(__name__)

TRAINING, PLAIN, TUNING, TEST = 600, 150, 24, 60  # videos; the rules learn from plain ones
VARIED = 0.5  # share of the training videos with a detector and a pace of their own
SPLITS = {"validation": 1, "test": 2}  # seeds; training has 0
SHARES = ("mota", "idf1", "precision", "recall")
SHOWN = ("idf1", "mota", "switches", "fragments")
ONLINE = ", frame by frame"


@torch.no_grad()
def ideal_tracks(cases: TrackCases) -> list[Boxes]:
    """What the oracle's decisions make of every video: each object's own detections, and predictions where right."""
    task = TrackingTask(cases=cases, group=cases.objects, clutter=0.0, from_first=1.0)
    case = torch.arange(len(cases)).repeat_interleave(cases.objects)
    state = task.initial(case, torch.Generator().manual_seed(0))
    rows: list[list[tuple[int, int, Any, float]]] = [[] for _ in range(len(cases))]
    ended = torch.zeros(len(case), dtype=torch.bool)
    while True:
        shown = (task.shown(state) & ~ended).nonzero()[:, 0]
        box = box_of(state.motion)
        for n in shown.tolist():
            rows[int(case[n])].append((int(state.frame[n]), int(state.slot[n]) + 1, box[n].numpy(), 1.0))
        ended = ended | task.terminated(state)
        if bool(ended.all()):
            return [make_boxes(row) for row in rows]
        state = task.advance(state, task.expert(state))


def compare(
    answers: dict[str, list[list[Boxes]]], videos: list[Video], *, check: bool = False
) -> dict[str, dict[str, Any]]:
    """Figures of trackers over seeds and videos: mean, every seed's, and an interval over videos of all seeds.

    With ``check`` by py-motmetrics, which counts the same, slowly.
    """
    table: dict[str, dict[str, Any]] = {}
    lead: list[dict[str, float]] | None = None
    for name, seeds in answers.items():
        overall, counts = [], []
        for tracks in seeds:
            pairs = list(zip(videos, tracks, strict=True))
            counts.append([count_video(video.truth, found, video.frames) for video, found in pairs])
            overall.append(summarise(counts[-1]))
            if check:
                marks = {video.name: accumulate(video.truth, found, video.frames) for video, found in pairs}
                overall[-1] = motmetrics_table(marks)["overall"]
        together = [{key: sum(c[n][key] for c in counts) for key in counts[0][n]} for n in range(len(videos))]
        ranges = intervals(together)
        table[name] = {
            key: {
                "mean": float(np.mean([o[key] for o in overall])), "seeds": [o[key] for o in overall],
                "low": ranges[key][0] / (1 if key in SHARES else len(seeds)),
                "high": ranges[key][1] / (1 if key in SHARES else len(seeds)),
            }
            for key in overall[0]
        }  # fmt: skip
        lead = together if name == AGENT else lead
        if lead is not None and name.startswith("cloning alone") and not name.endswith(ONLINE):
            beyond = intervals(lead, against=together)
            table[name]["agent's lead"] = {key: beyond[key] for key in ("idf1", "mota")}
    return table


def show(title: str, table: dict[str, dict[str, Any]]) -> None:
    """Print a table for people."""
    print(f"\n{title}\n{'':38}" + "".join(f"{key:>26}" for key in SHOWN))
    for name, row in table.items():
        cells = []
        for key in SHOWN:
            digits = 3 if key in SHARES else 0
            cell = row[key]
            cells.append(f"{cell['mean']:.{digits}f} ({cell['low']:.{digits}f} to {cell['high']:.{digits}f})")
        each = row["idf1"]["seeds"]
        seeds = "  IDF1 of seeds " + " ".join(f"{v:.3f}" for v in each) if len(each) > 1 else ""
        lead = "".join(
            f"  the agent's {key} is {low:+.3f} to {high:+.3f} more"
            for key, (low, high) in row.get("agent's lead", {}).items()
        )
        print(f"{name:38}" + "".join(f"{cell:>26}" for cell in cells) + seeds + lead, flush=True)


def speed(cases: TrackCases, *, rows: int = ROWS) -> dict[str, float]:
    """Steps a second of ``rows`` rows and of one, and updates a second of PPO."""
    task, found = TrackingTask(cases=cases), {}
    for count in (rows, 1):
        environment = Environment(task, num_envs=count, seed=0)
        environment.reset()
        generator, start, steps = torch.Generator().manual_seed(0), time.perf_counter(), 0
        while time.perf_counter() - start < 5:
            environment.step(torch.randint(len(ACTIONS), (count,), generator=generator))
            steps += count
        found[f"steps/s, {count} rows"] = steps / (time.perf_counter() - start)
    rollout = Rollout(task, length=STEPS, num_envs=rows, keep_observation=True)
    environment = Environment(task, num_envs=rows, seed=0)
    agent = PPO(PolicyNet(features=LENGTH, actions=len(ACTIONS), hidden=HIDDEN), rollout=rollout, updates=100)
    start, learning, updates = time.perf_counter(), 0.0, 0
    for _ in rollouts(agent, environment):
        before = time.perf_counter()
        agent.learn()
        learning, updates = learning + time.perf_counter() - before, updates + 1
        if time.perf_counter() - start > 8:
            break
    found["updates/s, acting included"] = updates / (time.perf_counter() - start)
    found["gradient steps/s"] = updates * 16 / learning
    return found


def prepared(output: Path) -> tuple[TrackCases, MotionNoise, list[Video]]:
    """Training cases with their motion, fitted once; the rules' motion, and the videos to tune on."""
    phantoms, plain = draw_videos(TRAINING, 0, varied=VARIED), [p.video for p in draw_videos(PLAIN, 0)]
    path = output / "noise.json"
    if path.is_file():
        noise, theirs = (MotionNoise(**values) for values in json.loads(path.read_text()))
    else:
        noise, theirs = fit_noise(stack_videos([p.video for p in phantoms])), fit_noise(stack_videos(plain))
        path.write_text(json.dumps([noise._asdict(), theirs._asdict()]))
    return TrackCases.from_phantoms(phantoms, noise=noise), theirs, plain[:TUNING]


def tuned_rules(output: Path, noise: MotionNoise, videos: list[Video]) -> dict[str, Tracker]:
    """The IoU and the constant-velocity tracker, and the latter looking back, tuned once."""
    path = output / "rules.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    trackers, moving = {}, Overlap(still=False)
    rules = {
        "IoU tracker": (Tracker(Overlap(still=True), noise), RULES),
        "constant velocity": (Tracker(moving, noise), RULES),
        "constant velocity, looking back": (Tracker(moving, noise, fill=10), BACK | RULES),
    }  # fmt: skip
    for name, (tracker, grid) in rules.items():
        if name not in known:
            tracker = tune(tracker, videos, grid)
            known[name] = settings_of(tracker) | asdict(tracker.decider)
            path.write_text(json.dumps(known, indent=1))
        trackers |= rule_trackers({name: known[name]}, noise._asdict())
    return trackers


def tuned_policy(output: Path, name: str, noise: MotionNoise, videos: list[Video], network: nn.Module) -> Tracker:
    """Settings round a policy, tuned once an arm, on its first seed."""
    path = output / "policies.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if name not in known:
        known[name] = settings_of(tune(tracker_of(noise), videos, POLICIES, network=network, passes=1))
        path.write_text(json.dumps(known, indent=1))
    return Tracker(Policy(noise), noise, **known[name])


def main() -> None:
    """Run the arms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--data", type=Path, help="a folder of videos with detections and truth")
    parser.add_argument("--split", choices=list(SPLITS), default="test", help="validation is for changing settings")
    parser.add_argument("--motmetrics", action="store_true", help="count by py-motmetrics: the same, slower")
    parser.add_argument("--speed", action="store_true", help="print speed alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.speed:
        cases = TrackCases.from_phantoms(draw_videos(20, 0))
        for name, value in speed(cases).items():
            print(f"{name:30}{value:12,.0f}" if value > 10 else f"{name:30}{value:12.2f}")
        return
    cases, theirs, tuning = prepared(output)
    noise = cases.noise
    networks = {
        arm: [trained(output, cases, ARMS[arm], seed) for seed in range(arguments.seeds)] for arm in arguments.arms
    }
    trackers: dict[str, tuple[Tracker, list[Any]]] = {
        name: (tracker, [None]) for name, tracker in tuned_rules(output, theirs, tuning).items()
    }
    for arm, seeds in networks.items():
        trackers[arm] = tuned_policy(output, arm, noise, tuning, seeds[0]), seeds
        trackers[arm + ONLINE] = replace(trackers[arm][0], fill=None), seeds
    test = draw_videos(TEST, SPLITS[arguments.split])
    sets: dict[str, tuple[list[Video], list[Any]]] = {
        "procedural, boxes alone": ([p.video for p in test], [None] * TEST),
        "procedural, with frames": ([p.video for p in test], [appearances(p.video, render(p)) for p in test]),
    }
    for name, folder in find_videos(arguments.data).items() if arguments.data else ():
        sets[name] = [read_video(folder, truth=True)], [None]
    results: dict[str, Any] = {}
    for title, (videos, looks) in sets.items():
        answers = {
            name: [tracker.track_all(videos, net, looks) for net in nets]
            for name, (tracker, nets) in trackers.items()
        }
        answers["ideal decisions"] = [ideal_tracks(TrackCases.from_videos(videos, noise=noise))]
        results[title] = compare(answers, videos, check=arguments.motmetrics)
        show(title, results[title])
        (output / f"results_{arguments.split}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
