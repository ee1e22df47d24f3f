"""Tracks of a bundle against the truth, beside rule-based trackers, with intervals."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Events

from medrl.data.tracks import Boxes
from medrl.data.write import whole_file, write_json
from medrl.geometry.box_motion import MotionNoise
from medrl.inference.assessment import interval_text
from medrl.inference.track_decisions import Overlap
from medrl.inference.track_scores import accumulate, count_video, intervals, motmetrics_table, summarise
from medrl.inference.tracking import SETTINGS, Tracker

logger = logging.getLogger(__name__)

AGENT, OVERALL = "agent", "overall"
SHOWN = ("mota", "idf1", "switches", "fragments")


def rule_trackers(baselines: Mapping[str, Mapping[str, Any]], noise: Mapping[str, float]) -> dict[str, Tracker]:
    """Trackers of settings such as ``{"overlap": 0.3, "patience": 5, "still": true, "lowest": 0.2}``."""
    motion = MotionNoise(**noise)
    return {
        name: Tracker(
            Overlap(**{k: v for k, v in options.items() if k not in SETTINGS}), motion,
            **{k: v for k, v in options.items() if k in SETTINGS},
        )
        for name, options in baselines.items()
    }  # fmt: skip


class TrackAssessment:
    """Compares the answers of a ``CasePredictor`` over videos with a truth: a handler.

    Writes ``evaluation.json`` (a tracker: every video's figures and all together with 95 % bootstrap intervals over
    videos) and ``evaluation.csv`` (a row a tracker and video) into ``output_dir``, and logs the table.  The figures are
    py-motmetrics'.  ``baselines`` (see `rule_trackers`) follow the same videos beside the agent.  A video that failed
    counts nowhere: the report names it.
    """

    def __init__(
        self, output_dir: Path | str, *, baselines: Mapping[str, Mapping[str, Any]] | None = None,
        noise: Mapping[str, float] | None = None, resamples: int = 1000, seed: int = 0, pred_key: str = "pred",
        video_key: str = "video",
    ) -> None:  # fmt: skip
        self.output_dir, self.resamples, self.seed = Path(output_dir), resamples, seed
        self.trackers = rule_trackers(baselines or {}, noise or {})
        self.pred_key, self.video_key = pred_key, video_key
        self.accumulators: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, dict[str, dict[str, float]]] = {}

    def attach(self, engine: Any) -> None:
        """Listen to a predictor."""
        engine.add_event_handler(Events.STARTED, lambda _: self.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def clear(self) -> None:
        """Forget an earlier run."""
        names = (AGENT, *self.trackers)
        self.accumulators, self.counts = {name: {} for name in names}, {name: {} for name in names}

    def add(self, engine: Any) -> None:
        """Measure the video that was just done."""
        for data in engine.state.output:
            video = data[self.video_key]
            answers: dict[str, Boxes] = {AGENT: data[self.pred_key]}
            answers |= {name: tracker.track(video) for name, tracker in self.trackers.items()}
            for name, answer in answers.items():
                self.accumulators[name][data["case"]] = accumulate(video.truth, answer, video.frames)
                self.counts[name][data["case"]] = count_video(video.truth, answer, video.frames)

    def finish(self, engine: Any) -> None:
        """Summarise, write and log."""
        if not self.counts.get(AGENT):
            return
        summary: dict[str, Any] = {}
        for name, accumulators in self.accumulators.items():
            table = motmetrics_table(accumulators)
            counts = list(self.counts[name].values())
            ranges = intervals(counts, resamples=self.resamples, seed=self.seed)
            ours = summarise(counts)
            overall = {
                key: {"value": value, "low": ranges[key][0], "high": ranges[key][1]}
                for key, value in table.pop(OVERALL).items()
                if key in ours
            }
            summary[name] = {OVERALL: overall, "videos": table}
            shown = [f"{key} {interval_text(overall[key])}" for key in SHOWN]
            logger.info("%-18s %s", name, "  ".join(shown))
        write_json(self.output_dir / "evaluation.json", summary)
        columns = ["tracker", "video", *next(iter(summary[AGENT]["videos"].values()))]
        path = self.output_dir / "evaluation.csv"
        with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for name, entry in summary.items():
                for video, row in entry["videos"].items():
                    writer.writerow([name, video, *(round(value, 4) for value in row.values())])
