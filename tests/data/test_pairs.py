"""Pairs of files, good and bad, and data sets of aligned pairs."""

from __future__ import annotations

import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from bad_files import LPS, write_slices
from monai.data import MetaTensor

from medrl.data.pairs import PairFiles, find_pairs, pair_files, read_pair, read_pairs, write_pair_dataset
from medrl.data.phantoms import random_affine
from medrl.data.write import write_image
from medrl.types import InputError


def image(seed, shape=(16, 14, 12)):
    return np.random.default_rng(seed).integers(0, 300, shape).astype(np.int16)


def oblique(seed, spacing_mm=(3.0, 3.5, 4.0)):
    return random_affine(np.random.default_rng(seed), spacing_mm, oblique_degrees=25.0)


@pytest.fixture
def folder(tmp_path):
    """Three good cases, of different formats, and one of each kind of incomplete one."""
    write_image(tmp_path / "a/fixed.nii.gz", image(0), oblique(0))
    write_image(tmp_path / "a/moving.mha", image(1, (13, 12, 20)), oblique(1))
    write_image(tmp_path / "a/moving_fov.nii.gz", image(2), oblique(1))
    write_image(tmp_path / "b/Fixed.nrrd", image(3), oblique(2))
    series = oblique(3)
    if np.linalg.det(LPS @ series) < 0:  # a series cannot store a left-handed grid
        series[:3, 0] *= -1
    write_slices(tmp_path / "b/moving", image(4), series)
    write_image(tmp_path / "no_moving/fixed.nii", image(5), oblique(4))
    for name in ("fixed.nii.gz", "fixed.nrrd", "moving.nii.gz"):
        write_image(tmp_path / "two" / name, image(6), oblique(5))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/fixed.txt").write_text("nothing")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def refused(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pairs_of_a_folder(folder, caplog):
    with caplog.at_level(logging.WARNING):
        cases = find_pairs(folder)
    assert list(cases) == ["a", "b", "no_moving", "two"]
    assert caplog.messages == ["1 sub-folders without fixed and moving image were left out"]
    assert [path.name for path in pair_files(cases["a"])] == ["fixed.nii.gz", "moving.mha"]
    assert [path.name for path in pair_files(cases["b"])] == ["Fixed.nrrd", "moving"]
    assert "no moving image; expected moving.* (.nii.gz" in refused(pair_files, cases["no_moving"])
    assert refused(pair_files, cases["two"]).startswith("fixed.nii.gz and fixed.nrrd: 2 candidates for the fixed")
    assert find_pairs(folder / "a") == {"a": folder / "a"}


def test_folders_without_pairs(tmp_path):
    assert "no such folder" in refused(find_pairs, tmp_path / "none")
    (tmp_path / "empty/case").mkdir(parents=True)
    assert refused(find_pairs, tmp_path / "empty").startswith("empty: holds no pair")


def test_geometry_of_a_pair(folder):
    fixed, moving = read_pair(*pair_files(folder / "a"))
    np.testing.assert_allclose(fixed.affine.numpy(), oblique(0), atol=1e-4)
    np.testing.assert_allclose(moving.affine.numpy(), oblique(1), atol=1e-4)
    np.testing.assert_array_equal(moving[0].numpy(), image(1, (13, 12, 20)))
    assert read_pair(*pair_files(folder / "b"))[1].shape == (1, 16, 14, 12)


def test_few_slices_and_flat_images(tmp_path):
    good = tmp_path / "good.nii.gz"
    write_image(good, image(0), oblique(0))
    for name, shape, spacing_mm, words in (
        ("slab", (40, 40, 6), (2.0, 2.0, 8.0), "the moving image has a field of view of a few slices (40 x 40 x 6 vox"),
        ("thin", (40, 12, 40), (2.0, 2.0, 2.0), "40 x 12 x 40 voxels, 80 x 24 x 80 mm"),
        ("slice", (40, 40, 1), (2.0, 2.0, 8.0), "the moving image is a single slice; expected two volumes"),
    ):
        write_image(tmp_path / f"{name}.nii.gz", image(1, shape), oblique(1, spacing_mm))
        assert words in refused(read_pair, good, tmp_path / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(image(1, (40, 40)), np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "flat.nii.gz")
    assert "the fixed image is a single slice" in refused(read_pair, tmp_path / "flat.nii.gz", good)
    flat = tmp_path / "slice.nii.gz"
    assert "fixed and moving image are a single slice" in refused(read_pair, flat, flat)


def test_one_image_twice(tmp_path):
    write_image(tmp_path / "a.nii.gz", image(0), np.diag([3.0, 3.0, 3.0, 1.0]))
    write_image(tmp_path / "b.mha", image(0), np.diag([3.0, 3.0, 3.0, 1.0]))
    shifted = np.diag([3.0, 3.0, 3.0, 1.0])
    shifted[0, 3] = 5.0
    write_image(tmp_path / "c.nii.gz", image(0), shifted)
    assert "one image given twice" in refused(read_pair, tmp_path / "a.nii.gz", tmp_path / "b.mha")
    fixed, moving = read_pair(tmp_path / "a.nii.gz", tmp_path / "c.nii.gz")  # a moved header is another image
    assert float((moving.affine - fixed.affine).abs().sum()) == 5.0
    assert "one image given twice" in refused(
        read_pair, fixed, MetaTensor(fixed.as_tensor().clone(), affine=fixed.affine)
    )


def test_headers_without_geometry(tmp_path, caplog):
    good = tmp_path / "good.nii.gz"
    write_image(good, image(0, (40, 40, 40)), oblique(0))

    def write(name, pixdim):
        nifti = nibabel.Nifti1Image(image(1, (40, 40, 40)), None)
        nifti.header["sform_code"] = nifti.header["qform_code"] = 0
        nifti.header["pixdim"][1:4] = pixdim
        (tmp_path / name).write_bytes(nifti.to_bytes())
        raw = bytearray((tmp_path / name).read_bytes())
        raw[80:92] = np.array(pixdim, "<f4").tobytes()  # nibabel repairs what it writes
        (tmp_path / name).write_bytes(bytes(raw))
        return tmp_path / name

    for name, pixdim in (("ones.nii", (1, 1, 1)), ("zeros.nii", (0, 0, 0))):
        words = refused(read_pair, good, write(name, pixdim))
        assert words == f"{name}: its header says nothing about geometry; expected voxel sizes, convert it again"
    with caplog.at_level(logging.WARNING, "medrl"):
        moving = read_pair(good, write("sizes.nii", (2, 2, 3)))[1]
    assert moving.affine.diagonal().abs().tolist() == [2.0, 2.0, 3.0, 1.0]
    assert "left and right are a guess" in caplog.text

    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 40 40 40\nencoding: raw\nendian: little\n"
    (tmp_path / "bare.nrrd").write_bytes((header + "\n").encode() + image(1, (40, 40, 40)).tobytes())
    assert refused(read_pair, good, tmp_path / "bare.nrrd").startswith("bare.nrrd: its header says nothing")
    write_image(tmp_path / "full.nrrd", image(1), oblique(1))
    write_image(tmp_path / "full.mha", image(2), oblique(1))
    read_pair(tmp_path / "full.nrrd", tmp_path / "full.mha")


def test_data_set(folder):
    first, second = (PairFiles(name, name, *pair_files(folder / name), "silver") for name in "ab")
    path = write_pair_dataset(folder, "made up", {"training": [first], "test": [second]})
    entry = json.loads(path.read_text())["training"][0]
    assert entry == {
        "case": "a", "subject": "a", "fixed": "a/fixed.nii.gz", "moving": "a/moving.mha", "reference": "silver"
    }  # fmt: skip
    assert read_pairs(folder, "training") == [first]
    assert read_pairs(folder, "test") == [second]
    assert "no pairs in section validation (sections with pairs: training, test)" in refused(
        read_pairs, folder, "validation"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": "b"}, "subject b is in training and in test"),
        ({"moving": "a/none.nii"}, "names none.nii of a, which does not exist"),
        ({"moving": None}, "expected every pair as"),
        ({"reference": "golden"}, "reference 'golden' of a; expected 'exact' or 'silver'"),
    ],
)
def test_bad_data_sets(folder, change, words):
    entries = [PairFiles(name, name, *pair_files(folder / name)) for name in "ab"]
    path = write_pair_dataset(folder, "made up", {"training": entries[:1], "test": entries[1:]})
    document = json.loads(path.read_text())
    document["training"][0] |= change
    path.write_text(json.dumps(document))
    assert words in refused(read_pairs, folder, "training")


def test_case_ids_of_a_data_set(folder):
    path = write_pair_dataset(folder, "made up", {"training": [PairFiles("", "s", *pair_files(folder / "a"))]})
    document = json.loads(path.read_text())
    del document["training"][0]["case"], document["training"][0]["reference"]
    path.write_text(json.dumps(document))
    assert read_pairs(folder, "training")[0].case == "s_moving"
    assert read_pairs(folder, "training")[0].reference == "exact"
    document["training"] *= 2
    path.write_text(json.dumps(document))
    assert "two pairs of section training have the case id s_moving" in refused(read_pairs, folder, "training")
    path.write_text("[]")
    assert "cannot be read" in refused(read_pairs, folder, "training")
    assert "no dataset.json" in refused(read_pairs, folder / "a", "training")


def test_tensors_are_checked():
    matrix = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64))
    fixed, moving = (MetaTensor(torch.rand(1, 12, 12, 12), affine=matrix) for _ in range(2))
    assert read_pair(fixed, moving) == (fixed, moving)
    assert "few slices" in refused(read_pair, fixed, MetaTensor(torch.rand(1, 12, 12, 5), affine=matrix))
