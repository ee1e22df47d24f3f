from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medrl.data.seeds import make_seeds, write_seeds
from medrl.data.transforms import LoadImageStrictd, LoadSeedsd
from medrl.data.write import write_image
from medrl.types import InputError


def test_paths_are_read_and_tensors_kept(tmp_path, generator, affine):
    voxels = generator.normal(size=(7, 9, 11)).astype(np.float32)
    write_image(tmp_path / "case.nii", voxels, affine)
    load = LoadImageStrictd(keys=["image"])
    data = {"image": tmp_path / "case.nii", "case": "case"}
    loaded = load(data)
    np.testing.assert_array_equal(loaded["image"].numpy()[0], voxels)
    np.testing.assert_allclose(loaded["image"].affine.numpy(), affine, atol=1e-6)
    assert loaded["case"] == "case"
    assert data["image"] == tmp_path / "case.nii"
    assert load(loaded)["image"] is loaded["image"]


def test_wrong_images_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "case.nii")
    with pytest.raises(InputError, match="4 x 4 x 4 x 3"):
        LoadImageStrictd(keys=["image"])({"image": tmp_path / "case.nii"})
    assert LoadImageStrictd(keys=["image"], allow_missing_keys=True)({}) == {}


def test_single_slices_are_read_if_asked(tmp_path, generator, affine):
    nibabel.save(nibabel.Nifti1Image(generator.normal(size=(7, 9, 1)), affine), tmp_path / "case.nii")
    with pytest.raises(InputError, match="7 x 9 x 1"):
        LoadImageStrictd(keys=["image"])({"image": tmp_path / "case.nii"})
    assert LoadImageStrictd(keys=["image"], one_slice=True)({"image": tmp_path / "case.nii"})["image"].shape[-1] == 1


def test_seeds_are_read_and_checked_against_their_image(tmp_path, generator, affine):
    write_image(tmp_path / "case.nii", generator.normal(size=(7, 9, 11)).astype(np.float32), affine)
    image = LoadImageStrictd(keys=["image"])({"image": tmp_path / "case.nii"})["image"]
    seeds = make_seeds([(affine @ [3, 4, 5, 1])[:3]], [True])
    write_seeds(tmp_path / "case_seeds.mrk.json", seeds)
    load = LoadSeedsd(keys=["seeds"])
    loaded = load({"image": image, "seeds": tmp_path / "case_seeds.mrk.json"})["seeds"]
    np.testing.assert_allclose(loaded.position_ras, seeds.position_ras, atol=1e-4)
    assert load({"image": image, "seeds": loaded})["seeds"] is loaded
    for data in ({"image": image}, {"image": image, "seeds": None}):
        assert len(load(data)["seeds"].foreground) == 0
    write_seeds(tmp_path / "case_seeds.mrk.json", make_seeds([(affine @ [3, 4, 50, 1])[:3]], [True]))
    with pytest.raises(InputError, match=r"case_seeds\.mrk\.json: seed 1 lies"):
        load({"image": image, "seeds": tmp_path / "case_seeds.mrk.json"})
    with pytest.raises(InputError, match=r"seeds: seed 1 lies"):
        load({"image": image, "seeds": make_seeds([[1e4, 0, 0]], [True])})
