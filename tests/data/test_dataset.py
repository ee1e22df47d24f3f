from __future__ import annotations

import json

import numpy as np
import pytest

from medrl.data.dataset import dataset_labels, read_dataset, split_cases, write_dataset
from medrl.types import InputError


@pytest.fixture
def folder(tmp_path):
    """A data set whose images lie elsewhere: in/ beside out/."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for case in ("a", "b", "c"):
        (tmp_path / "in" / f"{case}.nii.gz").touch()
        (tmp_path / "out" / f"{case}.csv").touch()
    pairs = [(tmp_path / "in" / f"{case}.nii.gz", tmp_path / "out" / f"{case}.csv") for case in ("a", "b", "c")]
    sections = {"training": pairs[:1], "validation": pairs[1:2], "test": [(pairs[2][0], None)]}
    write_dataset(tmp_path / "out", "tiny", ["AC", "PC"], sections)
    return tmp_path / "out"


def edit(folder, **changes):
    document = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(document | changes))


def test_file_follows_the_contract_and_its_paths_are_relative(folder):
    assert json.loads((folder / "dataset.json").read_text()) == {
        "name": "tiny",
        "landmarks": ["AC", "PC"],
        "training": [{"image": "../in/a.nii.gz", "landmarks": "a.csv"}],
        "validation": [{"image": "../in/b.nii.gz", "landmarks": "b.csv"}],
        "test": [{"image": "../in/c.nii.gz"}],
    }


def test_read_back(folder):
    (case,) = read_dataset(folder, "training")
    assert case["image"].samefile(folder.parent / "in" / "a.nii.gz")
    assert case["landmarks"].samefile(folder / "a.csv")
    assert case["case"] == "a"
    assert read_dataset(folder, "test")[0]["landmarks"] is None
    assert dataset_labels(folder) == ["AC", "PC"]


def test_links_keep_their_names(tmp_path):
    """Version-controlled data sets hold links to files with hashes for names; the case id is the link's name."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "MD5E-4711.nii.gz").touch()
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "store" / "MD5E-4711.nii.gz")
    write_dataset(tmp_path, "links", ["AC"], {"training": [(tmp_path / "a.nii.gz", None)]})
    assert read_dataset(tmp_path, "training")[0]["case"] == "a"


def test_bare_and_absolute_paths_are_read(folder):
    edit(folder, test=[str(folder.parent / "in" / "c.nii.gz")])
    assert read_dataset(folder, "test")[0]["case"] == "c"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": []}, "training is empty"),
        ({"training": None}, r"no section training \(it has training, validation, test\)"),
        ({"training": [{"image": "x.nii"}]}, r"names x\.nii, which does not exist"),
        ({"training": [{"image": "../in/a.nii.gz", "landmarks": "x.csv"}]}, r"names x\.csv"),
        ({"training": [{"label": "x"}]}, "expected every case as"),
        ({"training": [{"image": "../in/b.nii.gz"}]}, r"b\.nii\.gz is listed in training and in validation"),
        ({"training": [{"image": "../in/../in/c.nii.gz"}]}, r"c\.nii\.gz is listed in training and in test"),
    ],
)
def test_wrong_sections_are_refused(folder, changes, words):
    edit(folder, **changes)
    with pytest.raises(InputError, match=words) as caught:
        read_dataset(folder, "training")
    assert "\n" not in str(caught.value)
    assert str(folder.parent) not in str(caught.value)


def test_two_images_of_one_case_id_are_refused(folder):
    (folder / "a.nrrd").touch()
    edit(folder, training=["../in/a.nii.gz", "a.nrrd"])
    with pytest.raises(InputError, match="case id a"):
        read_dataset(folder, "training")


def test_missing_or_broken_dataset_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        read_dataset(tmp_path, "training")
    for text in ("{", "[]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            dataset_labels(tmp_path)


@pytest.mark.parametrize("labels", [None, [], ["AC", "AC"], ["AC", 2], "AC"])
def test_wrong_labels_are_refused(folder, labels):
    edit(folder, landmarks=labels)
    with pytest.raises(InputError, match=r"dataset\.json: .*'landmarks'"):
        dataset_labels(folder)


def test_split_is_a_partition_and_repeats_with_the_seed():
    cases = [f"case{number:02d}" for number in range(20)]
    parts = split_cases(cases, validation=0.1, test=0.25, generator=np.random.default_rng(5))
    assert {section: len(part) for section, part in parts.items()} == {"training": 13, "validation": 2, "test": 5}
    assert sorted(case for part in parts.values() for case in part) == cases
    assert parts == split_cases(cases, validation=0.1, test=0.25, generator=np.random.default_rng(5))
    assert parts != split_cases(cases, validation=0.1, test=0.25, generator=np.random.default_rng(6))


def test_small_splits_keep_one_case_each():
    generator = np.random.default_rng(0)
    parts = split_cases(["a", "b", "c"], validation=0.1, test=0.1, generator=generator)
    assert [len(part) for part in parts.values()] == [1, 1, 1]
    assert split_cases(["a"], validation=0.0, test=0.0, generator=generator)["training"] == ["a"]
    with pytest.raises(InputError, match="2 cases are too few"):
        split_cases(["a", "b"], validation=0.1, test=0.1, generator=generator)
    with pytest.raises(InputError, match="sum to less than 1"):
        split_cases(["a", "b"], validation=0.5, test=0.5, generator=generator)
