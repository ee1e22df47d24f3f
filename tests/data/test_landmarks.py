from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.landmarks import check_landmarks_inside, landmarks_from_labels, read_landmarks
from medrl.data.phantoms import random_affine
from medrl.types import InputError


def markups(system="LPS", points=None, **changes):
    if points is None:
        points = [{"id": "1", "label": "AC", "position": [1.0, 2.0, 3.0], "positionStatus": "defined"}]
    return {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": points, **changes}]}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("system", "ras"), [("LPS", [-1, -2, 3]), ("1", [-1, -2, 3]), ("RAS", [1, 2, 3]), ("0", [1, 2, 3]), (0, [1, 2, 3])]
)
def test_markups_coordinate_systems(tmp_path, system, ras):
    points = read_landmarks(write(tmp_path / "a.mrk.json", markups(system)))
    np.testing.assert_array_equal(points["AC"], ras)


def test_markups_without_a_coordinate_system_are_lps(tmp_path):
    document = markups()
    del document["markups"][0]["coordinateSystem"]
    np.testing.assert_array_equal(read_landmarks(write(tmp_path / "a.mrk.json", document))["AC"], [-1, -2, 3])


def test_points_that_are_not_placed_are_left_out(tmp_path):
    points = [
        {"label": "a", "position": [0, 0, 0]},
        {"label": "b", "positionStatus": "missing"},
        {"label": "c", "position": "", "positionStatus": "undefined"},
        {"label": "d", "position": [9, 9, 9], "positionStatus": "preview"},
    ]
    assert list(read_landmarks(write(tmp_path / "a.mrk.json", markups(points=points)))) == ["a"]


@pytest.mark.parametrize("system", ["LPS", "1", "RAS", "0"])
def test_fcsv(tmp_path, system):
    text = (
        f"# Markups fiducial file version = 4.6\n# CoordinateSystem = {system}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        'vtkMRMLMarkupsFiducialNode_1,-0.5,3.25,-1e1,0,0,0,1,1,1,0,"AC, front",anterior,\n'
        "vtkMRMLMarkupsFiducialNode_2,1,2,3,0,0,0,1,1,1,0,PC,,,2,0\n"
    )
    points = read_landmarks(write(tmp_path / "a.fcsv", text))
    sign = np.array([-1, -1, 1]) if system in ("LPS", "1") else np.ones(3)
    np.testing.assert_array_equal(points["AC, front"], sign * [-0.5, 3.25, -10])
    np.testing.assert_array_equal(points["PC"], sign * [1, 2, 3])


def test_table_in_either_system_with_absent_points(tmp_path):
    lps = "\ufefflabel,i,lps_x,lps_y,lps_z\nAC,7,1,2,3\nPC,8,,,\n"
    ras = "label, ras_x, ras_y, ras_z\nAC,-1,-2,3\n"
    for name, text in (("lps.csv", lps), ("ras.csv", ras)):
        points = read_landmarks(write(tmp_path / name, text))
        assert list(points) == ["AC"]
        np.testing.assert_array_equal(points["AC"], [-1, -2, 3])


FCSV = "# CoordinateSystem = {}\n1,{},0,0,0,0,0,1,1,1,0,AC,,\n"
TWICE = [{"label": "AC", "position": [0, 0, 0]}] * 2
WRONG = {
    "no json.mrk.json": ("{", "not a Slicer Markups file"),
    "a list.mrk.json": ("[]", "not a Slicer Markups file"),
    "system.mrk.json": (markups("IJK"), "coordinate system IJK"),
    "unit.mrk.json": (markups(coordinateUnits="inch"), "expected mm"),
    "type.mrk.json": (markups(type="ROI"), "type ROI"),
    "twice.mrk.json": (markups(points=TWICE), "AC occurs twice"),
    "nan.mrk.json": (markups(points=[{"label": "AC", "position": [0, float("nan"), 0]}]), "AC is not three finite"),
    "short.mrk.json": (markups(points=[{"label": "AC", "position": [0, 1]}]), "AC is not three finite"),
    "none.mrk.json": (markups(points=[{"label": "AC"}]), "AC is not three finite"),
    "nameless.mrk.json": (markups(points=[{"position": [0, 0, 0]}]), "has no label"),
    "system.fcsv": (FCSV.format("2", "0"), "coordinate system 2"),
    "silent.fcsv": ("1,0,0,0,0,0,0,1,1,1,0,AC,,\n", "no CoordinateSystem"),
    "word.fcsv": (FCSV.format("LPS", "x"), "AC is not three finite"),
    "columns.csv": ("label,x,y,z\nAC,1,2,3\n", "expected the columns"),
    "both.csv": ("label,lps_x,lps_y,lps_z,ras_x,ras_y,ras_z\nAC,1,2,3,1,2,3\n", "expected the columns"),
    "half.csv": ("label,lps_x,lps_y,lps_z\nAC,1,,3\n", "AC is not three finite"),
    "comma.csv": ('label,lps_x,lps_y,lps_z\nAC,"1,5",2,3\n', "AC is not three finite"),
    "infinite.csv": ("label,lps_x,lps_y,lps_z\nAC,inf,2,3\n", "AC is not three finite"),
    "twice.csv": ("label,lps_x,lps_y,lps_z\nAC,1,2,3\nAC,1,2,3\n", "AC occurs twice"),
    "cases.csv": ("case,label,lps_x,lps_y,lps_z\na,AC,1,2,3\nb,PC,1,2,3\n", "several cases"),
    "empty.csv": ("", "expected the columns"),
    "other.txt": ("", "not a landmark file"),
}


@pytest.mark.parametrize(("name", "content", "words"), [(k, *v) for k, v in WRONG.items()], ids=WRONG)
def test_wrong_files_are_refused_in_one_line(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(write(tmp_path / name, content))
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv: no such"):
        read_landmarks(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"b\.csv: cannot be read"):
        read_landmarks(tmp_path / "b.csv")


def label_map(labels, affine):
    return MetaTensor(torch.as_tensor(labels)[None], affine=torch.as_tensor(affine))


def test_centroids_are_in_patient_space(affine):
    labels = np.zeros((12, 10, 8), np.int32)
    labels[2:5, 3:8, 1:3] = 47  # centre at voxel 3, 5, 1.5
    points = landmarks_from_labels(label_map(labels, affine), {47: "hippocampus_R", 48: "hippocampus_L"})
    assert list(points) == ["hippocampus_R"]
    np.testing.assert_allclose(points["hippocampus_R"], (affine @ [3, 5, 1.5, 1])[:3], atol=1e-9)


def test_extremes_of_an_aligned_box_are_the_centres_of_its_faces():
    labels = np.zeros((12, 10, 8), np.int32)
    labels[2:5, 3:8, 1:3] = 1
    affine = np.diag([-2.0, -1.0, 3.0, 1.0])  # LPS storage: the first voxel is the rightmost
    points = landmarks_from_labels(label_map(labels, affine), {1: "box"}, kind="extreme")
    np.testing.assert_allclose(points["box_right"], [-4, -5, 4.5])
    np.testing.assert_allclose(points["box_left"], [-8, -5, 4.5])
    np.testing.assert_allclose(points["box_anterior"], [-6, -3, 4.5])
    np.testing.assert_allclose(points["box_posterior"], [-6, -7, 4.5])
    np.testing.assert_allclose(points["box_superior"], [-6, -5, 6])
    np.testing.assert_allclose(points["box_inferior"], [-6, -5, 3])
    assert len(points) == 6


def test_extremes_do_not_depend_on_the_orientation_of_the_grid(generator):
    """A world-space ball on six oblique grids: its poles stay put within a voxel."""
    for _ in range(6):
        affine = random_affine(generator, (1.0, 1.2, 0.8), oblique_degrees=30.0, origin_mm=0.0)
        middle = affine[:3, :3] @ [19.5, 19.5, 19.5] + affine[:3, 3]
        grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
        labels = (np.linalg.norm(grid - middle, axis=-1) < 12).astype(np.int32)
        points = landmarks_from_labels(label_map(labels, affine), {1: "ball"}, kind="extreme")
        for axis, names in enumerate((("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))):
            for sign, name in zip((-12, 12), names, strict=True):
                pole = middle + sign * np.eye(3)[axis]
                assert abs(points[f"ball_{name}"][axis] - pole[axis]) < 1.2
                assert np.linalg.norm(points[f"ball_{name}"] - pole) < 3.0


def test_points_up_to_half_a_voxel_outside_belong_to_the_volume(affine):
    shape = (10, 20, 30)
    border = {"first": (affine @ [-0.5, 0, 0, 1])[:3], "last": (affine @ [9, 19.5, 29.5, 1])[:3]}
    check_landmarks_inside(border, affine, shape, "a.csv")
    spacing_mm = np.linalg.norm(affine[:3, 1])
    points = border | {"near": (affine @ [0, 20.5, 0, 1])[:3], "far": (affine @ [0, 22.5, 0, 1])[:3]}
    with pytest.raises(InputError, match=f"a.csv: 2 of 4 .* far by {3 * spacing_mm:.1f} mm"):
        check_landmarks_inside(points, affine, shape, "a.csv")


def test_centroids_reproduce_the_published_tables_of_real_brains(real_data):
    from medrl.data.read import read_image, read_label_map

    names = {47: "hippocampus_R", 48: "hippocampus_L", 4: "third_ventricle", 35: "brain_stem"}
    folder = real_data / "mri_brain_malf"
    for table in sorted(folder.glob("*_landmarks.csv"))[:3]:
        truth = read_landmarks(table)
        label_file = table.with_name(table.name.replace("_landmarks.csv", "_labels.nii.gz"))
        points = landmarks_from_labels(read_label_map(label_file), names)
        for name, point in points.items():
            np.testing.assert_allclose(point, truth[name], atol=2e-3)
        image = read_image(table.with_name(table.name.replace("_landmarks.csv", "_T1_brain.nii.gz")))
        check_landmarks_inside(truth, image.affine.numpy(), image.shape[1:], table.name)


def test_voxel_columns_of_a_real_table_agree_with_our_geometry(real_data):
    from medrl.data.read import read_image

    folder = real_data / "ct_mouse_skull"
    table = sorted(folder.glob("*_landmarks.csv"))[0]
    affine = read_image(table.with_name(table.name.replace("_landmarks.csv", ".nii.gz"))).affine.numpy()
    points = read_landmarks(table)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            voxel = [float(row[axis]) for axis in "ijk"]
            np.testing.assert_allclose((affine @ [*voxel, 1])[:3], points[row["label"]], atol=1e-3)
