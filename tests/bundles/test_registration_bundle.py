"""Registration: a training of seconds on phantoms, and what users do with it."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

import medrl
from medrl.cli import main
from medrl.data.itk_transforms import read_transform
from medrl.data.read import read_image
from medrl.types import NOT_CONVERGED, InputError

KIND = "_registration"
# MONAI 1.6 on ignite 0.5.5
pytestmark = pytest.mark.filterwarnings("ignore:.(min|cumulative)_delta:DeprecationWarning")


def load(path):
    return torch.load(path, weights_only=True)


def pair_of(folder):
    """Folder of the first case of a smoke training."""
    return sorted((folder / "phantoms").glob("*/fixed.nii.gz"))[0].parent


def test_smoke_training(bundle, smoke):
    folder = smoke(bundle)
    agent = json.loads((folder / "models/agent.json").read_text())
    assert set(agent) == {"coarse", "policy", "inference"}
    assert "bias" in agent["inference"]["calibration"]
    weights = load(folder / "models/model.pt")
    assert all(value.isfinite().all() for value in weights.values())
    fold = json.loads((folder / "models/features/folds.json").read_text())
    assert set(fold.values()) == {0, 1}
    for name in ("clone", "ppo"):
        assert len((folder / f"{name}.jsonl").read_text().splitlines()) >= 2, name
    training, validation = (load(folder / f"models/features/cases_{n}.pt") for n in ("training", "validation"))
    names = [{pair[0].split()[0] for pair in cases["pairs"]} for cases in (training, validation)]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1], "patients of the validation are not trained on"


def test_a_finished_training_has_nothing_to_do(bundle, smoke, workflow, tmp_path):
    copy = shutil.copytree(smoke(bundle), tmp_path / "copy")
    before = (copy / "models/features/coarse_all.pt").stat().st_mtime_ns
    again = workflow(bundle, "train", "smoke", kind="train", output_dir=str(copy))
    again.run()
    assert (copy / "models/features/coarse_all.pt").stat().st_mtime_ns == before
    assert load(copy / "models/model.pt").keys() == load(smoke(bundle) / "models/model.pt").keys()


def test_inference(bundle, smoke, workflow, tmp_path):
    case = pair_of(smoke(bundle))
    (tmp_path / "in/good").mkdir(parents=True)
    (tmp_path / "in/twice").mkdir()
    for name in ("fixed", "moving"):
        shutil.copy(case / f"{name}.nii.gz", tmp_path / f"in/good/{name}.nii.gz")
        shutil.copy(case / "fixed.nii.gz", tmp_path / f"in/twice/{name}.nii.gz")
    running = workflow(
        bundle, "inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), device="cpu",
        keep_unconverged=True,
    )  # fmt: skip
    assert running.check_properties() == []
    with pytest.raises(Exception, match="check"):
        running.run()
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "given twice" in report["twice"]["reason"]
    assert not (tmp_path / "out/twice.tfm").exists()
    assert 0 <= report["good"]["confidence"] <= 1
    matrix = read_transform(tmp_path / "out/good.tfm")
    moved = nibabel.load(tmp_path / "out/good_moved.nii.gz")
    fixed = nibabel.load(case / "fixed.nii.gz")
    assert moved.shape == fixed.shape
    np.testing.assert_allclose(moved.affine, fixed.affine, atol=1e-4)
    assert matrix.shape == (4, 4)


def test_storage_does_not_matter_and_python_gives_the_same(bundle, smoke):
    agent = medrl.load(bundle, "cpu")
    case = pair_of(smoke(bundle))
    fixed, moving = read_image(case / "fixed.nii.gz"), read_image(case / "moving.nii.gz")
    answer = agent.register(fixed, moving)
    assert torch.linalg.det(answer.moving_from_fixed[:3, :3]) > 0
    flipped = moving.flip(2)  # stored the other way round: the determinant changes its sign, the patient does not
    matrix = moving.affine.clone().double()
    matrix[:3, 3] += matrix[:3, 1] * (moving.shape[2] - 1)
    matrix[:3, 1] *= -1
    flipped.affine = matrix
    again = agent.register(fixed, flipped)
    places = torch.tensor([[0.0, 0, 0], [40, 0, 0], [0, 40, 0], [0, 0, 40]], dtype=torch.float64)
    first, second = (places @ m[:3, :3].T + m[:3, 3] for m in (answer.moving_from_fixed, again.moving_from_fixed))
    assert float((first - second).norm(dim=1).max()) < 1.0
    with pytest.raises(InputError):
        agent.predict(case / "fixed.nii.gz")


def test_an_unsure_answer_writes_no_transform(bundle, smoke, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / bundle.name)
    settings = json.loads((copy / "models/agent.json").read_text())
    settings["inference"]["calibration"] = {"bias": -9.0}
    (copy / "models/agent.json").write_text(json.dumps(settings))
    folder = tmp_path / "in" / "case"
    shutil.copytree(pair_of(smoke(bundle)), folder)
    status = main(
        ["predict", str(tmp_path / "in"), "--bundle", str(copy), "--output", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert status != 0
    entry = json.loads((tmp_path / "out/report.json").read_text())["cases"]["case"]
    assert entry["status"] == NOT_CONVERGED
    assert "do not fit" in entry["reason"]
    assert not list((tmp_path / "out").glob("*.tfm"))
    assert "1 failed" in capsys.readouterr().out


def test_evaluation(bundle, smoke, workflow, tmp_path):
    running = workflow(
        bundle, "inference", "evaluate", dataset_dir=str(smoke(bundle) / "phantoms"), device="cpu", split="validation",
        ckpt_dir=str(smoke(bundle) / "models"), output_dir=str(tmp_path), levels=["medium"], repeats=2,
    )  # fmt: skip
    assert running.check_properties() == []
    running.run()
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary["levels"]["medium"]["cases"] == 2
    assert (tmp_path / "evaluation.csv").is_file()
