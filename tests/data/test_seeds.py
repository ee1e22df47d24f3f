"""Clicks in files and in volumes: order, kind and place survive, wrong ones are told in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medrl.data.landmarks import read_landmarks
from medrl.data.seeds import (
    check_seeds,
    join_seeds,
    make_seeds,
    read_seeds,
    seed_voxels,
    seeds_of_case,
    write_seeds,
)
from medrl.types import InputError

SHAPE = (20, 16, 12)


def image(affine, shape=SHAPE):
    return MetaTensor(torch.zeros(1, *shape), affine=torch.as_tensor(affine))


def at(affine, *voxels):
    return np.array([(affine @ [*voxel, 1])[:3] for voxel in voxels])


def markups(path, *lists, **changes):
    """Write lists of (name, [(label, position), ...]) as Slicer does."""
    nodes = [
        {"type": "Fiducial", "coordinateSystem": "LPS", "name": name}
        | {"controlPoints": [{"label": label, "position": position} for label, position in points]}
        | changes
        for name, points in lists
    ]
    path.write_text(json.dumps({"markups": nodes}))
    return path


def test_round_trip_keeps_order_and_kind(tmp_path):
    seeds = make_seeds([[1.5, -2.0, 30.25], [4.0, 5.0, 6.0], [-7.0, 8.0, 9.0]], [True, False, True])
    write_seeds(tmp_path / "a_seeds.mrk.json", seeds, user_count=2)
    back = read_seeds(tmp_path / "a_seeds.mrk.json")
    torch.testing.assert_close(back.position_ras, seeds.position_ras)
    assert back.foreground.tolist() == [True, False, True]
    (markup,) = json.loads((tmp_path / "a_seeds.mrk.json").read_text())["markups"]
    assert markup["coordinateSystem"] == "LPS"
    points = markup["controlPoints"]
    assert points[0]["position"] == [-1.5, 2.0, 30.25]
    assert [point["label"] for point in points] == ["foreground", "background", "foreground"]
    assert [point["description"] for point in points] == ["user", "user", "agent, step 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["a_seeds.mrk.json"]


def test_no_seeds_are_a_file_too(tmp_path):
    write_seeds(tmp_path / "a_seeds.mrk.json", make_seeds())
    back = read_seeds(tmp_path / "a_seeds.mrk.json")
    assert back.position_ras.shape == (0, 3)
    assert back.foreground.shape == (0,)


@pytest.mark.parametrize(
    ("lists", "kinds"),
    [
        ([("F", [("Foreground", [1, 2, 3]), ("BACKGROUND-2", [4, 5, 6])])], [True, False]),
        ([("x", [("fg", [1, 2, 3]), ("bg_1", [4, 5, 6]), ("F-3", [0, 0, 0])])], [True, False, True]),
        (
            [("foreground", [("1", [1, 2, 3])]), ("background", [("2", [4, 5, 6]), ("", [0, 0, 0])])],
            [True, False, False],
        ),
        ([("F", [("1", [1, 2, 3])]), ("B", [("1", [4, 5, 6])])], [True, False]),
        ([("background", [("foreground", [1, 2, 3])])], [True]),  # the label of a point goes before its list
    ],
)
def test_labels_and_list_names_tell_the_kind(tmp_path, lists, kinds):
    seeds = read_seeds(markups(tmp_path / "s.mrk.json", *lists))
    assert seeds.foreground.tolist() == kinds
    assert seeds.position_ras[0].tolist() == [-1.0, -2.0, 3.0]


def test_ras_files_and_points_that_were_not_placed(tmp_path):
    path = markups(tmp_path / "s.mrk.json", ("F", [("fg", [1, 2, 3]), ("bg", [4, 5, 6])]), coordinateSystem="RAS")
    assert read_seeds(path).position_ras.tolist() == [[1, 2, 3], [4, 5, 6]]
    document = json.loads(path.read_text())
    document["markups"][0]["controlPoints"][0]["positionStatus"] = "undefined"
    path.write_text(json.dumps(document))
    assert read_seeds(path).foreground.tolist() == [False]


@pytest.mark.parametrize(
    ("lists", "changes", "words"),
    [
        ([("Fiducials", [("1", [1, 2, 3])])], {}, "point 1 is labelled neither foreground nor background"),
        ([("x", [("fg", [1, 2, 3]), ("", [1, 2, 3])])], {}, "point 2 is labelled neither"),
        ([("x", [("fg", [1, 2])])], {}, "position of seed 1 is not three finite numbers"),
        ([("x", [("fg", [1, 2, "NaN"])])], {}, "position of seed 1 is not three finite numbers"),
        ([("x", [("fg", [1, 2, 3])])], {"coordinateSystem": "XYZ"}, "coordinate system XYZ; expected LPS or RAS"),
        ([("x", [("fg", [1, 2, 3])])], {"type": "Curve"}, "expected Fiducial points"),
        ([("x", [("fg", [1, 2, 3])])], {"coordinateUnits": "cm"}, "expected mm"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, lists, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        read_seeds(markups(tmp_path / "s.mrk.json", *lists, **changes))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("s.mrk.json: ")
    assert str(tmp_path) not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"s\.mrk\.json: no such"):
        read_seeds(tmp_path / "s.mrk.json")
    (tmp_path / "s.mrk.json").write_text("[1, 2")
    with pytest.raises(InputError, match="not a Slicer Markups file"):
        read_seeds(tmp_path / "s.mrk.json")


def test_seeds_in_their_image_are_fine(affine):
    voxels = [(0, 0, 0), (19, 15, 11), (5.4, 6.3, 7.2), (-0.49, 3, 3)]
    seeds = make_seeds(at(affine, *voxels), [True, False, True, True])
    check_seeds(seeds, image(affine), "a")
    assert seed_voxels(seeds, image(affine)).tolist() == [[0, 0, 0], [19, 15, 11], [5, 6, 7], [0, 3, 3]]
    check_seeds(make_seeds(at(affine, (3, 3, 3), (4, 4, 4)), [False, False]), image(affine), "a")  # background only
    check_seeds(make_seeds(), image(affine), "a")
    twice = make_seeds(at(affine, (3, 3, 3), (3.2, 3, 3)), [True, True])
    check_seeds(twice, image(affine), "a")  # the same kind twice says nothing wrong
    check_seeds(make_seeds(at(affine, (3, 3, 0)), [True]), image(affine, (20, 16, 1)), "a")


def test_a_click_outside_is_named_with_its_distance(affine):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    seeds = make_seeds(at(affine, (3, 3, 3), (3, 21.5, 3)), [True, False])
    with pytest.raises(InputError, match=rf"a\.mrk\.json: seed 2 lies {6 * spacing[1]:.1f} mm outside the image"):
        check_seeds(seeds, image(affine), "a.mrk.json")
    with pytest.raises(InputError, match="seed 1 lies"):
        check_seeds(make_seeds([[np.nan, 0, 0]], [True]), image(affine), "a")


def test_a_click_in_both_kinds_is_refused(affine):
    seeds = make_seeds(at(affine, (9, 9, 9), (3, 3, 3), (3.3, 2.8, 3)), [True, True, False])
    with pytest.raises(InputError, match="a: seeds 2 and 3 are foreground and background in one voxel"):
        check_seeds(seeds, image(affine), "a")


def test_the_seeds_of_a_case(tmp_path):
    assert seeds_of_case(tmp_path / "a.b.nii.gz") is None
    write_seeds(tmp_path / "a.b_seeds.mrk.json", make_seeds())
    assert seeds_of_case(tmp_path / "a.b.nii.gz") == tmp_path / "a.b_seeds.mrk.json"
    assert seeds_of_case(tmp_path / "a.b") == tmp_path / "a.b_seeds.mrk.json"  # a DICOM folder


def test_user_and_agent_are_joined():
    joined = join_seeds(make_seeds([[1, 2, 3]], [True]), make_seeds(), make_seeds([[4, 5, 6]], [False]))
    assert joined.position_ras.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert joined.foreground.tolist() == [True, False]
    with pytest.raises(ValueError, match="1 points and 2 labels"):
        make_seeds([[1, 2, 3]], [True, False])


def test_landmark_files_are_read_as_before(tmp_path):
    """Seeds share the reader of Markups files with landmarks, for which a label must be unique."""
    path = markups(tmp_path / "s.mrk.json", ("x", [("fg", [1, 2, 3]), ("fg", [4, 5, 6])]))
    with pytest.raises(InputError, match="label fg occurs twice"):
        read_landmarks(path)
