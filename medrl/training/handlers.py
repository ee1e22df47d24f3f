"""Handlers of a training: TensorBoard, pictures of paths, learning curves, a progress bar.

They listen to ``RLEvents.LOG_COMPLETED`` and read ``state.log``, so none of them ever makes the host wait for the
device, and to the end of the evaluator's run.  On other ranks than the first they do nothing.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.handlers import TensorBoardHandler

from medrl.data.pictures import draw_curve, draw_landmarks, landmark_figure
from medrl.data.write import whole_file
from medrl.training.progress import RLEvents


class RLTensorBoardHandler(TensorBoardHandler):
    """Everything in ``state.log`` at every reading, and the evaluator's metrics and pictures at every validation.

    Training values (return, loss, Q, epsilon, learning rate ...) are under ``train/``, the error in mm and the success
    under ``validation/``, both over updates.  The first ``pictures`` cases of a validation are drawn with their paths.
    """

    def __init__(
        self, log_dir: str = "./runs", *, evaluator: Any = None, summary_writer: Any = None, pictures: int = 1
    ) -> None:
        super().__init__(summary_writer=summary_writer, log_dir=str(log_dir))
        self.evaluator, self.pictures, self.trainer = evaluator, pictures, None

    def attach(self, engine: Any) -> None:
        """Listen to a trainer, and to the evaluator."""
        self.trainer = engine
        if engine.state.rank > 0:
            return
        engine.add_event_handler(RLEvents.LOG_COMPLETED, self.write_log)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.close())
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.write_metrics)
            if self.pictures and _can_draw():
                self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.write_picture)

    def write_log(self, engine: Any) -> None:
        """Scalars of the trainer's last reading."""
        for name, value in engine.state.log.items():
            if not math.isnan(value):
                self._writer.add_scalar(f"train/{name}", value, engine.state.iteration)
        self._writer.flush()

    def write_metrics(self, engine: Any) -> None:
        """Scalars of a validation."""
        for name, value in engine.state.metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, self.trainer.state.iteration)
        self._writer.flush()

    def write_picture(self, engine: Any) -> None:
        """Landmarks and paths of one of the first cases."""
        if engine.state.iteration <= self.pictures:
            figure = landmark_figure(**_picture(engine))
            self._writer.add_figure(f"paths/{engine.state.iteration}", figure, self.trainer.state.iteration)


class PathPictures:
    """Writes ``<folder>/<case>_<epoch>.png`` of the first ``cases`` cases of a validation; for ``val_handlers``."""

    def __init__(self, folder: Path | str, *, cases: int = 1) -> None:
        self.folder, self.cases = Path(folder), cases

    def attach(self, engine: Any) -> None:
        """Listen to an evaluator; without matplotlib nothing is drawn."""
        if engine.state.rank == 0 and _can_draw():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Draw the case that has just been finished."""
        if engine.state.iteration <= self.cases:
            name = engine.state.batch[0]["filename_or_obj"]
            draw_landmarks(self.folder / f"{name}_{engine.state.epoch:04d}.png", **_picture(engine))


class LearningCurve:
    """Readings and validations as JSON lines in ``path``, and beside it a PNG for each of ``curves`` that exists.

    The file is kept in memory and written whole, at every validation and at the end of every epoch.  A resumed
    training goes on in the same file from the update it resumes at.
    """

    def __init__(
        self, path: Path | str, *, evaluator: Any = None,
        curves: Sequence[str] = ("loss", "episode_return", "val_error_mm"),
    ) -> None:  # fmt: skip
        self.path, self.evaluator, self.curves = Path(path), evaluator, tuple(curves)
        self.records: list[dict[str, Any]] | None = None
        self.trainer: Any = None

    def attach(self, engine: Any) -> None:
        """Listen to a trainer, and to the evaluator."""
        self.trainer = engine
        if engine.state.rank > 0:
            return
        engine.add_event_handler(RLEvents.LOG_COMPLETED, self.record)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self.record)
            self.evaluator.add_event_handler(Events.COMPLETED, self.write)

    def record(self, engine: Any) -> None:
        """Keep the trainer's reading or the evaluator's metrics."""
        update = self.trainer.state.iteration
        if self.records is None:
            before = self.path.read_text("utf-8").splitlines() if self.path.exists() and update > 1 else []
            self.records = [r for r in map(json.loads, before) if r["update"] < update]
        values = engine.state.log if engine is self.trainer else engine.state.metrics
        numbers = {name: None if math.isnan(value) else round(float(value), 6) for name, value in values.items()}
        self.records.append({"update": update, "epoch": self.trainer.state.epoch} | numbers)

    def write(self, engine: Any) -> None:
        """Write the file, and draw at the end of an epoch."""
        if not self.records:
            return
        with whole_file(self.path) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in self.records), "utf-8")
        if engine is not self.trainer or not _can_draw():
            return
        for name in self.curves:
            points = [(r["update"], r[name]) for r in self.records if r.get(name) is not None]
            if points:
                draw_curve(self.path.with_name(f"{self.path.stem}_{name}.png"), {name: points}, "update", name)


class ProgressBar:
    """One tqdm bar an epoch, with the loss and return last read and the last error of the evaluator.

    (ignite's own bar formats its values after every iteration; this one only when they change.)
    """

    def __init__(self, *, evaluator: Any = None, **tqdm_arguments: Any) -> None:
        self.evaluator, self.arguments, self.bar = evaluator, tqdm_arguments, None

    def attach(self, engine: Any) -> None:
        """Listen to a trainer."""
        if engine.state.rank > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.bar.update())
        engine.add_event_handler(RLEvents.LOG_COMPLETED, self.show)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.close)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def open(self, engine: Any) -> None:
        """Begin an epoch's bar, where the training stands."""
        from tqdm.auto import tqdm

        state = engine.state
        arguments = {"unit": "update", "dynamic_ncols": True} | self.arguments
        self.bar = tqdm(
            desc=f"epoch {state.epoch}/{state.max_epochs}", total=state.epoch_length,
            initial=state.iteration % state.epoch_length, **arguments,
        )  # fmt: skip
        self.show(engine)

    def show(self, engine: Any) -> None:
        """Show the last reading."""
        shown = {name: engine.state.log[name] for name in ("loss", "episode_return") if name in engine.state.log}
        if self.evaluator is not None:
            shown |= {name: v for name, v in self.evaluator.state.metrics.items() if name.endswith("error_mm")}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)

    def close(self, engine: Any) -> None:
        """End the epoch's bar."""
        if self.bar is not None:
            self.show(engine)
            self.bar.close()


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _picture(engine: Any) -> dict[str, Any]:
    """Arguments of a landmark picture of the case that an evaluator has just finished."""
    source, landmarks = engine.state.batch[0]["source"], engine.state.output[0]["landmarks"]
    return {
        "image": source.volume, "ras_from_voxel": source.ras_from_voxel, "landmarks": landmarks,
        "truth": {m.label: p for m, p in zip(landmarks, source.points_ras.tolist(), strict=True)}, "title": source.name,
    }  # fmt: skip
