"""The command line, in this process; and MONAI's own, from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_files import SECRETS, write_bad_images, write_slices

import medrl
from medrl.bundles_folder import bundle_path
from medrl.cli import main
from medrl.data.landmarks import read_landmarks
from medrl.data.phantoms import phantom
from medrl.data.write import write_image

NAME = "brain_mri_landmark_detection"
ROOT = Path(medrl.__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    """Two heads, one of them a DICOM series, among bad files, in a folder named after the patient."""
    folder = tmp_path / SECRETS[0]
    write_bad_images(folder)
    affine = np.array([[-5.0, 0, 0, 80], [0, 6, 0, -75], [0, 0, 5.5, -70], [0, 0, 0, 1]])
    voxels, affine, _ = phantom(np.random.default_rng(2), shape=(32, 26, 28), modality="mr", affine=affine)
    write_image(folder / "head.nii.gz", voxels, affine)
    turned = affine.copy()  # a series stores no mirrored grid
    turned[:3, 3] += affine[:3, 1] * (voxels.shape[1] - 1)
    turned[:3, 1] *= -1
    write_slices(folder / "series", voxels[:, ::-1], turned, rescale=(1, 0))
    return folder


def check_outputs(output: Path, shown: str) -> None:
    """Two cases are answered, seven told of, nothing is half-written, and no patient is named."""
    files = sorted(path.name for path in output.iterdir())
    assert files == ["head.mrk.json", "landmarks.csv", "report.json", "series.mrk.json"]
    head, series = (read_landmarks(output / f"{case}.mrk.json") for case in ("head", "series"))
    assert head
    assert head.keys() == series.keys()
    cases = json.loads((output / "report.json").read_text())["cases"]
    assert [case for case in cases if cases[case]["status"] == "done"] == ["head", "series"]
    for case, entry in cases.items():
        if entry["status"] == "failed":
            assert f"{case}: {entry['reason']}" in shown
    for text in (shown, *(path.read_text() for path in output.iterdir())):
        for secret in SECRETS:
            assert secret not in text


def test_predict(folder, tmp_path, capsys):
    status = main(["predict", str(folder), "--bundle", NAME, "--output", str(tmp_path / "out"), "--device", "cpu"])
    shown = capsys.readouterr()
    assert status == 1
    assert "2 cases done, 7 failed" in shown.out
    check_outputs(tmp_path / "out", shown.out + shown.err)


def test_monai_from_another_folder(folder, tmp_path):
    bundle = bundle_path(NAME)
    link = tmp_path / "images"  # MONAI itself prints its arguments: what one types there is one's own
    link.symlink_to(folder)
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs/inference.json"),
        "--bundle_root", str(bundle), "--dataset_dir", str(link), "--output_dir", "out", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "error: 7 of 9 cases failed; the reasons are in report.json"
    assert "Traceback" not in done.stderr
    check_outputs(tmp_path / "out", done.stdout + done.stderr)


def test_wrong_inputs_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out"
    for folder, *more, words in (
        ("empty", "holds no image"), ("nowhere", "no such folder"),
        ("empty", "--device", "cuda:99", "is not available"),
    ):  # fmt: skip
        status = main(["predict", str(tmp_path / folder), "--bundle", NAME, "--output", str(output), *more])
        shown = capsys.readouterr()
        assert status == 1
        assert words in shown.err
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        assert str(tmp_path) not in shown.err
    assert main(["predict", str(tmp_path), "--bundle", "nose", "--output", str(output)]) == 1
    assert "bundle 'nose' is not here" in capsys.readouterr().err
    assert not output.exists()


def test_help_needs_no_torch():
    told = "atexit.register(lambda: print('torch' in sys.modules))"
    code = f"import sys, atexit, medrl.cli\n{told}\nmedrl.cli.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert done.stdout.endswith("False\n")


def test_demo(tmp_path, capsys):
    pytest.importorskip("nilearn")
    assert main(["demo", "--output", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    case = "mni_icbm152_t1_tal_nlin_sym_09a_converted"
    start = next(n for n, line in enumerate(lines) if line.startswith("landmark "))
    table = {line.split()[0]: line.split() for line in lines[start + 1 : start + 18]}
    assert len(table) == 17
    for label, row in table.items():
        assert row[-1] == "found"
        if label.endswith("_R"):
            assert float(row[1]) > 3
        if label.endswith("_L"):
            assert float(row[1]) < -3
    assert any("17 landmarks in" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{case}.mrk.json", f"{case}.png", f"{case}.html", "landmarks.csv", "report.json",
    }  # fmt: skip
    assert (tmp_path / f"{case}.png").read_bytes().startswith(b"\x89PNG")
