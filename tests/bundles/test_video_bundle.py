"""Video object segmentation: a training of seconds on phantoms, and what users do with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import medrl
from medrl.cli import main
from medrl.data.video_phantoms import write_video_phantoms
from medrl.data.videos import read_truth
from medrl.types import InputError

KIND = "video_object_segmentation"
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")


@pytest.fixture
def videos(tmp_path):
    write_video_phantoms(tmp_path / "in", 3, frames=3, size=(32, 40))
    (tmp_path / "in/dataset.json").unlink()
    return tmp_path / "in"


def test_smoke_training(bundle, smoke):
    folder = smoke(bundle)
    agent = json.loads((folder / "models/agent.json").read_text())
    assert set(agent) == {"cutter", "policy", "inference"}
    weights = torch.load(folder / "models/model.pt", weights_only=True)
    assert {name.split(".")[0] for name in weights} == {"cutter", "policy"}
    assert all(value.isfinite().all() for value in weights.values())
    for name in ("clone", "ppo"):
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert sum("val_J" in record for record in records) == 2


def test_a_finished_training_has_nothing_to_do(bundle, smoke, workflow, tmp_path):
    copy = shutil.copytree(smoke(bundle), tmp_path / "copy")
    before = (copy / "models/cutter.pt").stat().st_mtime_ns
    again = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copy))
    again.run()
    assert (copy / "models/cutter.pt").stat().st_mtime_ns == before
    weights = [torch.load(path / "models/model.pt", weights_only=True) for path in (copy, smoke(bundle))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_on_files(bundle, workflow, tmp_path):
    write_video_phantoms(tmp_path / "data", 5, frames=3, size=(32, 40))
    training = workflow(
        bundle, "train", "smoke", kind="train", output_dir=str(tmp_path / "out"), phantoms=0, val_phantoms=0,
        dataset_dir=str(tmp_path / "data"), clone_updates=2, updates=2,
    )  # fmt: skip
    training.run()
    assert (tmp_path / "out/models/model.pt").is_file()


def test_inference(bundle, workflow, videos, tmp_path):
    for path in videos.glob("phantom_00[01]/*.png"):
        if path.stem != "00000":
            path.unlink()
    (videos / "phantom_002/00001.jpg").unlink()
    (videos / "phantom_002/00003.jpg").write_bytes((videos / "phantom_000/00002.jpg").read_bytes())
    running = workflow(
        bundle, "inference", dataset_dir=str(videos), output_dir=str(tmp_path / "out"), device="cpu", pictures=True
    )
    assert running.check_properties() == []
    with pytest.raises(Exception, match="check"):
        running.run()
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "phantom_002: frame 00001 is missing" in report["phantom_002"]["reason"]
    assert not (tmp_path / "out/phantom_002").exists()
    for case in ("phantom_000", "phantom_001"):
        assert [path.name for path in sorted((tmp_path / "out" / case).iterdir())] == [f"{n:05d}.png" for n in range(3)]
        with Image.open(tmp_path / "out" / case / "00002.png") as image:
            assert (image.mode, image.size) == ("P", (40, 32))
        assert (tmp_path / "out" / f"{case}.gif").is_file()


def test_evaluation(bundle, workflow, videos, tmp_path):
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(videos), device="cpu", output_dir=str(tmp_path / "out")
    )
    assert running.check_properties() == []
    running.run()
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert summary["sequences"] == 3
    assert 0 <= summary["methods"]["agent"]["J"]["value"] <= 1
    assert set(summary["methods"]) == {"agent", "static box", "mask's box", "true box"}


def test_the_command_line_and_python(bundle, videos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(videos), "--bundle", str(bundle), "--output", str(out), "--device", "cpu"]) == 0
    assert "3 cases done, 0 failed" in capsys.readouterr().out
    mask = np.asarray(Image.open(out / "phantom_000/00000.png"))
    np.testing.assert_array_equal(mask, read_truth(videos / "phantom_000")[0].numpy())
    agent = medrl.load(bundle, "cpu")
    with pytest.raises(InputError, match="predict_folder"):
        agent.predict(videos / "phantom_000/00000.jpg")
    predictor = agent.predict_folder(videos / "phantom_001", tmp_path / "one")
    assert list(predictor.report["cases"]) == ["phantom_001"]
