"""Localisation: a training of seconds on procedural pictures, and what users do with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import medrl
from medrl.cli import main
from medrl.data.box_phantoms import draw_organ, write_box_pictures, write_organ_volumes
from medrl.data.write import write_image
from medrl.errors import input_error
from medrl.types import InputError

KIND = "_localisation"
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of procedural pictures with dataset.json, of the size that the weights are for."""
    folder = tmp_path_factory.mktemp("pictures")
    write_box_pictures(folder, 6, np.random.default_rng(7), validation=0.2, test=0.5)
    return folder


def test_smoke_training(bundle, smoke):
    folder = smoke(bundle)
    settings = json.loads((folder / "models/agent.json").read_text())
    assert set(settings) == {"model"}
    assert settings["model"]["category"] == "target"
    assert settings["model"]["network"]["channels"] == 1
    assert len(settings["model"]["inference"]["calibration"]) == 2
    weights = torch.load(folder / "models/model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    for name in ("clone", "dqn"):
        assert len((folder / f"{name}.jsonl").read_text().splitlines()) >= 2, name


def test_a_finished_training_has_nothing_to_do(bundle, smoke, workflow, tmp_path):
    copy = shutil.copytree(smoke(bundle), tmp_path / "copy")
    before = torch.load(copy / "models/model.pt", weights_only=True)
    again = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copy))
    again.run()
    after = torch.load(copy / "models/model.pt", weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_inference(bundle, pictures, workflow, tmp_path):
    shutil.copytree(pictures / "images", tmp_path / "in")
    (tmp_path / "in/cut.png").write_bytes((pictures / "images/picture_0000.png").read_bytes()[:300])
    Image.new("RGBA", (20, 20)).save(tmp_path / "in/clear.png")
    running = workflow(
        bundle, "inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), device="cpu",
        weights="procedural", pictures=True,
    )  # fmt: skip
    assert running.check_properties() == []
    with pytest.raises(Exception, match="check"):
        running.run()
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "truncated" in report["cut"]["reason"]
    assert "mode RGBA" in report["clear"]["reason"]
    assert not (tmp_path / "out/cut.png").exists()
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert found, "the shipped weights find something in six pictures"
    for one in found:
        x, y, width, height = one["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 64.001
        assert min(width, height) > 0
        assert 0 <= one["score"] <= 1
        assert one["category"] == "target"
        assert one["file_name"].startswith("picture_")
    assert report["picture_0001"]["files"] == ["picture_0001.png", "detections.json"]
    assert (tmp_path / "out/picture_0001.png").is_file()


def test_python_and_command_line_give_the_same(bundle, pictures, tmp_path, capsys):
    agent = medrl.load(bundle, "cpu")
    path = pictures / "images/picture_0001.png"
    answer = agent.predict(path)
    pixels = np.array(Image.open(path))
    again = agent.predict(np.repeat(pixels[..., None], 3, 2))
    assert [one.box for one in answer] == [one.box for one in again]
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in")
    status = main(
        ["predict", str(tmp_path / "in"), "--bundle", str(bundle), "--output", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert status == 0, capsys.readouterr()
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(found) == len(answer)
    with pytest.raises(InputError):
        agent.register(path, path)


def test_evaluation(bundle, pictures, workflow, tmp_path):
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(pictures), device="cpu", weights="procedural",
        output_dir=str(tmp_path),
    )  # fmt: skip
    assert running.check_properties() == []
    running.run()
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["images"] == 3
    assert 0 <= summary["ap50"]["low"] <= summary["ap50"]["value"] <= summary["ap50"]["high"] <= 1
    assert len((tmp_path / "evaluation.csv").read_text().splitlines()) == 4


def test_unknown_weights_and_kinds(bundle, pictures, workflow, tmp_path):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        workflow(bundle, "inference", dataset_dir=str(pictures / "images"), weights="none").run()
    assert "weights 'none' are unknown" in str(input_error(caught.value))
    volume, matrix, _ = draw_organ(np.random.default_rng(0), side=16)
    write_image(tmp_path / "in/a.nii.gz", volume, matrix)
    running = workflow(bundle, "inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    with pytest.raises(Exception, match="check"):
        running.run()
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "is a volume, but these weights are for pictures" in report["a"]["reason"]


def test_volumes_train_and_give_rois(bundle, workflow, tmp_path):
    write_organ_volumes(tmp_path / "data", 6, np.random.default_rng(0), side=16, spacing_mm=12.0, validation=0.2)
    settings = {
        "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path / "models"),
        "device": "cpu", "channels": 1, "longest": 16, "view": 16, "limit": 1, "window": [-200.0, 300.0],
        "network_options": {"width": 4, "hidden": 16}, "batch_size": 4, "num_envs": 4, "warm_up": 8,
        "clone_updates": 2, "updates": 2, "epoch_length": 2,
    }  # fmt: skip
    workflow(bundle, "train", kind="train", **settings).run()
    running = workflow(
        bundle, "inference", dataset_dir=str(tmp_path / "data/images"), ckpt_dir=str(tmp_path / "models"),
        output_dir=str(tmp_path / "out"), device="cpu", threshold=0.0, pictures=True,
    )  # fmt: skip
    running.run()
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(found) == 6
    for one in found:
        assert one["category"] == "liver"
        roi = json.loads((tmp_path / f"out/{one['file_name'][:-7]}_roi.mrk.json").read_text())["markups"][0]
        low, size = np.array(one["bbox"]).reshape(2, 3)
        np.testing.assert_allclose(np.array(roi["center"]) * [-1, -1, 1], low + size / 2, atol=2e-3)
        np.testing.assert_allclose(roi["size"], size, atol=2e-3)
