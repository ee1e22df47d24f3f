"""What refining boxes on the frames does for tracks: a bundle's tracker and constant velocity, with and without.

    python benchmarks/track_refinement.py
    python benchmarks/track_refinement.py --varied
    python benchmarks/track_refinement.py --data VIDEOS --last-frame 8

On the procedural videos of ``tracking.py``'s test with their pictures, striped as there, or with walls, coats and light
of their own; or on a folder of videos with detections, truth and pictures.  Intervals are 95 %, over videos.  The last
column is the mean IoU of the boxes that are right.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import medrl
from medrl.bundle import load_weights, read_settings
from medrl.data.track_phantoms import draw_videos, render
from medrl.data.track_pictures import appearances, read_pixels
from medrl.data.tracks import Boxes, Video, find_videos, read_video
from medrl.inference.box_refinement import BoxRefiner
from medrl.inference.track_assessment import rule_trackers
from medrl.inference.track_scores import SAME, count_video, intervals, overlaps, summarise
from medrl.inference.tracking import Tracker
from medrl.networks.image_vector_policy import ImageVectorPolicy

SHOWN = ("idf1", "mota", "switches")
RULE = "constant velocity"


def right(truth: Boxes, answer: Boxes, frames: int) -> list[float]:
    """IoU of every answer that is nearest to an object and overlaps it by half at least."""
    best = [shared.max(0) for _, _, shared in overlaps(truth, answer, frames) if shared.size]
    return [float(value) for frame in best for value in frame if value >= SAME]


def measure(
    videos: list[Video], frames: list[np.ndarray], trackers: dict[str, tuple[Tracker, nn.Module | None]],
    refiners: dict[str, BoxRefiner],
) -> None:  # fmt: skip
    """Print a table of all trackers, without and with each refiner."""
    looks = [appearances(video, pictures) for video, pictures in zip(videos, frames, strict=True)]
    print(f"| | {' | '.join(SHOWN)} | IoU of right boxes |\n|{'---|' * (len(SHOWN) + 2)}")
    for name, (tracker, network) in trackers.items():
        tracks = tracker.track_all(videos, network, looks if network else None)
        for way in ("as it is", *refiners):
            answers = tracks
            if way in refiners:
                answers = [refiners[way](*three) for three in zip(videos, tracks, frames, strict=True)]
            pairs = list(zip(videos, answers, strict=True))
            counts = [count_video(video.truth, answer, video.frames) for video, answer in pairs]
            fit = np.mean([value for video, answer in pairs for value in right(video.truth, answer, video.frames)])
            total, spread = summarise(counts), intervals(counts)
            cells = [f"{total[key]:.3f} ({spread[key][0]:.3f} to {spread[key][1]:.3f})" for key in SHOWN[:2]]
            print(f"| {name}, {way} | {' | '.join(cells)} | {total['switches']:.0f} | {fit:.3f} |", flush=True)


def main() -> None:
    """Read the bundle and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/multi_object_tracking"))
    parser.add_argument("--data", type=Path, help="a folder of videos with detections, truth and pictures")
    parser.add_argument("--last-frame", type=int, default=0, help="of the videos in --data; 0: the last there is")
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2, help="of the procedural videos; 1 to choose settings")
    parser.add_argument("--varied", action="store_true", help="walls, coats and light of each video's own")
    parser.add_argument("--boxes", nargs="*", choices=("gaps", "all"), default=["gaps"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = arguments.bundle / "models"
    bundle, settings = medrl.load(arguments.bundle, "cpu"), read_settings(models)
    refinement = read_settings(models, file="refinement.json")
    policy = load_weights(ImageVectorPolicy(**refinement["network"]), models / "refinement.pt", "cpu")
    refiners = {f"refined: {boxes}": BoxRefiner(policy, boxes=boxes, **refinement["view"]) for boxes in arguments.boxes}
    agent = bundle.inferer.tracker
    trackers = {
        "agent": (agent, bundle.network),
        "agent, frame by frame": (replace(agent, fill=None), bundle.network),
        RULE: (rule_trackers({RULE: settings["baselines"][RULE]}, settings["inference"]["noise"])[RULE], None),
    }  # fmt: skip
    if arguments.data:
        found = find_videos(arguments.data).values()
        videos = [read_video(folder, truth=True, last_frame=arguments.last_frame) for folder in found]
        videos = [video for video in videos if video.pictures]
        frames = [np.stack([read_pixels(video, n) for n in range(video.frames)]) for video in videos]
    else:
        phantoms = draw_videos(arguments.videos, arguments.seed)
        videos, frames = [p.video for p in phantoms], [render(p, varied=arguments.varied) for p in phantoms]
    measure(videos, frames, trackers, refiners)


if __name__ == "__main__":
    main()
