from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from medrl.data.dataset import dataset_labels, read_dataset
from medrl.data.landmarks import check_landmarks_inside, read_landmarks
from medrl.data.phantoms import LABELS, ORGANS, phantom, random_affine, write_phantoms
from medrl.data.read import read_image


def at(volume, ras_from_voxel, points_ras):
    """Intensities at points (N, 3) in RAS mm."""
    voxels = (points_ras - ras_from_voxel[:3, 3]) @ np.linalg.inv(ras_from_voxel[:3, :3]).T
    return map_coordinates(volume.astype(float), voxels.T, order=1, mode="nearest")


def contrast_centre(volume, ras_from_voxel, point, radius_mm, sign):
    """Centre of mass of the contrast against body tissue within a ball."""
    grid = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    world = grid @ ras_from_voxel[:3, :3].T + ras_from_voxel[:3, 3]
    near = np.linalg.norm(world - point, axis=-1) < radius_mm
    weight = np.clip(sign * (volume[near] - 40.0), 0, None) ** 2
    return (weight[:, None] * world[near]).sum(0) / weight.sum()


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_are_the_centres_of_the_organs_whatever_the_affine(seed):
    generator = np.random.default_rng(seed)
    volume, affine, points = phantom(generator, shape=(60, 52, 56), spacing_mm=(3.0, 3.6, 3.2), affine="random")
    assert tuple(points) == LABELS
    for name, radius_mm in (("heart", 28.0), ("kidney_R", 18.0), ("kidney_L", 18.0)):
        found = contrast_centre(volume, affine, points[name], radius_mm, 1)
        assert np.linalg.norm(found - points[name]) < 1.5, name
    np.testing.assert_allclose(at(volume, affine, np.stack([points["liver"], points["spleen"]])), [120, 160], atol=60)


def test_the_liver_is_on_the_right_and_the_heart_above_the_bladder(generator):
    """RAS: the first coordinate grows to the patient's right, the last to the head; so for every storage order."""
    for _ in range(8):
        _, _, points = phantom(generator, shape=(16, 16, 16), spacing_mm=12.0, affine="random")
        assert points["liver"][0] > points["spleen"][0] + 20
        assert points["kidney_R"][0] > points["kidney_L"][0] + 20
        assert points["heart"][2] > points["bladder"][2] + 40
        assert points["heart"][1] > points["kidney_R"][1] + 10


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_left_and_right_differ(generator, modality):
    """The image value at a landmark differs from that at its mirror place, so a mirrored agent must fail."""
    volume, affine, points = phantom(generator, modality=modality)
    middle = affine[0, 0] * (volume.shape[0] - 1) / 2
    mirrored = {name: point * [-1, 1, 1] + [2 * middle, 0, 0] for name, point in points.items()}
    noise = 15.0
    for name in ("liver", "heart"):
        here, there = at(volume, affine, np.stack([points[name], mirrored[name]]))
        assert abs(here - there) > 3 * noise, name


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_same_seed_same_patient_and_other_seed_another(modality):
    draws = [phantom(np.random.default_rng(seed), shape=(12, 12, 12), modality=modality) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    assert not np.array_equal(draws[0][0], draws[2][0])
    assert np.linalg.norm(draws[0][2]["heart"] - draws[2][2]["heart"]) > 0.5
    assert draws[0][0].dtype == np.int16


def test_air_and_organs_have_the_stated_hounsfield_units(generator):
    volume, affine, points = phantom(generator)
    assert volume[0, 0, 0] == pytest.approx(-1000, abs=70)
    assert at(volume, affine, points["heart"][None])[0] == pytest.approx(ORGANS["heart"].ct, abs=70)


def test_a_given_affine_is_kept(generator):
    affine = random_affine(generator, (2.0, 3.0, 4.0))
    np.testing.assert_array_equal(phantom(generator, shape=(9, 9, 9), affine=affine)[1], affine)


def test_random_affines_are_regular_grids_in_all_orientations(generator):
    directions = set()
    for _ in range(500):
        affine = random_affine(generator, (1.0, 2.0, 3.0), oblique_degrees=15.0)
        columns = affine[:3, :3] / [1.0, 2.0, 3.0]
        np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-12)
        assert np.abs(affine[:3, 3]).max() <= 100
        axes = np.abs(columns).argmax(axis=0)
        directions.add((*axes, *np.sign(columns[axes, range(3)])))
    assert len(directions) == 48  # 6 orders times 8 sign choices


def test_written_phantoms_make_a_data_set(tmp_path, generator):
    path = write_phantoms(tmp_path, 5, generator, shape=(16, 16, 16), spacing_mm=12.0)
    assert path == tmp_path / "dataset.json"
    assert dataset_labels(tmp_path) == list(LABELS)
    cases = [case for section in ("training", "validation", "test") for case in read_dataset(tmp_path, section)]
    assert [len(read_dataset(tmp_path, section)) for section in ("training", "validation", "test")] == [3, 1, 1]
    assert {case["image"].suffix for case in cases} == {".gz", ".nrrd"}
    for case in cases:
        image, points = read_image(case["image"]), read_landmarks(case["landmarks"])
        check_landmarks_inside(points, image.affine.numpy(), image.shape[1:], case["landmarks"].name)
        values = at(image.numpy()[0], image.affine.numpy(), np.stack([points["heart"], points["liver"]]))
        assert values.min() > 20, case["case"]


def test_written_files_repeat_with_the_seed(tmp_path):
    for name in ("a", "b"):
        write_phantoms(tmp_path / name, 3, np.random.default_rng(7), modality="mr", shape=(8, 8, 8))
    for file in (tmp_path / "a").iterdir():
        if file.suffix != ".gz":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
