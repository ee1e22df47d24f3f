"""Answers for a folder of images: case after case, as a MONAI engine."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.handlers import ProgressBar
from monai.data import Dataset
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import nn

from medrl.data.dataset import read_dataset
from medrl.data.read import case_name, find_cases
from medrl.data.seeds import seeds_of_case
from medrl.data.write import report_header, write_landmarks_csv, write_report
from medrl.errors import reason_of
from medrl.types import MISSING, InputError, Landmark

logger = logging.getLogger(__name__)


def list_cases(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The cases of a folder (or of one image file) as ``{"case": id, "image": path}``; InputError if there is none."""
    path = Path(dataset_dir)
    cases = {case_name(path): path} if path.is_file() else find_cases(path)
    return [{"case": case, "image": image} for case, image in cases.items()]


def list_annotated_cases(dataset_dir: Path | str, section: str) -> list[dict[str, Any]]:
    """The cases of one section of dataset.json as ``{"case": id, "image": path, "label": path or None}``."""
    return [
        {"case": entry["case"], "image": entry["image"], "label": entry["landmarks"]}
        for entry in read_dataset(dataset_dir, section)
    ]


def list_click_cases(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The cases of `list_cases`, with ``"seeds"``: the path of ``<case>_seeds.mrk.json`` beside an image, or None."""
    return [case | {"seeds": seeds_of_case(case["image"])} for case in list_cases(dataset_dir)]


def list_mask_cases(dataset_dir: Path | str, section: str) -> list[dict[str, Any]]:
    """The cases of one section of dataset.json with ``"image"``, ``"label"`` (of the mask, or None) and ``"seeds"``."""
    entries = read_dataset(dataset_dir, section, answer="label")
    kept = [{key: entry[key] for key in ("case", "image", "label")} for entry in entries]
    return [case | {"seeds": seeds_of_case(case["image"])} for case in kept]


class Answers(Protocol):
    """What a predictor makes of the postprocessed cases of a run."""

    def clear(self) -> None:
        """Forget an earlier run."""
        ...

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Take a case; returns what the report says of it, and a few words for the log."""
        ...

    def write(self, output_dir: Path) -> None:
        """Write what is there to say of all cases together."""
        ...


class LandmarkAnswers:
    """Landmarks of all cases, and ``landmarks.csv``."""

    def __init__(self) -> None:
        self.landmarks: dict[str, list[Landmark]] = {}

    def clear(self) -> None:
        """Forget an earlier run."""
        self.landmarks = {}

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Count the landmarks of a case."""
        marks = self.landmarks[case] = data["landmarks"]
        missing = sum(mark.status == MISSING for mark in marks)
        return {"landmarks": len(marks), "missing": missing}, f"{len(marks) - missing} landmarks, {missing} missing"

    def write(self, output_dir: Path) -> None:
        """Write the table."""
        write_landmarks_csv(output_dir / "landmarks.csv", self.landmarks)


class SegmentationAnswers:
    """Size, seeds and estimated quality of every mask, for the report."""

    def clear(self) -> None:
        """Forget an earlier run; nothing is kept."""

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Describe the mask of a case."""
        result = data["segmentation"]
        voxels = int(result.mask.sum())
        volume_ml = voxels * float(torch.linalg.det(result.mask.affine[:3, :3]).abs()) / 1000
        seeds = {"user": result.user_count, "agent": len(result.seeds.foreground) - result.user_count}
        entry = {"voxels": voxels, "volume_ml": round(volume_ml, 3), "seeds": seeds}
        entry |= {"estimated_iou": round(result.quality, 3), "estimated_dice": round(result.dice, 3)}
        return entry, f"{volume_ml:.2f} ml, {seeds['agent']} seeds, estimated Dice {result.dice:.2f}"

    def write(self, output_dir: Path) -> None:
        """Nothing: the report says it all."""


class CasePredictor(Evaluator):
    """Reads, answers and writes the cases of a dataset; one that fails is reported, and the others are still done.

    ``dataset`` is a ``monai.data.Dataset`` over dictionaries with ``case`` and ``image``; its transform reads the
    image, ``inferer`` gets it as a batch of one, and ``postprocessing`` turns the answer under ``pred`` into files.
    ``image_key`` is another name of the image; ``arguments`` names what else of the dictionary the inferer gets, each
    as a list of one.  ``answers`` describes what came out, and writes tables: landmarks by default.  A description
    with a ``status`` of its own, and a ``reason``, counts as a failure.

    The run ends with those and ``report.json`` in ``output_dir``; it raises nothing for a bad case: ask
    ``failures``, or let ``check`` raise.

    ``state.output`` is a list of the one dictionary that ``postprocessing`` returned, empty for a case that failed.
    """

    def __init__(
        self, *, device: torch.device | str, dataset: Dataset, network: nn.Module, inferer: Inferer,
        postprocessing: Callable, output_dir: Path | str, bundle_root: Path | str | None = None,
        answers: Answers | None = None, arguments: Sequence[str] = (), val_handlers: Sequence | None = None,
        progress_bar: bool = True, image_key: str = "image",
    ) -> None:  # fmt: skip
        super().__init__(
            device=device, val_data_loader=range(len(dataset)), postprocessing=None, val_handlers=None, decollate=False
        )
        self.dataset, self.network, self.inferer, self.postprocessing = dataset, network, inferer, postprocessing
        self.output_dir, self.bundle_root = Path(output_dir), bundle_root
        self.answers: Answers = LandmarkAnswers() if answers is None else answers
        self.arguments, self.image_key = tuple(arguments), image_key
        self.report: dict[str, Any] = {}
        if val_handlers is not None:
            self._register_handlers(val_handlers)
        if progress_bar and len(dataset) > 1 and importlib.util.find_spec("tqdm") is not None:
            ProgressBar(desc="cases", persist=True, disable=None).attach(self)  # on a terminal only

    @property
    def landmarks(self) -> dict[str, list[Landmark]]:
        """Case id -> landmarks; empty where the answers are no landmarks."""
        return getattr(self.answers, "landmarks", {})

    @property
    def failures(self) -> dict[str, str]:
        """Case id -> reason, of the cases without an answer."""
        return {case: entry["reason"] for case, entry in self.report["cases"].items() if entry["status"] != "done"}

    def run(self, global_epoch: int = 1) -> None:
        """Do all cases; what was done is on record also if the run is broken off."""
        self.answers.clear()
        self.report = report_header(self.state.device, self.bundle_root) | {"cases": {}}
        try:
            super().run(global_epoch)
        finally:
            self.answers.write(self.output_dir)
            write_report(self.output_dir / "report.json", self.report)

    def check(self) -> None:
        """Raise InputError if a case failed."""
        if self.failures:
            total = len(self.report["cases"])
            raise InputError(f"{len(self.failures)} of {total} cases failed; the reasons are in report.json")

    def _iteration(self, engine: Any, batchdata: int) -> list[dict[str, Any]]:
        case = self.dataset.data[batchdata]["case"]
        try:
            data, seconds = self._answer(batchdata)
        except Exception as error:  # whatever it is, the other cases go on
            logger.debug("%s", case, exc_info=True)
            entry, data = {"status": "failed", "reason": reason_of(error)}, None
            shown = entry["reason"]
        else:
            described, shown = self.answers.add(case, data)
            entry = {"status": "done", **described, "seconds": seconds, "files": data.get("files", [])}
            shown = f"{shown}, found in {seconds['find']:.1f} s"
        self.report["cases"][case] = entry
        level = logging.INFO if entry["status"] == "done" else logging.WARNING
        logger.log(level, "%d/%d %s: %s", batchdata + 1, len(self.dataset), case, shown)
        engine.state.batch, engine.state.output = [{"case": case}], [] if data is None else [data]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _answer(self, index: int) -> tuple[dict[str, Any], dict[str, float]]:
        """The postprocessed answer of a case, and the seconds that its parts took."""
        times = [time.perf_counter()]
        data = dict(self.dataset[index])
        times.append(time.perf_counter())
        with self.mode(self.network), torch.no_grad():
            given = {name: [data[name]] for name in self.arguments}
            data["pred"] = self.inferer(data[self.image_key][None], self.network, **given)[0]
        times.append(time.perf_counter())
        data = self.postprocessing(data)
        times.append(time.perf_counter())
        spans = [round(after - before, 3) for before, after in pairwise(times)]
        return data, dict(zip(("read", "find", "write"), spans, strict=True))
