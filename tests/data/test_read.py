from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from medrl.data.read import case_name, find_cases, read_image, read_label_map
from medrl.data.write import write_image
from medrl.types import InputError

SHAPE = (7, 9, 11)


@pytest.fixture
def voxels(generator):
    return generator.normal(size=SHAPE).astype(np.float32)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_every_format_gives_the_same_voxels_and_geometry(tmp_path, voxels, suffix, affine):
    path = tmp_path / f"case{suffix}"
    write_image(path, voxels, affine)
    image = read_image(path)
    assert image.shape == (1, *SHAPE)
    assert image.dtype == torch.float32
    assert image.affine.dtype == torch.float64
    np.testing.assert_array_equal(image.numpy()[0], voxels)
    np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-6)


def test_a_known_point_lies_at_the_same_place_for_simpleitk(tmp_path, voxels, affine):
    """The geometry of the files is checked by a reader that is not ours."""
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write_image(tmp_path / f"case{suffix}", voxels, affine)
        itk = SimpleITK.ReadImage(str(tmp_path / f"case{suffix}"))
        lps = np.array(itk.TransformIndexToPhysicalPoint((2, 3, 4)))
        ras = affine @ [2, 3, 4, 1]
        np.testing.assert_allclose(lps * [-1, -1, 1], ras[:3], atol=1e-4)
        assert itk[2, 3, 4] == pytest.approx(voxels[2, 3, 4])


def test_header_with_raw_file_is_read(tmp_path, voxels):
    itk = SimpleITK.GetImageFromArray(voxels.T)
    itk.SetOrigin((10.0, 20.0, 30.0))
    for suffix in (".mhd", ".nhdr"):
        SimpleITK.WriteImage(itk, str(tmp_path / f"case{suffix}"))
        image = read_image(tmp_path / f"case{suffix}")
        np.testing.assert_array_equal(image.numpy()[0], voxels)
        np.testing.assert_allclose(image.affine[:3, 3].numpy(), [-10, -20, 30])


def test_scale_factor_of_the_header_is_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "case.nii")
    raw = nibabel.load(tmp_path / "case.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "case.nii").numpy()[0], raw.get_fdata())


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_units_of_the_header_are_turned_into_mm(tmp_path, voxels, affine, unit, factor):
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "case.nii")
    np.testing.assert_allclose(read_image(tmp_path / "case.nii").affine[:3].numpy(), factor * affine[:3], rtol=1e-6)


def test_trailing_axes_of_one_are_dropped(tmp_path, voxels):
    image = read_image(save_nifti(tmp_path / "case.nii", voxels[..., None, None], np.eye(4)))
    assert image.shape == (1, *SHAPE)
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(voxels.T)])
    SimpleITK.WriteImage(four, str(tmp_path / "case.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "case.nrrd").numpy()[0], voxels)


def test_missing_geometry_is_taken_as_nibabel_gives_it(tmp_path, voxels):
    image = nibabel.Nifti1Image(voxels, None)
    image.header.set_zooms((1.0, 2.0, 3.0))
    nibabel.save(image, tmp_path / "case.nii")
    affine = read_image(tmp_path / "case.nii").affine.numpy()
    np.testing.assert_array_equal(affine, nibabel.load(tmp_path / "case.nii").affine)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [1, 2, 3])


def test_metadata_is_the_same_for_every_format_and_holds_geometry_only(tmp_path, voxels, affine):
    keys = []
    for suffix in (".nii", ".mha"):
        write_image(tmp_path / f"case{suffix}", voxels, affine)
        keys.append({str(key) for key in read_image(tmp_path / f"case{suffix}").meta})
    assert keys[0] == keys[1] == {
        "affine", "original_affine", "spatial_shape", "space", "filename_or_obj", "original_channel_dim",
    }  # fmt: skip


SHEARED = np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
BAD_VOXELS = {
    "nan": (np.where(np.arange(8).reshape(2, 2, 2) == 3, np.nan, 1.0).astype(np.float32), np.eye(4), "NaN"),
    "infinite": (np.full((2, 2, 2), np.inf, np.float32), np.eye(4), "infinite"),
    "constant": (np.full(SHAPE, 7, np.int16), np.eye(4), "same value"),
    "2d": (np.eye(5, dtype=np.float32), np.eye(4), "3D"),
    "one slice": (np.eye(5, dtype=np.float32)[..., None], np.eye(4), "5 x 5 x 1"),
    "4d": (np.zeros((4, 4, 4, 3), np.float32), np.eye(4), "4 x 4 x 4 x 3"),
    "complex": (np.ones((4, 4, 4), np.complex64), np.eye(4), "complex"),
    "sheared": (np.arange(8, dtype=np.float32).reshape(2, 2, 2), SHEARED, "sheared"),
    "singular": (np.arange(8, dtype=np.float32).reshape(2, 2, 2), np.diag([1.0, 0, 1, 1]), "singular"),
}


@pytest.mark.parametrize(("voxels", "sform", "words"), BAD_VOXELS.values(), ids=BAD_VOXELS)
def test_wrong_images_are_refused_in_one_line(tmp_path, voxels, sform, words):
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.set_sform(sform, code=1)
    nibabel.save(image, tmp_path / "case.nii.gz")
    with pytest.raises(InputError, match=words) as caught:
        read_image(tmp_path / "case.nii.gz")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("case.nii.gz: ")
    assert str(tmp_path) not in message


def test_sheared_nrrd_is_refused(tmp_path, voxels):
    header = (
        "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 7 9 11\n"
        "space directions: (1,0,0) (0.2,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (0,0,0)\n\n"
    )
    (tmp_path / "case.nrrd").write_bytes(header.encode() + voxels.T.tobytes())
    with pytest.raises(InputError, match="sheared"):
        read_image(tmp_path / "case.nrrd")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_truncated_files_are_refused(tmp_path, voxels, suffix, share):
    path = tmp_path / f"case{suffix}"
    write_image(path, voxels, np.eye(4))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"case{suffix}: cannot be read"):
        read_image(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"case\.nii: no such file"):
        read_image(tmp_path / "case.nii")
    (tmp_path / "case.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="not an image file"):
        read_image(tmp_path / "case.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no DICOM image"):
        read_image(tmp_path / "empty")


def test_colour_images_are_refused(tmp_path):
    SimpleITK.WriteImage(SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "case.mha"))
    with pytest.raises(InputError, match="several values a voxel"):
        read_image(tmp_path / "case.mha")


def test_label_map(tmp_path, affine):
    labels = np.zeros(SHAPE, np.uint16)
    labels[2, 3, 4] = 14175
    write_image(tmp_path / "a.nii.gz", labels, affine)
    read = read_label_map(tmp_path / "a.nii.gz")
    assert read.dtype == torch.int32
    np.testing.assert_array_equal(read.numpy()[0], labels)
    np.testing.assert_allclose(read.affine.numpy(), affine, atol=1e-6)
    write_image(tmp_path / "full.nii.gz", np.ones(SHAPE, np.uint8), np.eye(4))
    assert read_label_map(tmp_path / "full.nii.gz").sum() == np.prod(SHAPE)


def test_wrong_label_maps_are_refused(tmp_path):
    write_image(tmp_path / "empty.nrrd", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(InputError, match=r"empty\.nrrd: the label map is empty"):
        read_label_map(tmp_path / "empty.nrrd")
    write_image(tmp_path / "image.nii", np.full(SHAPE, 0.5, np.float32), np.eye(4))
    with pytest.raises(InputError, match="whole numbers"):
        read_label_map(tmp_path / "image.nii")


def test_case_name():
    assert case_name("a/b/pat.01_T1.nii.gz") == "pat.01_T1"
    assert case_name(Path("PAT.NRRD")) == "PAT"
    assert case_name("folder.of.slices") == "folder.of.slices"


def test_find_cases_is_sorted_and_leaves_nothing_out_silently(tmp_path, caplog):
    for name in ("b.nii.gz", "a.mha", "a_seg.nii.gz", "notes.txt", "b_landmarks.csv", ".hidden.nii", "x.raw"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "texts").mkdir()
    found = find_cases(tmp_path)
    assert list(found.items()) == [
        ("a", tmp_path / "a.mha"),
        ("a_seg", tmp_path / "a_seg.nii.gz"),
        ("b", tmp_path / "b.nii.gz"),
        ("c", tmp_path / "c"),
    ]
    assert "1 sub-folders without DICOM" in caplog.text


def test_a_folder_of_slices_is_one_case(tmp_path):
    (tmp_path / "0.dcm").write_bytes(bytes(128) + b"DICM")
    assert find_cases(tmp_path) == {tmp_path.name: tmp_path}


def test_find_cases_refuses_an_empty_folder_and_equal_case_ids(tmp_path):
    with pytest.raises(InputError, match="holds no image"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "none")
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(InputError, match=r"a\.nii\.gz and a\.nrrd: two inputs with one case id"):
        find_cases(tmp_path)
