"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medrl.data.pair_phantoms import pair_phantom
from medrl.data.phantoms import phantom, write_phantoms
from medrl.data.write import write_image

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_predict_example(tmp_path, monkeypatch, generator, capsys):
    code = next(block for block in blocks("python") if "medrl.load" in block)
    if not (ROOT / "bundles/brain_mri_landmark_detection/models/model.pt").exists():
        pytest.skip("the bundle has no weights yet")
    array, ras_from_voxel, _ = phantom(generator, shape=(64, 64, 64), spacing_mm=3.0, modality="mr")
    write_image(tmp_path / "head.nii.gz", array, ras_from_voxel)
    pair = pair_phantom(generator, shape=(32, 32, 32), spacing_mm=5.0)
    write_image(tmp_path / "ct.nii.gz", pair.ct, pair.ct_affine)
    write_image(tmp_path / "mr.nii.gz", pair.mr, pair.mr_affine)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 17 + 4  # a matrix has four rows
    assert lines[-1].endswith("converged")
    assert lines[0].startswith("hippocampus_R (")


def test_training_example(tmp_path, monkeypatch):
    code = next(block for block in blocks("python") if "RLTrainer" in block)
    write_phantoms(tmp_path, 5, np.random.default_rng(0), modality="mr", shape=(32, 32, 32))
    torch.manual_seed(0)
    names = {"dataset_dir": tmp_path}
    exec(compile(code, "README.md", "exec"), names)
    assert names["agent"].update == 5
    assert len(names["replay"]) >= 64


def test_the_two_commands_are_one_line_each_and_ci_runs_the_second():
    first, second = (block.strip() for block in blocks("")[:2])
    assert "\n" not in first
    assert first.endswith("&& medrl demo")
    assert "\n" not in second
    assert second.startswith("pip install -c constraints.txt")
    assert second in (ROOT / ".ci/run").read_text()
