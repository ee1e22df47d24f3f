"""A training of seconds on phantoms: a new set of landmarks, resumed, used and measured."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import medrl
from medrl.data.anatomy import Anatomy
from medrl.data.phantoms import LABELS
from medrl.errors import input_error
from medrl.types import InputError

KIND = "_landmark_detection"
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")


@pytest.fixture
def copied(bundle, smoke, tmp_path):
    """A copy of the finished training, to be tampered with."""
    return shutil.copytree(smoke(bundle), tmp_path / "copy")


@pytest.fixture
def copied_one(one_bundle, smoke, tmp_path):
    """The same, of one bundle alone."""
    return shutil.copytree(smoke(one_bundle), tmp_path / "copy")


def equal(first, second) -> bool:
    """Compare nested dictionaries and lists of tensors and numbers, bit by bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


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


def test_smoke_training_leaves_a_working_agent(bundle, smoke):
    folder = smoke(bundle)
    files = {path.name for path in (folder / "models").iterdir()}
    assert files == {"model.pt", "anatomy.pt", "agent.json", "checkpoints_clone", "checkpoints_dqn"}
    anatomy = Anatomy.load(folder / "models/anatomy.pt")
    assert anatomy.labels == list(LABELS)
    assert anatomy.calibration["scale"] > 0
    records = [json.loads(line) for line in (folder / "dqn.jsonl").read_text().splitlines()]
    errors = [record["val_error_mm"] for record in records if "val_error_mm" in record]
    assert len(errors) == 2
    clone, dqn = (load(folder / f"models/checkpoints_{name}/training_epoch=2.pt") for name in ("clone", "dqn"))
    assert dqn["watched"][0]["best"] == pytest.approx(min([clone["watched"][0]["best"], *errors]), abs=1e-5)
    assert equal(load(folder / "models/model.pt"), dqn["watched"][0]["weights"])
    # the second stage learns action values only: its network is as good, and replaces the first one's
    kept, before = dqn["watched"][0]["weights"], clone["watched"][0]["weights"]
    same = {name for name in kept if equal(kept[name], before[name])}
    assert {name for name in kept if name.startswith("value_head")} == kept.keys() - same
    assert list((folder / "tensorboard").rglob("events.*"))
    agent = medrl.load(bundle, "cpu", ckpt_dir=folder / "models")
    image = next(path for path in (folder / "phantoms").iterdir() if path.suffix == ".nrrd")
    assert [mark.label for mark in agent.predict(image)] == list(LABELS)


@pytest.mark.parametrize("lost", ["last epoch", "second stage"])
def test_resume_is_exact(bundle, copied, workflow, lost):
    models = copied / "models"
    before = load(models / "checkpoints_dqn/training_epoch=2.pt")
    weights = load(models / "model.pt")
    (models / "checkpoints_dqn/training_epoch=2.pt").unlink()
    if lost == "second stage":
        (models / "checkpoints_dqn/training_epoch=1.pt").unlink()
    for name in ("model.pt", "anatomy.pt"):
        (models / name).unlink()
    training = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copied))
    training.run()
    assert equal(before, load(models / "checkpoints_dqn/training_epoch=2.pt"))
    assert equal(weights, load(models / "model.pt"))


def test_a_checkpoint_of_other_settings_is_refused(bundle, copied, workflow):
    training = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copied), pool_size=5)
    assert "other settings or data; start afresh with --resume false" in raised(training.run)


def test_a_finished_training_has_nothing_to_do(bundle, copied, workflow):
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*epoch=*.pt")}
    workflow(bundle, "train", "smoke", kind="train", output_dir=str(copied)).run()
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*epoch=*.pt")} == times


def test_evaluation(bundle, copied, workflow, tmp_path):
    data = copied / "phantoms"
    document = json.loads((data / "dataset.json").read_text())
    cases = document["training"] + document["test"]
    document |= {"training": document["validation"], "validation": [], "test": cases}
    (data / "dataset.json").write_text(json.dumps(document))
    (data / cases[0]["landmarks"]).write_text("label,ras_x,ras_y,ras_z\nliver,9000,0,0\n")
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(data), ckpt_dir=str(copied / "models"), split="test",
        output_dir=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip
    assert running.check_properties() == []
    assert "1 of 5 cases failed" in raised(running.run)
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    with (tmp_path / "out/evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["cases"] == 4
    assert len(rows) == 4 * len(LABELS)
    errors = np.array([float(row["error_mm"]) for row in rows])
    mean = summary["agent"]["mean_mm"]
    assert mean["value"] == pytest.approx(errors.mean(), abs=1e-3)
    assert mean["low"] <= mean["value"] <= mean["high"]
    assert summary["agent"]["max_mm"]["value"] == pytest.approx(errors.max(), abs=1e-3)
    assert 0 < summary["baseline"]["mean_mm"]["value"] < 40  # a phantom's half axes are about 80 mm


def test_bad_data_sets_are_refused_in_one_line(one_bundle, copied_one, workflow, tmp_path):
    data = copied_one / "phantoms"
    good = json.loads((data / "dataset.json").read_text())
    first = good["training"][0]
    table = (data / first["landmarks"]).read_text()

    def start(document, landmarks=table) -> str:
        (data / "dataset.json").write_text(json.dumps(document))
        (data / first["landmarks"]).write_text(landmarks)
        return raised(
            lambda: workflow(
                one_bundle, "train", "smoke", kind="train", dataset_dir=str(data), output_dir=str(tmp_path / "none")
            )
        )

    missing = good | {"training": [*good["training"], {"image": "gone.nii.gz", "landmarks": first["landmarks"]}]}
    assert "names gone.nii.gz, which does not exist" in start(missing)
    assert "names a label twice" in start(good | {"landmarks": ["liver", "liver"]})
    assert "section training is empty" in start(good | {"training": []})
    assert "occurs twice" in start(good, table + table.splitlines()[1] + "\n")
    assert "lie outside the image" in start(good, "label,ras_x,ras_y,ras_z\nliver,9000,0,0\n")
    assert "names none of dataset.json's landmarks" in start(good, "label,ras_x,ras_y,ras_z\nnose,0,0,0\n")
    assert not (tmp_path / "none").exists()


def test_weights_and_devices_that_are_not_there(one_bundle, copied_one):
    models = copied_one / "models"

    def start(device="cpu") -> str:
        with pytest.raises(InputError) as caught:
            medrl.load(one_bundle, device, ckpt_dir=models)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "device cuda:99 is not available; expected one of cpu" in start("cuda:99")
    assert "device nonsense is not available" in start("nonsense")
    whole = (models / "model.pt").read_bytes()
    (models / "model.pt").write_bytes(whole[:1000])
    assert "model.pt: cannot be read as weights" in start()
    torch.save({"other": torch.zeros(2)}, models / "model.pt")
    assert "model.pt: weights of another network" in start()
    (models / "model.pt").unlink()
    assert "model.pt is missing" in start()
    (models / "agent.json").write_text("{")
    assert "agent.json: cannot be read" in start()
    (models / "anatomy.pt").write_bytes(b"")
    assert "anatomy.pt cannot be read" in start()
