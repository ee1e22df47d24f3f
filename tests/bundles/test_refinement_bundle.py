"""Box refinement of the tracking bundle: a training of seconds, and its use on tracks."""

from __future__ import annotations

import json

import pytest
import torch

import medrl
from medrl.data.track_phantoms import write_phantoms
from medrl.data.tracks import read_boxes
from medrl.errors import input_error

KIND = "_tracking"
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")
SMALL = {"frames": (12, 14), "objects": (2, 3), "size": (320, 200)}


def test_smoke_training(bundle, workflow, tmp_path):
    training = workflow(bundle, "refine_train", "refine_smoke", kind="train", output_dir=str(tmp_path))
    training.run()
    training.finalize()
    settings = json.loads((tmp_path / "models/refinement.json").read_text())
    assert set(settings) == {"network", "view"}
    weights = torch.load(tmp_path / "models/refinement.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    for name in ("clone", "ppo"):
        lines = [json.loads(line) for line in (tmp_path / f"refine_{name}.jsonl").read_text().splitlines()]
        assert any(0 <= line.get("val_iou", -1) <= 1 for line in lines), name


def test_the_smoke_training_has_the_view_of_the_weights(bundle):
    train = json.loads((bundle / "configs/refine_train.json").read_text())
    assert train["view"] == json.loads((bundle / "models/refinement.json").read_text())["view"]


def run(bundle, workflow, folder, out, **options):
    running = workflow(
        bundle, "inference", dataset_dir=str(folder), output_dir=str(out), device="cpu", **options
    )  # fmt: skip
    running.run()
    return {path.stem: read_boxes(path) for path in sorted(out.glob("*.txt"))}


def test_tracks_with_pictures_are_refined(bundle, workflow, tmp_path):
    folder = write_phantoms(tmp_path / "in", 1, pictures=True, **SMALL)
    before, gaps, every = (
        run(bundle, workflow, folder, tmp_path / str(refine), refine=refine)["phantom_000"]
        for refine in (False, "gaps", "all")
    )
    for after in (gaps, every):
        assert (after.frame == before.frame).all()
        assert (after.identity == before.identity).all()
    moved = [abs(after.box - before.box).max(1) > 0.5 for after in (gaps, every)]
    assert 0 < moved[1].sum() < len(before)
    assert moved[0].sum() < moved[1].sum()


def test_a_wrong_setting_is_one_line(bundle, workflow, tmp_path):
    folder = write_phantoms(tmp_path / "in", 1, **SMALL)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        run(bundle, workflow, folder, tmp_path / "out", refine="some")
    assert str(input_error(caught.value)) == "refine is 'some'; expected false, gaps or all"


def test_the_policy_without_refining_is_not_read(bundle):
    assert medrl.load(bundle, "cpu").inferer.refiner is None
