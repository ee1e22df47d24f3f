"""The Python API on shipped weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import medrl
from medrl.bundles_folder import bundle_path
from medrl.data.phantoms import phantom
from medrl.data.read import read_image
from medrl.data.write import write_image
from medrl.types import InputError

NAME = "brain_mri_landmark_detection"


@pytest.fixture(scope="module")
def agent():
    return medrl.load(NAME, "cpu")


@pytest.fixture(scope="module")
def head():
    """Voxels (X, Y, Z) and ras_from_voxel of something as large as a head, stored from left to right."""
    affine = np.array([[-5.0, 0, 0, 80], [0, 6, 0, -75], [0, 0, 5.5, -70], [0, 0, 0, 1]])
    voxels, affine, _ = phantom(np.random.default_rng(2), shape=(32, 26, 28), modality="mr", affine=affine)
    return voxels, affine


def test_path_array_and_meta_tensor_have_one_answer(agent, head, tmp_path):
    voxels, affine = head
    write_image(tmp_path / "head.nii.gz", voxels, affine)
    expected = agent.predict(tmp_path / "head.nii.gz")
    assert [mark.label for mark in expected] == agent.labels
    assert len(agent.labels) == 17
    assert agent.predict(voxels, affine) == expected
    assert agent.predict(MetaTensor(torch.as_tensor(voxels), affine=torch.as_tensor(affine))) == expected
    assert agent.predict(read_image(tmp_path / "head.nii.gz")) == expected


def test_folder_has_the_same_answer_and_the_agent_is_not_changed(agent, head, tmp_path):
    voxels, affine = head
    for name in ("b.nii.gz", "a.mha"):
        write_image(tmp_path / "in" / name, voxels, affine)
    (tmp_path / "in" / "c.nii.gz").write_text("nothing")
    predictor = agent.predict_folder(tmp_path / "in", tmp_path / "out")
    assert list(predictor.landmarks) == ["a", "b"]
    assert list(predictor.failures) == ["c"]
    assert predictor.network is agent.network
    assert predictor.landmarks["b"] == agent.predict(voxels, affine)
    with pytest.raises(InputError, match="no such folder"):
        agent.predict_folder(tmp_path / "nowhere", tmp_path / "out")


def test_bad_arrays(agent, head):
    voxels, affine = head
    with_nan = voxels.astype(np.float32)
    with_nan[0, 0, 0] = np.nan
    for array, matrix, words in (
        (voxels, None, "needs ras_from_voxel"), (voxels[..., 0], affine, "has shape"), (with_nan, affine, "NaN"),
        (np.ones_like(voxels), affine, "one value only"), (voxels, np.zeros((4, 4)), "not an invertible"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            agent.predict(array, matrix)
    with pytest.raises(InputError, match=r"none\.nii: no such file"):
        agent.predict("none.nii")


def test_load_by_folder_or_name():
    with pytest.raises(InputError, match="expected one of brain_mri_landmark_detection"):
        medrl.load("nose_detection")
    assert medrl.load(bundle_path(NAME), "cpu").labels == medrl.load(NAME, "cpu").labels
