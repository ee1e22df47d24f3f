"""Validation of a tracking policy on whole videos, and what is kept of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medrl.data.track_cases import TrackCases, stack_videos, with_owners
from medrl.data.track_phantoms import Phantom, draw_videos
from medrl.data.tracks import Video, find_videos, read_video
from medrl.data.write import whole_file, write_json
from medrl.inference.track_decisions import Overlap
from medrl.inference.track_tuning import POLICIES, RULES, measure, tune
from medrl.inference.tracking import Tracker, settings_of
from medrl.networks.actor import Actor
from medrl.training.best import BestNetwork
from medrl.training.measuring import MeasuringEvaluator
from medrl.training.parallel import rank_seed
from medrl.training.track_motion import fit_noise
from medrl.types import InputError

logger = logging.getLogger(__name__)


class TrackingData:
    """Videos to learn from and to validate on, and the motion that was fitted to the former.

    Procedural ones, of other seeds for validation; or, with a ``folder``, videos with a truth, of which the last
    ``held`` (by name) are left for validation.  InputError if there are too few.
    """

    def __init__(
        self, *, videos: int = 150, held: int = 20, seed: int = 0, folder: Path | str = "",
        device: torch.device | str = "cpu", **options: Any,
    ) -> None:  # fmt: skip
        phantoms: list[Phantom] = []
        if folder:
            everything = [read_video(path, truth=True) for path in find_videos(folder).values()]
            if len(everything) <= held:
                raise InputError(f"{Path(folder).name}: {len(everything)} videos, of which {held} are to be held out")
            training, self.validation = everything[: len(everything) - held], everything[len(everything) - held :]
        else:
            phantoms = draw_videos(videos, 2 * seed, **options)
            training = [phantom.video for phantom in phantoms]
            self.validation = [phantom.video for phantom in draw_videos(held, 2 * seed + 1, **options)]
        self.training: list[Video] = training
        owned = training if phantoms else [with_owners(video) for video in training]
        self.noise = fit_noise(stack_videos(owned))
        cases = (
            TrackCases.from_phantoms(phantoms, noise=self.noise) if phantoms
            else TrackCases(stack_videos(owned), noise=self.noise)
        )  # fmt: skip
        self.cases = cases.to(device)

    def __len__(self) -> int:
        return len(self.validation)


class TrackingEvaluator(MeasuringEvaluator):
    """Follows the objects of the validation videos by a tracker; ``state.metrics`` are those of `summarise`.

    The key metric is ``val_error``, 2 - IDF1 - MOTA, lower is better.
    """

    def __init__(
        self, *, device: torch.device | str, data: TrackingData, network: nn.Module, tracker: Tracker,
        val_handlers: Sequence | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, network=network, val_handlers=val_handlers)
        self.data, self.tracker = data, tracker

    def measure(self) -> dict[str, float]:
        """Scores of the tracks, and the error."""
        numbers = measure(self.tracker, self.data.validation, self.network)
        return numbers | {"error": 2 - numbers["idf1"] - numbers["mota"]}


class BestTracker(BestNetwork):
    """Writes ``model.pt``, a bare state dict of the policy without its critic, and ``agent.json``."""

    def __init__(self, folder: Path | str, *, data: TrackingData, policy: Mapping[str, Any]) -> None:
        settings = {"policy": dict(policy), "inference": {"noise": data.noise._asdict()}}
        super().__init__(folder, settings=settings, metric="val_error")
        self.data = data

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Identity, accuracy and switches."""
        shown = [metrics[f"val_{name}"] for name in ("idf1", "mota", "switches")]
        logger.info("validation: IDF1 %.3f, MOTA %.3f, %d switches", *shown)

    def write(self, network: nn.Module) -> None:
        """Write both files."""
        with whole_file(self.folder / "model.pt") as part:
            torch.save({name: value.cpu().clone() for name, value in Actor(network).state_dict().items()}, part)
        write_json(self.folder / "agent.json", self.settings)


def finish(
    best: BestTracker, agent: Any, tracker: Tracker, *, videos: int = 24,
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> None:  # fmt: skip
    """Tune the tracker round the best policy, and rules beside it, on training videos; write ``agent.json`` with it.

    Where no validation has chosen a policy, the agent's last one is kept.
    """
    if rank_seed(0) > 0:
        return
    if not best.weights:
        best.keep(agent.average)
    policy = copy.deepcopy(agent.average)
    policy.load_state_dict(best.weights)
    noise, some = best.data.noise, best.data.training[:videos]
    tracker = tune(tracker, some, grid or POLICIES, network=policy.eval(), passes=1)
    best.settings["inference"] |= settings_of(tracker)
    best.settings["baselines"] = {
        name: rule_settings(tune(rule, some, grid or RULES))
        for name, rule in {
            "IoU tracker": Tracker(Overlap(still=True), noise), "constant velocity": Tracker(Overlap(), noise),
            "constant velocity, looking back": Tracker(Overlap(), noise, fill=10),
        }.items()
    }  # fmt: skip
    write_json(best.folder / "agent.json", best.settings)


def rule_settings(tracker: Tracker) -> dict[str, Any]:
    """What `medrl.inference.track_assessment.rule_trackers` makes the tracker of."""
    return {**settings_of(tracker), **vars(tracker.decider)}


