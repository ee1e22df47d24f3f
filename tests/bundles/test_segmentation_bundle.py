"""Interactive segmentation: a training of seconds on synthetic lesions, and what users do with it."""

from __future__ import annotations

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

import medrl
from medrl.cli import main
from medrl.data.masks import read_mask_cases
from medrl.data.read import read_image
from medrl.data.seeds import make_seeds, read_seeds, write_seeds
from medrl.errors import input_error
from medrl.inference.mask_transforms import simulate_seeds
from medrl.types import InputError

KIND = "_interactive_segmentation"


@pytest.fixture
def copied(bundle, smoke, tmp_path):
    """A copy of the finished training, to be tampered with."""
    return shutil.copytree(smoke(bundle), tmp_path / "copy")


@pytest.fixture(scope="session")
def clicked(bundle, smoke, tmp_path_factory):
    """A folder of two images: one with clicks, one without; with the weights of the smoke training."""
    folder = tmp_path_factory.mktemp("clicked")
    for name, case in zip("ab", read_mask_cases(smoke(bundle) / "phantoms", "training"), strict=False):
        shutil.copy(smoke(bundle) / f"phantoms/images/{case.name}.nii.gz", folder / f"{name}.nii.gz")
        if name == "a":
            seeds = simulate_seeds(case.image, case.mask, variant="inner", generator=np.random.default_rng(0))
            write_seeds(folder / "a_seeds.mrk.json", seeds)
    return folder


def load(path):
    return torch.load(path, weights_only=True)


def raised(run) -> str:
    """The one line of the InputError that a configuration ends with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        run()
    error = input_error(caught.value)
    assert error is not None, caught.value
    assert "\n" not in str(error)
    return str(error)


def test_smoke_training(bundle, smoke):
    folder = smoke(bundle)
    files = {path.name for path in (folder / "models").iterdir()}
    assert files == {"model.pt", "agent.json", "checkpoints_click", "checkpoints_clone", "checkpoints_dqn"}
    for name in ("clone", "dqn"):
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert len([record for record in records if "val_iou" in record]) == 2
    weights = load(folder / "models/model.pt")
    assert {name.split(".")[0] for name in weights} == {"agents", "clicks"}
    kept = load(folder / "models/checkpoints_dqn/training_epoch=2.pt")["watched"][0]["weights"]
    for name, value in kept.items():
        half = value.half() if value.is_floating_point() else value
        assert torch.equal(weights[f"agents.3.{name}"], half), name
    assert list((folder / "tensorboard").rglob("events.*"))


def test_resume(bundle, copied, workflow):
    models = copied / "models"
    before, weights = load(models / "checkpoints_dqn/training_epoch=2.pt"), load(models / "model.pt")
    (models / "checkpoints_dqn/training_epoch=2.pt").unlink()
    times = {path: path.stat().st_mtime_ns for path in models.rglob("checkpoints_cl*/*.pt")}
    workflow(bundle, "train", "smoke", kind="train", output_dir=str(copied)).run()
    again = load(models / "checkpoints_dqn/training_epoch=2.pt")
    for name, value in before["networks"].items():
        assert torch.equal(again["networks"][name], value), name
    assert {path: path.stat().st_mtime_ns for path in models.rglob("checkpoints_cl*/*.pt")} == times
    assert all(torch.equal(value, weights[name]) for name, value in load(models / "model.pt").items())
    other = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copied), pool_size=5)
    assert "other settings or data; start afresh with --resume false" in raised(other.run)


def test_inference(bundle, smoke, clicked, workflow, tmp_path):
    running = workflow(
        bundle, "inference", dataset_dir=str(clicked), output_dir=str(tmp_path), device="cpu",
        ckpt_dir=str(smoke(bundle) / "models"),
    )  # fmt: skip
    assert running.check_properties() == []
    running.run()
    running.finalize()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a_seeds.mrk.json", "a_seg.nii.gz", "b_seeds.mrk.json", "b_seg.nii.gz", "report.json"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bundle"]["name"] == bundle.name
    assert [report["cases"][case]["seeds"]["user"] for case in "ab"] == [2, 0]
    given, written = (read_seeds(folder / "a_seeds.mrk.json") for folder in (clicked, tmp_path))
    assert (written.position_ras[:2] - given.position_ras).abs().max() < 1e-3
    assert len(written.foreground) <= 12
    for case in "ab":
        image, mask = (nibabel.load(path) for path in (clicked / f"{case}.nii.gz", tmp_path / f"{case}_seg.nii.gz"))
        assert mask.shape == image.shape
        assert np.abs(mask.affine - image.affine).max() < 1e-3
        assert set(np.unique(mask.dataobj)) == {0, 1}
        assert report["cases"][case]["voxels"] == int(np.asarray(mask.dataobj).sum())


def test_what_label_and_deploy_do(bundle, smoke, clicked):
    """Both run preprocessing, ``inferer(inputs, network)`` and postprocessing, without what reads and writes files."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.update({"bundle_root": str(bundle), "device": "cpu", "ckpt_dir": str(smoke(bundle) / "models")})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(load(smoke(bundle) / "models/model.pt"), strict=True)
    data = {"image": read_image(clicked / "a.nii.gz")}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = data if "LoadImage" in type(transform).__name__ else transform(data)
    data["pred"] = parser.get_parsed_content("inferer")(inputs=data["image"][None], network=network.eval())[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = data if "Save" in type(transform).__name__ else transform(data)
    assert data["pred"].shape == data["image"].shape
    assert data["pred"].dtype == torch.uint8
    assert torch.equal(data["pred"].affine, data["image"].affine)


def test_python(bundle, smoke, clicked):
    agent = medrl.load(bundle, "cpu", ckpt_dir=smoke(bundle) / "models")
    assert agent.interactive
    assert agent.labels == []
    beside = agent.predict(clicked / "a.nii.gz")
    seeds = read_seeds(clicked / "a_seeds.mrk.json")
    image = read_image(clicked / "a.nii.gz")
    pairs = list(zip(seeds.position_ras.tolist(), seeds.foreground.tolist(), strict=True))
    array = agent.predict(image[0].numpy(), image.affine.numpy(), seeds=pairs)
    for answer in (agent.predict(image, seeds=seeds), array, agent.predict(image, seeds=clicked / "a_seeds.mrk.json")):
        assert torch.equal(answer.mask.as_tensor(), beside.mask.as_tensor())
        assert answer.user_count == 2
        assert 0 < answer.quality < 1
    assert isinstance(beside.mask, MetaTensor)
    assert agent.predict(image).user_count == 0
    assert agent.predict(clicked / "b.nii.gz").user_count == 0
    for wrong, words in (
        ([(1.0, 2.0, 3.0)], "expected pairs of a point"),
        ([((9000.0, 0.0, 0.0), True)], "outside the image"),
        (clicked / "none.mrk.json", "none.mrk.json"),
    ):
        with pytest.raises(InputError, match=words):
            agent.predict(image, seeds=wrong)
    with pytest.raises(InputError, match="no agent for a single slice"):
        agent.predict(image[..., :1], seeds=make_seeds())
    predictor = agent.predict_folder(clicked, clicked.parent / "out")
    assert predictor.failures == {}
    assert predictor.landmarks == {}


def test_command(bundle, clicked, smoke, tmp_path, capsys):

    copy = shutil.copytree(bundle, tmp_path / bundle.name)
    shutil.copy(smoke(bundle) / "models/model.pt", copy / "models/model.pt")
    shutil.copy(smoke(bundle) / "models/agent.json", copy / "models/agent.json")
    status = main(
        ["predict", str(clicked), "--bundle", str(copy), "--output", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert status == 0
    assert "2 cases done, 0 failed" in capsys.readouterr().out
    assert (tmp_path / "out/b_seg.nii.gz").is_file()


def test_landmark_bundles_take_no_seeds(one_bundle):
    with pytest.raises(InputError, match="takes no seeds"):
        medrl.load(one_bundle, "cpu").predict("image.nii.gz", seeds=make_seeds())


def test_evaluation(bundle, smoke, workflow, tmp_path):
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(smoke(bundle) / "phantoms"), device="cpu", split="validation",
        ckpt_dir=str(smoke(bundle) / "models"), output_dir=str(tmp_path), clicks="random",
    )  # fmt: skip
    assert running.check_properties() == []
    running.run()
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    with (tmp_path / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["cases"] == len(rows) == 2
    for method in ("agent", "network", "random walker", "0 seeds", "10 seeds"):
        number = summary["methods"][method]["iou"]
        assert 0 <= number["low"] <= number["value"] <= number["high"] <= 1
    assert 0 <= summary["dice_area"]["value"] <= 1
