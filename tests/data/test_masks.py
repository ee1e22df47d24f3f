"""Masks in files and data sets: on the grid of their image, or refused."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.dataset import read_dataset, split_subjects
from medrl.data.masks import (
    MaskFiles,
    crop_to_mask,
    read_mask,
    read_mask_cases,
    write_mask,
    write_mask_dataset,
)
from medrl.data.read import read_image
from medrl.data.write import write_image
from medrl.types import InputError

SHAPE = (12, 10, 9)


def draw(generator, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[3:7, 2:6, : max(1, shape[2] - 4)] = True
    return (100 * mask + generator.integers(0, 20, shape)).astype(np.int16), mask


@pytest.fixture
def folder(tmp_path, generator, affine):
    """A data set of two patients, the second in two images."""
    files = []
    for case, subject in (("a", "p1"), ("b_ct", "p2"), ("b_mr", "p2")):
        voxels, mask = draw(generator)
        write_image(tmp_path / "images" / f"{case}.nii.gz", voxels, affine)
        write_image(tmp_path / "labels" / f"{case}.nii.gz", 3 * mask.astype(np.uint8), affine)
        files.append(MaskFiles(tmp_path / "images" / f"{case}.nii.gz", tmp_path / "labels" / f"{case}.nii.gz", subject))
    write_mask_dataset(tmp_path, "tiny", "tumour", {"training": files[:1], "test": files[1:]})
    return tmp_path


def test_data_set_follows_the_contract(folder):
    document = json.loads((folder / "dataset.json").read_text())
    assert document["labels"] == {"0": "background", "1": "tumour"}
    entry = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "subject": "p1"}
    assert document["training"] == [entry]
    assert document["validation"] == []
    assert [case["subject"] for case in read_dataset(folder, "test", answer="label")] == ["p2", "p2"]


def test_cases_are_read_one_by_one(folder, affine):
    cases = list(read_mask_cases(folder, "test"))
    assert [(case.name, case.subject) for case in cases] == [("b_ct", "p2"), ("b_mr", "p2")]
    for case in cases:
        assert case.image.shape == case.mask.shape == (1, *SHAPE)
        assert case.mask.dtype == torch.bool
        assert int(case.mask.sum()) == 80  # every label above 0
        np.testing.assert_allclose(case.mask.affine, affine, atol=1e-4)
        assert float(case.image[case.mask].min()) >= 100


def test_a_case_without_a_label_is_named(folder):
    document = json.loads((folder / "dataset.json").read_text())
    del document["training"][0]["label"]
    (folder / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"dataset\.json: a\.nii\.gz has no 'label'"):
        next(read_mask_cases(folder, "training"))


def test_a_mask_on_another_grid_is_refused(folder, affine):
    image = read_image(folder / "images" / "a.nii.gz")
    path = folder / "m.nii.gz"
    write_image(path, np.ones((12, 10, 8), np.uint8), affine)
    with pytest.raises(InputError, match=r"m\.nii\.gz: has 12 x 10 x 8 voxels and its image 12 x 10 x 9"):
        read_mask(path, image)
    moved = affine.copy()
    moved[:3, 3] += [0.0, 3.0, 4.0]
    write_image(path, np.ones(SHAPE, np.uint8), moved)
    with pytest.raises(InputError, match=r"m\.nii\.gz: lies 5\.0 mm off its image"):
        read_mask(path, image)
    flipped = affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
    write_image(path, np.ones(SHAPE, np.uint8), flipped)
    with pytest.raises(InputError, match="off its image"):
        read_mask(path, image)
    moved[:3, 3] = affine[:3, 3] + 0.01  # rounding of headers
    write_image(path, np.ones(SHAPE, np.uint8), moved)
    assert read_mask(path, image).all()
    write_image(path, np.zeros(SHAPE, np.uint8), affine)
    with pytest.raises(InputError, match="the label map is empty"):
        read_mask(path, image)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, "numpy"])
def test_masks_are_written_on_the_grid_of_the_image(folder, kind, affine):
    image = read_image(folder / "images" / "a.nii.gz")
    mask = image[0] > 50
    given = mask.as_tensor().numpy() if kind == "numpy" else mask.as_tensor().to(kind)
    write_mask(folder / "out.nii.gz", given, image)
    stored = nibabel.load(folder / "out.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(stored.dataobj), mask.numpy().astype(np.uint8))
    np.testing.assert_allclose(stored.affine, affine, atol=1e-4)
    assert torch.equal(read_mask(folder / "out.nii.gz", image)[0].as_tensor(), mask.as_tensor())
    with pytest.raises(InputError, match=r"x\.nii\.gz: the mask has 3 x 3 x 3 voxels and the image 12 x 10 x 9"):
        write_mask(folder / "x.nii.gz", np.ones((3, 3, 3)), image)
    assert not (folder / "x.nii.gz").exists()


@pytest.mark.parametrize("shape", [(12, 10, 1), (1, 12, 10), (12, 10)])
def test_files_of_one_slice(tmp_path, generator, affine, shape):
    voxels = generator.integers(0, 50, shape).astype(np.int16)
    for name, array in (("i", voxels), ("m", (voxels > 25).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match="expected one 3D volume"):
        read_image(tmp_path / "i.nii.gz")  # unless it is asked for
    image = read_image(tmp_path / "i.nii.gz", one_slice=True)
    full = (*shape, 1)[:3]
    assert image.shape == (1, *full)
    mask = read_mask(tmp_path / "m.nii.gz", image)
    write_mask(tmp_path / "o.nii.gz", mask, image)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "o.nii.gz").dataobj), mask[0].numpy())


def test_one_row_of_voxels_is_no_slice(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.arange(9, dtype=np.int16).reshape(9, 1, 1), np.eye(4)), tmp_path / "i.nii.gz")
    with pytest.raises(InputError, match="expected one 3D volume"):
        read_image(tmp_path / "i.nii.gz", one_slice=True)


def test_crop_keeps_the_place(generator, affine):
    voxels, mask = draw(generator, (30, 28, 26))
    image = MetaTensor(torch.from_numpy(voxels)[None].float(), affine=torch.as_tensor(affine))
    inside = MetaTensor(torch.from_numpy(mask)[None], affine=torch.as_tensor(affine))
    small, small_mask = crop_to_mask(image, inside, 2.0)
    assert int(small_mask.sum()) == int(mask.sum())
    assert small.shape == small_mask.shape
    assert small.numel() < image.numel() / 4
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    margin = np.ceil(2.0 / spacing).astype(int)
    lower = np.maximum(np.array([3, 2, 0]) - margin, 0)
    np.testing.assert_allclose(small.affine[:3, 3], (affine @ [*lower, 1])[:3], atol=1e-9)
    assert float(small[0, 0, 0, 0]) == voxels[tuple(lower)]


def test_subjects_are_split_by_their_names_alone():
    names = [f"patient_{number}" for number in range(200)]
    parts = split_subjects(names, validation=0.1, test=0.2)
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert 25 <= len(parts["test"]) <= 55
    assert 10 <= len(parts["validation"]) <= 32
    fewer = split_subjects(names[::3], validation=0.1, test=0.2)  # others change nothing
    assert set(fewer["test"]) == set(parts["test"]) & set(names[::3])
    assert split_subjects(names, validation=0.1, test=0.2, seed=1)["test"] != parts["test"]
    assert split_subjects(["STS_001", "STS_002"], validation=0, test=0.5) == {
        "training": ["STS_002"], "validation": [], "test": ["STS_001"],
    }  # fmt: skip
    for seed in range(20):
        few = split_subjects(names[:3], validation=0.3, test=0.5, seed=seed)
        assert sorted(map(len, few.values())) == [1, 1, 1]
    with pytest.raises(InputError, match="2 subjects are too few for 3 sections"):
        split_subjects(names[:2], validation=0.1, test=0.1)
    with pytest.raises(InputError, match="expected fractions"):
        split_subjects(names, validation=0.5, test=0.5)
