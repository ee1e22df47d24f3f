from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medrl.data.transforms import LoadImageStrictd
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
