"""Preparation of aligned pairs on tiny folders in the layouts of the public sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medrl.data.pairs import read_pairs
from medrl.types import InputError

STS = [f"STS_{number:03d}" for number in (6, 12, 21, 29, 37, 48, 19, *range(60, 90))]


def make(folder, names):
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def run(script, kind, folder, output, *more):
    path = script.main(["--set", kind, "--input", str(folder), "--output", str(output), *more])
    return json.loads(path.read_text())


@pytest.fixture
def script(load_script):
    return load_script("prepare_pairs")


def test_sarcoma(script, tmp_path):
    make(tmp_path / "in", [f"{case}/{name}" for case in STS for name in ("CT", "MR_T1", "CT_mask")])
    document = run(script, "sts", tmp_path / "in", tmp_path / "out")
    parts = {section: [entry["subject"] for entry in document[section]] for section in ("training", "test")}
    assert [entry["case"] for entry in document["validation"]] == sorted(STS[:6])
    assert [len(part) for part in parts.values()] == [24, 6]
    assert "STS_019" not in parts["training"] + parts["test"]
    assert not set(parts["training"]) & set(parts["test"])
    entry = document["training"][0]
    assert Path(entry["fixed"]).parts[-3:] == ("in", entry["case"], "CT.nii.gz")
    assert entry["reference"] == "silver"
    assert read_pairs(tmp_path / "out", "training")[0].moving.name == "MR_T1.nii.gz"
    other = run(script, "sts", tmp_path / "in", tmp_path / "other", "--seed", "1")
    assert [entry["case"] for entry in other["validation"]] == sorted(STS[:6])
    assert [entry["case"] for entry in other["test"]] != parts["test"]


def test_multi_contrast(script, tmp_path):
    make(tmp_path / "in", ["p1/T1", "p1/T1POST", "p1/T2", "p1/FLAIR", "p1/GT", "p2/T1", "p2/FLAIR"])
    document = run(script, "ms", tmp_path / "in", tmp_path / "out")
    assert [len(document[section]) for section in ("training", "validation", "test")] in ([3, 0, 1], [1, 0, 3])
    entries = {entry["case"]: entry for part in ("training", "test") for entry in document[part]}
    assert set(entries) == {"p1_T1POST", "p1_T2", "p1_FLAIR", "p2_FLAIR"}
    assert all(Path(entry["fixed"]).name == "T1.nii.gz" for entry in entries.values())
    assert {entry["reference"] for entry in entries.values()} == {"exact"}


def test_flat_folder_and_brats(script, tmp_path):
    make(tmp_path / "in", [f"Subj{n}_{name}" for n in range(6) for name in ("T1", "FLAIR", "T1_labels")])
    document = run(script, "nichart", tmp_path / "in", tmp_path / "out")
    assert [len(document[section]) for section in ("training", "validation", "test")] == [4, 1, 1]
    entry = document["test"][0]
    assert [Path(entry[role]).name for role in ("fixed", "moving")] == [
        f"{entry['subject']}_T1.nii.gz", f"{entry['subject']}_FLAIR.nii.gz"
    ]  # fmt: skip
    make(tmp_path / "brats", [f"b{n}/{name}" for n in range(4) for name in ("T1c", "FLAIR", "seg")])
    document = run(script, "brats", tmp_path / "brats", tmp_path / "out2", "--test", "0.5")
    assert [len(document[section]) for section in ("training", "validation", "test")] == [1, 1, 2]


def test_nothing_found(script, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="in: no pair found"):
        run(script, "brats", tmp_path / "in", tmp_path / "out")
