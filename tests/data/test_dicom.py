"""Synthetic series, each with one thing wrong, and the real one against SimpleITK's reader."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK
from bad_files import LPS, SECRETS, SERIES, data_set, write_slices
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, RLELossless, generate_uid

from medrl.data.dicom import is_dicom_folder, read_series
from medrl.data.phantoms import random_affine
from medrl.data.read import find_cases, read_image
from medrl.types import InputError

SHAPE = (8, 10, 6)  # columns, rows, slices


@pytest.fixture
def voxels(generator):
    return generator.integers(0, 2000, SHAPE).astype(np.int16)


@pytest.fixture
def right_handed() -> np.ndarray:
    """An oblique grid that a DICOM series can store: its third axis is the normal of the other two."""
    matrix = random_affine(np.random.default_rng(4), (0.9, 0.7, 2.5), oblique_degrees=20.0)
    if np.linalg.det(LPS @ matrix) < 0:
        matrix[:3, 0] *= -1
    return matrix


def read_with_simpleitk(folder):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps_from_voxel = np.eye(4)
    lps_from_voxel[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps_from_voxel[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, LPS @ lps_from_voxel


def normal_of(matrix):
    return LPS[:3, :3] @ matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])


def test_regular_series(tmp_path, voxels, right_handed):
    folder = write_slices(tmp_path / "case", voxels, right_handed)
    array, ras_from_voxel = read_series(folder)
    np.testing.assert_array_equal(array, 2.0 * voxels - 1000)
    assert array.dtype == np.float32
    np.testing.assert_allclose(ras_from_voxel, right_handed, atol=1e-5)
    theirs, their_affine = read_with_simpleitk(folder)
    np.testing.assert_array_equal(array, theirs)
    np.testing.assert_allclose(ras_from_voxel, their_affine, atol=1e-5)


def test_slices_stored_against_the_normal_are_turned_round(tmp_path, voxels, right_handed):
    """A left-handed grid is the same patient with the slices in the other order."""
    matrix = right_handed.copy()
    matrix[:3, 2] *= -1
    array, ras_from_voxel = read_series(write_slices(tmp_path / "case", voxels, matrix))
    np.testing.assert_array_equal(array, (2.0 * voxels - 1000)[..., ::-1])
    np.testing.assert_allclose(ras_from_voxel[:3, 3], (matrix @ [0, 0, SHAPE[2] - 1, 1])[:3], atol=1e-5)


def test_folder_is_a_case_and_other_files_do_no_harm(tmp_path, voxels, right_handed):
    folder = write_slices(tmp_path / "case", voxels, right_handed)
    (folder / "README.txt").write_text("from the archive")
    report = data_set(folder / "report.dcm")  # no pixels, its own series
    report.SeriesInstanceUID = generate_uid()
    report.save_as(folder / "report.dcm")
    assert is_dicom_folder(folder)
    assert find_cases(tmp_path) == {"case": folder}
    image = read_image(folder)
    assert image.shape == (1, *SHAPE)
    np.testing.assert_allclose(image.affine.numpy(), right_handed, atol=1e-5)


def test_compressed_slices(tmp_path, voxels, right_handed):
    folder = write_slices(tmp_path / "case", voxels, right_handed, edit=lambda index, item: item.compress(RLELossless))
    np.testing.assert_array_equal(read_series(folder)[0], 2.0 * voxels - 1000)


def test_small_unevenness_is_tolerated(tmp_path, voxels, right_handed, generator):
    """Slice distance 2.5 mm: jitter of 5 micrometres gives gaps within 10."""
    shifts = generator.uniform(-0.005, 0.005, (SHAPE[2], 1)) * normal_of(right_handed)
    _, ras_from_voxel = read_series(write_slices(tmp_path / "case", voxels, right_handed, shifts))
    np.testing.assert_allclose(ras_from_voxel, right_handed, atol=0.01)


def uneven(matrix):
    return np.where(np.arange(SHAPE[2]) >= 3, 0.05, 0.0)[:, None] * normal_of(matrix)


def missing(matrix):
    return np.where(np.arange(SHAPE[2]) >= 3, 2.5, 0.0)[:, None] * normal_of(matrix)


def repeated(matrix):
    return np.where(np.arange(SHAPE[2]) >= 3, -2.5, 0.0)[:, None] * normal_of(matrix)


def tilted(matrix):
    return 0.3 * np.arange(SHAPE[2])[:, None] * (LPS[:3, :3] @ matrix[:3, 1]) / 0.7


BAD_STACKS = {
    "uneven": (uneven, r"the gap after slice 3 is 2\.55 mm, elsewhere 2\.50 mm"),
    "missing": (missing, r"the gap after slice 3 is 5\.00 mm, elsewhere 2\.50 mm"),
    "repeated": (repeated, "1 slices lie where another one does"),
    "tilted": (tilted, r"shifted sideways by 1\.50 mm over the stack \(gantry tilt of 6\.8 degrees\)"),
}


@pytest.mark.parametrize(("shifts", "words"), BAD_STACKS.values(), ids=BAD_STACKS)
def test_stacks_with_a_fault_are_refused(tmp_path, voxels, right_handed, shifts, words):
    folder = write_slices(tmp_path / "case", voxels, right_handed, shifts(right_handed))
    with pytest.raises(InputError, match=words) as caught:
        read_series(folder)
    assert str(caught.value).startswith("case: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shifts", [uneven, missing, tilted])
def test_resampling_keeps_every_intensity_at_its_place(tmp_path, right_handed, shifts, caplog):
    """The stored intensity is a linear function of the patient position; so must be the resampled one."""
    gradient = np.array([11.0, -7.0, 5.0])
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    moved = (shifts(right_handed) @ LPS[:3, :3])[grid[..., 2]]
    world = grid @ right_handed[:3, :3].T + right_handed[:3, 3] + moved
    offset = 600 - (world @ gradient).mean()
    stored = np.round(world @ gradient + offset).astype(np.int16)
    folder = write_slices(tmp_path / "case", stored, right_handed, shifts(right_handed))
    image = read_image(folder, policy="resample")
    matrix = image.affine.numpy()
    np.testing.assert_allclose(np.linalg.norm(matrix[:3, :3], axis=0), [0.9, 0.7, 2.5], atol=1e-4)
    array = image.numpy()[0]
    grid = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1)
    expected = 2 * (grid @ matrix[:3, :3].T + matrix[:3, 3]) @ gradient + 2 * offset - 1000
    filled = array > 2 * stored.min() - 999.5
    assert filled.sum() > 0.9 * stored.size * (7 / 6 if shifts is missing else 1)
    assert np.abs(array - expected)[filled].max() < 1.2  # stored intensities are rounded, and counted twice
    assert "resampled to a grid" in caplog.text


def test_repeated_slices_are_refused_under_resampling_too(tmp_path, voxels, right_handed):
    folder = write_slices(tmp_path / "case", voxels, right_handed, repeated(right_handed))
    with pytest.raises(InputError, match="remove the copies"):
        read_series(folder, policy="resample")


def change(tag, value, only=2):
    def edit(index, item):
        if index == only:
            setattr(item, tag, value) if value is not None else delattr(item, tag)

    return edit


def turn(index, item):
    if index == 2:
        item.ImageOrientationPatient = [1, 0, 0, 0, 0.6, 0.8]


def shrink(index, item):
    if index == 2:
        item.Rows, item.PixelData = item.Rows - 2, item.PixelData[: -4 * item.Columns]


def cut(index, item):
    if index == 2:
        item.PixelData = item.PixelData[:40]


BAD_HEADERS = {
    "two series": (change("SeriesInstanceUID", generate_uid()), r"holds 2 series \(of 5, 1 files\)"),
    "localizer": (change("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "orientation": (turn, "different orientation"),
    "skewed": (change("ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0]), "not two unit vectors"),
    "size": (shrink, "different size"),
    "spacing": (change("PixelSpacing", [0.7, 0.8]), "different size or pixel spacing"),
    "zero spacing": (change("PixelSpacing", [0, 0]), "not positive"),
    "colour": (change("SamplesPerPixel", 3), "colour"),
    "no position": (change("ImagePositionPatient", None), "ImagePositionPatient is missing or wrong"),
    "no spacing": (change("PixelSpacing", None), "PixelSpacing is missing or wrong"),
    "short position": (change("ImagePositionPatient", [1, 2]), "ImagePositionPatient is missing or wrong"),
    "short pixels": (cut, "cannot be decoded"),
    "no pixels": (change("PixelData", None), "cannot be decoded"),
    "multi-frame": (change("NumberOfFrames", 2), "multi-frame file without a position"),
}


@pytest.mark.parametrize(("edit", "words"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_series_that_are_not_one_volume_are_refused(tmp_path, voxels, right_handed, edit, words, caplog):
    folder = write_slices(tmp_path / "case", voxels, right_handed, edit=edit)
    with pytest.raises(InputError, match=words) as caught:
        read_series(folder)
    for text in (str(caught.value), caplog.text):
        assert not any(secret in text for secret in (*SECRETS, SERIES, str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_single_slices_empty_folders_and_broken_files_are_refused(tmp_path, voxels, right_handed):
    with pytest.raises(InputError, match="single slice"):
        read_series(write_slices(tmp_path / "one", voxels[..., :1], right_handed))
    (tmp_path / "none").mkdir()
    assert not is_dicom_folder(tmp_path / "none")
    with pytest.raises(InputError, match="holds no DICOM image"):
        read_series(tmp_path / "none")
    folder = write_slices(tmp_path / "case", voxels, right_handed)
    content = (folder / "003.dcm").read_bytes()
    (folder / "003.dcm").write_bytes(content[:100])
    with pytest.raises(InputError, match=r"003\.dcm: not a DICOM file, or cut short"):
        read_series(folder)
    (folder / "003.dcm").write_bytes(content[:-60])
    with pytest.raises(InputError, match=r"003\.dcm: its pixels cannot be decoded"):
        read_series(folder)


def write_enhanced(path, voxels, ras_from_voxel, frames=None):
    """Write one multi-frame file; slope and orientation are shared, positions are per frame."""
    lps_from_voxel = LPS @ ras_from_voxel
    spacing = np.linalg.norm(lps_from_voxel[:3, :3], axis=0)
    order = list(range(voxels.shape[2])) if frames is None else frames
    item = data_set(path, EnhancedCTImageStorage)
    item.Columns, item.Rows = voxels.shape[:2]
    item.NumberOfFrames = len(order)
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*lps_from_voxel[:3, 0] / spacing[0], *lps_from_voxel[:3, 1] / spacing[1]]
    measures.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    values.RescaleSlope, values.RescaleIntercept = 2, -1000
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    item.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [f"{number:.6f}" for number in (lps_from_voxel @ [0, 0, index, 1])[:3]]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    item.PerFrameFunctionalGroupsSequence = Sequence(groups)
    item.PixelData = np.ascontiguousarray(np.stack([voxels[..., index].T for index in order])).tobytes()
    item.save_as(path)


def test_enhanced_multi_frame(tmp_path, voxels, right_handed):
    write_enhanced(tmp_path / "a.dcm", voxels, right_handed, frames=[3, 0, 5, 1, 4, 2])
    array, ras_from_voxel = read_series(tmp_path)
    np.testing.assert_array_equal(array, 2.0 * voxels - 1000)
    np.testing.assert_allclose(ras_from_voxel, right_handed, atol=1e-5)


def test_enhanced_multi_frame_with_two_times_or_a_gap_is_refused(tmp_path, voxels, right_handed):
    write_enhanced(tmp_path / "a.dcm", voxels, right_handed, frames=[0, 1, 2, 0, 1, 2])
    with pytest.raises(InputError, match="3 slices lie where another one does"):
        read_series(tmp_path)
    write_enhanced(tmp_path / "a.dcm", voxels, right_handed, frames=[0, 1, 2, 4, 5])
    with pytest.raises(InputError, match="gap after slice 3"):
        read_series(tmp_path)


def test_values_that_are_no_numbers_are_refused_without_being_quoted(tmp_path, voxels, right_handed):
    folder = write_slices(tmp_path / "case", voxels, right_handed)
    path = folder / "002.dcm"
    content = path.read_bytes()
    spacing = b"\\".join(str(v).encode() for v in pydicom.dcmread(path).PixelSpacing)
    assert spacing in content
    path.write_bytes(content.replace(spacing, b"x" * len(spacing)))
    with pytest.raises(InputError) as caught:
        read_series(folder)
    assert "xx" not in str(caught.value)


@pytest.mark.parametrize("modality", ["CT", "MR_T1"])
def test_real_series_agree_with_simpleitk(real_data, modality):
    for folder in (real_data / "ctmr_sts_dicom").glob(f"*/{modality}"):
        array, ras_from_voxel = read_series(folder)
        theirs, their_affine = read_with_simpleitk(folder)
        np.testing.assert_array_equal(array, theirs)
        np.testing.assert_allclose(ras_from_voxel, their_affine, atol=1e-4)
