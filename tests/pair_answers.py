"""A registration bundle without learning: its inferer knows the answer, or says that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

from medrl.types import NOT_CONVERGED, Registration

CONFIGURATION = {
    "imports": [
        "$from medrl.errors import report_in_one_line",
        "$from medrl.inference.pair_prediction import list_pair_cases",
    ],
    "dataset_dir": "$@bundle_root + '/images'",
    "output_dir": "$@bundle_root + '/eval'",
    "pictures": False,
    "device": "cpu",
    "network": {"_target_": "torch.nn.Identity"},
    "inferer": {"_target_": "pair_answers.KnownInferer", "shift_mm": [3.0, -2.0, 1.0]},
    "arguments": ["moving"],
    "datalist": "$list_pair_cases(@dataset_dir)",
    "preprocessing": {"_target_": "medrl.inference.registration_transforms.LoadPaird"},
    "dataset": {"_target_": "monai.data.Dataset", "data": "@datalist", "transform": "@preprocessing"},
    "postprocessing": {
        "_target_": "medrl.inference.registration_transforms.SaveRegistrationd",
        "output_dir": "@output_dir",
        "pictures": "@pictures",
    },
    "evaluator": {
        "_target_": "medrl.inference.prediction.CasePredictor",
        "device": "@device",
        "dataset": "@dataset",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "output_dir": "@output_dir",
        "bundle_root": "@bundle_root",
        "image_key": "fixed",
        "answers": {"_target_": "medrl.inference.pair_prediction.RegistrationAnswers"},
        "arguments": "@arguments",
    },
    "initialize": ["$report_in_one_line()"],
    "run": ["$@evaluator.run()", "$@evaluator.check()"],
}


class KnownInferer(Inferer):
    """Answers a translation; of a moving image whose first voxel is odd, that it did not converge."""

    def __init__(self, *, shift_mm: tuple[float, float, float]) -> None:
        super().__init__()
        self.matrix = torch.eye(4, dtype=torch.float64)
        self.matrix[:3, 3] = torch.tensor(shift_mm)

    def __call__(self, inputs: Any, network: Any, *, moving: list[Any]) -> list[Registration]:
        """One answer for the one pair of a batch."""
        assert inputs.shape[:2] == (1, 1)
        assert len(moving) == 1
        if int(moving[0].flatten()[0]) % 2:
            return [Registration(self.matrix, 0.125, NOT_CONVERGED, "two alignments are as likely")]
        return [Registration(self.matrix, 0.875, polish_mm=0.5)]


def write_bundle(root: Path) -> Path:
    """Write the bundle; returns its folder."""
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "inference.json").write_text(json.dumps({"bundle_root": ".", **CONFIGURATION}))
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.0.1"}))
    return root
