"""Every preparation on a tiny sample in the layout of its public data set."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from medrl.data.dataset import SECTIONS, dataset_labels, read_dataset
from medrl.data.landmarks import read_landmarks
from medrl.data.masks import read_mask_cases
from medrl.data.preparation import run_script
from medrl.data.write import write_image, write_markups, write_truth_csv
from medrl.types import InputError, Landmark

FIRST, SECOND = (2, 3, 4), (8, 3, 4)  # centres of the boxes of draw_case, voxels


def at(ras_from_voxel, voxel):
    return (ras_from_voxel @ [*voxel, 1])[:3]


def run(script, source, output, *more):
    return script.main(["--input", str(source), "--output", str(output), "--seed", "3", *more])


def cases_of(output):
    sections = json.loads((output / "dataset.json").read_text())
    return {case["case"]: case for section in SECTIONS if sections[section] for case in read_dataset(output, section)}


def test_make_phantoms(load_script, tmp_path):
    path = load_script("make_phantoms").main(["--output", str(tmp_path), "--count", "4", "--size", "12"])
    assert path == tmp_path / "dataset.json"
    assert [len(read_dataset(tmp_path, section)) for section in SECTIONS] == [2, 1, 1]


@pytest.fixture
def brains(tmp_path, draw_case):
    """Five cases <id>_T1_brain.nii.gz, <id>_labels.nii.gz with hippocampus right and left; id -> ras_from_voxel."""
    affines = {}
    (tmp_path / "in").mkdir()
    for number in range(5):
        image, labels, affines[f"10{number}"] = draw_case(number, (47, 48))
        write_image(tmp_path / "in" / f"10{number}_T1_brain.nii.gz", image, affines[f"10{number}"])
        write_image(tmp_path / "in" / f"10{number}_labels.nii.gz", labels, affines[f"10{number}"])
    return affines


SUFFIXES = ["--image-suffix", "_T1_brain", "--label-suffix", "_labels"]


def test_label_centroids(load_script, tmp_path, brains):
    run(load_script("prepare_label_centroids"), tmp_path / "in", tmp_path / "out", *SUFFIXES)
    assert dataset_labels(tmp_path / "out") == ["hippocampus_R", "hippocampus_L"]
    cases = cases_of(tmp_path / "out")
    assert list(map(len, (read_dataset(tmp_path / "out", section) for section in SECTIONS))) == [3, 1, 1]
    for name, affine in brains.items():
        points = read_landmarks(cases[f"{name}_T1_brain"]["landmarks"])
        np.testing.assert_allclose(points["hippocampus_R"], at(affine, FIRST), atol=1e-3)
        np.testing.assert_allclose(points["hippocampus_L"], at(affine, SECOND), atol=1e-3)
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())
    image = document["training"][0]["image"]
    assert image.startswith("../in/")  # nothing is copied, and the pair of folders can be moved
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "landmarks"]


def test_label_names_from_files_and_extremes(load_script, tmp_path, brains):
    script = load_script("prepare_label_centroids")
    (tmp_path / "names.json").write_text('{"48": "left box"}')
    (tmp_path / "names.csv").write_text("value,name\n48,left box\n")
    for name in ("names.json", "names.csv"):
        names = ["--names", str(tmp_path / name), "--kind", "extreme"]
        run(script, tmp_path / "in", tmp_path / name.replace(".", "_"), *SUFFIXES, *names)
        labels = dataset_labels(tmp_path / name.replace(".", "_"))
        sides = ("left", "right", "posterior", "anterior", "inferior", "superior")
        assert labels == [f"left box_{side}" for side in sides]
    (tmp_path / "names.json").write_text('{"47": "box", "48": "box"}')
    with pytest.raises(InputError, match="occurs twice"):
        run(script, tmp_path / "in", tmp_path / "out", *SUFFIXES, "--names", str(tmp_path / "names.json"))
    (tmp_path / "names.json").write_text('{"47": "box"')
    with pytest.raises(InputError, match=r"names\.json: expected JSON"):
        run(script, tmp_path / "in", tmp_path / "out", *SUFFIXES, "--names", str(tmp_path / "names.json"))


def test_missing_label_maps_and_unknown_numbers_are_refused(load_script, tmp_path, brains):
    script = load_script("prepare_label_centroids")
    (tmp_path / "names.json").write_text('{"7": "box"}')
    with pytest.raises(InputError, match=r"100_T1_brain\.nii\.gz: none of the landmarks was found"):
        run(script, tmp_path / "in", tmp_path / "out", *SUFFIXES, "--names", str(tmp_path / "names.json"))
    (tmp_path / "in" / "102_labels.nii.gz").unlink()
    with pytest.raises(InputError, match=r"102_T1_brain\.nii\.gz: has no label map"):
        run(script, tmp_path / "in", tmp_path / "out", *SUFFIXES)
    with pytest.raises(InputError, match="no image with landmarks"):
        run(script, tmp_path / "in", tmp_path / "out", "--image-suffix", "_T2")
    assert not (tmp_path / "out").exists()


FCSV = "# Markups fiducial file version = 4.6\n# CoordinateSystem = 0\n"
COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


@pytest.fixture
def bids(tmp_path, draw_case):
    """Three subjects as BIDS with derivatives, 32 points each, placed in RAS."""
    affines = {}
    for number in range(1, 4):
        name = f"sub-{number:03d}"
        image, _, affine = draw_case(number, (1, 2))
        scan = tmp_path / "in" / name / "anat" / f"{name}_T1w.nii.gz"
        write_image(scan, image, affine)
        write_image(scan.with_name(f"{name}_space-MNI_T1w.nii.gz"), image, np.eye(4))
        table = tmp_path / "in" / "derivatives" / "afids" / name / "anat" / f"{name}_space-T1w_desc-{{}}_afids.fcsv"
        table.parent.mkdir(parents=True)
        lines = []
        for label in range(1, 33):
            x, y, z = at(affine, (label / 4, 3, 4))
            lines.append(f"vtkMRMLMarkupsFiducialNode_{label},{x},{y},{z},0,0,0,1,1,1,1,{label},x,node\n")
        table.with_name(table.name.format("groundtruth")).write_text(FCSV + COLUMNS + "".join(lines))
        table.with_name(table.name.format("rater1")).write_text(FCSV + COLUMNS)
        affines[name] = affine
    return affines


def test_afids(load_script, tmp_path, bids):
    run(load_script("prepare_afids"), tmp_path / "in", tmp_path / "out")
    labels = dataset_labels(tmp_path / "out")
    assert len(labels) == 32
    assert labels[:2] == ["AC", "PC"]
    assert labels[11:14] == ["mammillary_body_R", "mammillary_body_L", "pineal_gland"]
    for name, affine in bids.items():
        points = read_landmarks(cases_of(tmp_path / "out")[f"{name}_T1w"]["landmarks"])
        np.testing.assert_allclose(points["PC"], at(affine, (0.5, 3, 4)), atol=1e-3)
        np.testing.assert_allclose(points["olfactory_sulcal_fundus_L"], at(affine, (8, 3, 4)), atol=1e-3)


def test_afids_faults_are_named(load_script, tmp_path, bids):
    script = load_script("prepare_afids")
    table = next((tmp_path / "in").rglob("sub-002*groundtruth*.fcsv"))
    text = table.read_text()
    table.write_text(text.replace(",32,x", ",33,x"))
    with pytest.raises(InputError, match="label 33; expected the AFIDs numbers 1 to 32"):
        run(script, tmp_path / "in", tmp_path / "out")
    table.write_text(text.replace("CoordinateSystem = 0", "CoordinateSystem = LPS"))
    with pytest.raises(InputError, match=r"sub-002_T1w\.nii\.gz: .* outside the image"):
        run(script, tmp_path / "in", tmp_path / "out")
    next((tmp_path / "in").rglob("sub-002_T1w.nii.gz")).unlink()
    with pytest.raises(InputError, match="sub-002: 0 T1w images and 1 AFIDs tables"):
        run(script, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("published", [True, False])
def test_mouse_skull(load_script, tmp_path, draw_case, published, caplog):
    affines = {}
    for number, strain in enumerate(("AKR_J", "A_J", "CBA.CaJ")):
        image, _, affine = affines[strain] = draw_case(number, (1, 2))
        points = {"1": at(affine, FIRST), "2": at(affine, SECOND)}
        if published:  # the marks at the ends of names are as in the public repository
            write_image(tmp_path / "in" / "targets" / f"{strain}_.nii.gz", image, affine)
            (tmp_path / "in" / "target_LMs").mkdir(exist_ok=True)
            end = "" if number else "_"
            marks = [Landmark(label, tuple(point)) for label, point in points.items()]
            write_markups(tmp_path / "in" / "target_LMs" / f"{strain}{end}.mrk.json", marks)
        else:
            write_image(tmp_path / "in" / f"{strain}.nii.gz", image, affine)
            write_truth_csv(tmp_path / "in" / f"{strain}_landmarks.csv", points)
    write_image(tmp_path / "in" / ("targets" if published else "") / "NU_J.nii.gz", image, affine)
    run(load_script("prepare_mouse_skull"), tmp_path / "in", tmp_path / "out")
    assert "NU_J.nii.gz: left out" in caplog.text
    cases = cases_of(tmp_path / "out")
    assert len(cases) == 3
    for strain, (_, _, affine) in affines.items():
        points = read_landmarks(cases[strain + "_" * published]["landmarks"])
        np.testing.assert_allclose(points["2"], at(affine, SECOND), atol=1e-3)


@pytest.mark.parametrize("suffix", ["Tr", ""])
def test_hippocampus(load_script, tmp_path, draw_case, suffix):
    affine = np.diag([-1.0, 1.5, 1.0, 1.0])
    for number in range(3):
        image, labels, _ = draw_case(number, (1, 2))
        write_image(tmp_path / "in" / f"images{suffix}" / f"hippocampus_{number:03d}.nii.gz", image, affine)
        write_image(tmp_path / "in" / f"labels{suffix}" / f"hippocampus_{number:03d}.nii.gz", labels, affine)
    (tmp_path / "in" / f"images{suffix}" / "._hippocampus_000.nii.gz").touch()  # the archive has such files
    run(load_script("prepare_hippocampus"), tmp_path / "in", tmp_path / "out")
    assert dataset_labels(tmp_path / "out") == ["head", "body", "anterior_tip", "posterior_tip"]
    for case in cases_of(tmp_path / "out").values():
        points = read_landmarks(case["landmarks"])
        np.testing.assert_allclose(points["head"], at(affine, FIRST))
        np.testing.assert_allclose(points["body"], at(affine, SECOND))
        np.testing.assert_allclose(points["anterior_tip"], at(affine, (2, 4, 4)))
        np.testing.assert_allclose(points["posterior_tip"], at(affine, (8, 2, 4)))


def test_hippocampus_landmarks_of_the_real_set_are_reproduced(load_script, tmp_path, real_data):
    source = real_data / "mri_hippocampus_msd"
    for kind in ("images", "labels"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir())[:12]:
            (tmp_path / "in" / kind / path.name).symlink_to(path)
    run(load_script("prepare_hippocampus"), tmp_path / "in", tmp_path / "out")
    for name, case in cases_of(tmp_path / "out").items():
        truth = read_landmarks(source / "landmarks" / f"{name}_landmarks.csv")
        points = read_landmarks(case["landmarks"])
        assert set(points) == set(truth)
        for label, point in truth.items():
            np.testing.assert_allclose(points[label], point, atol=1e-3)


def test_real_mouse_heads_make_a_data_set(load_script, tmp_path, real_data):
    (tmp_path / "in").mkdir()
    for path in sorted((real_data / "ct_mouse_skull").iterdir())[:6]:
        (tmp_path / "in" / path.name).symlink_to(path)
    run(load_script("prepare_mouse_skull"), tmp_path / "in", tmp_path / "out")
    assert len(dataset_labels(tmp_path / "out")) == 45
    assert len(cases_of(tmp_path / "out")) == 3


def test_a_script_ends_with_one_line(load_script, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: run(load_script("prepare_afids"), tmp_path / "none", tmp_path / "out"))
    assert str(caught.value) == "error: none: no such folder"


def test_subjects_are_never_divided(tmp_path, draw_case):
    from argparse import Namespace

    from medrl.data.preparation import prepare_dataset

    landmarks, subjects = {}, {}
    for number in range(12):
        image, _, affine = draw_case(number, (1, 2))
        path = tmp_path / f"scan{number}.nii.gz"
        write_image(path, image, affine)
        landmarks[path], subjects[path] = {"a": at(affine, FIRST)}, f"person{number // 2}"
    options = Namespace(input=tmp_path, output=tmp_path / os.curdir, validation=0.2, test=0.3, seed=0)
    prepare_dataset(options, "pairs", landmarks, subjects=subjects)
    parts = {section: {int(case["case"][4:]) // 2 for case in read_dataset(tmp_path, section)} for section in SECTIONS}
    assert {section: len(people) for section, people in parts.items()} == {"training": 3, "validation": 1, "test": 2}
    assert not parts["training"] & parts["test"]
    assert not parts["validation"] & (parts["training"] | parts["test"])


def masks_of(output):
    sections = json.loads((output / "dataset.json").read_text())
    return {
        case.name: (section, case)
        for section in SECTIONS
        if sections[section]
        for case in read_mask_cases(output, section)
    }


SPLIT = ["--validation", "0.25", "--test", "0.25"]


def test_make_lesions(load_script, tmp_path):
    script = load_script("make_phantoms")
    options = ["--output", str(tmp_path), "--count", "4", "--size", "12"]
    path = script.main([*options, "--answer", "mask", "--modality", "both"])
    assert path == tmp_path / "dataset.json"
    assert sorted(section for section, _ in masks_of(tmp_path).values()) == [
        "test",
        "training",
        "training",
        "validation",
    ]
    with pytest.raises(InputError, match="--modality both"):
        script.main([*options, "--modality", "both"])


@pytest.mark.parametrize("layout", ["Tr", ""])
@pytest.mark.parametrize("kind", ["hippocampus", "flat"])
def test_masks_of_flat_sets(load_script, tmp_path, draw_case, layout, kind):
    for number in range(6):
        image, labels, affine = draw_case(number, (1, 2))
        write_image(tmp_path / "in" / f"images{layout}" / f"case_{number}.nii.gz", image, affine)
        write_image(tmp_path / "in" / f"labels{layout}" / f"case_{number}.nii.gz", labels, affine)
    run(load_script("prepare_masks"), tmp_path / "in", tmp_path / "out", "--set", kind, *SPLIT)
    cases = masks_of(tmp_path / "out")
    assert len(cases) == 6
    assert {section for section, _ in cases.values()} == set(SECTIONS)
    for name, (_, case) in cases.items():
        image, labels, affine = draw_case(int(name[-1]), (1, 2))
        np.testing.assert_array_equal(case.image[0].numpy(), image)
        np.testing.assert_array_equal(case.mask[0].numpy(), labels > 0)
        np.testing.assert_allclose(case.image.affine, affine, atol=1e-4)


def test_masks_of_patients_stay_together_over_modalities(load_script, tmp_path, draw_case):
    script = load_script("prepare_masks")
    for number in range(12):
        for image_name, label_name in (("CT", "CT_mask"), ("MR_T1", "MR_T1_mask"), ("FLAIR", "seg")):
            image, labels, affine = draw_case(number, (1, 4))
            write_image(tmp_path / "in" / f"P{number}" / f"{image_name}.nii.gz", image, affine)
            write_image(tmp_path / "in" / f"P{number}" / f"{label_name}.nii.gz", labels, affine)
    (tmp_path / "in" / "P2" / "MR_T1.nii.gz").unlink()  # one modality is missing: the others keep their sections
    sections = {}
    for kind, ending in (("sarcoma_ct", "CT"), ("sarcoma_mr", "MR_T1"), ("brats", "FLAIR")):
        run(script, tmp_path / "in", tmp_path / kind, "--set", kind, *SPLIT)
        cases = masks_of(tmp_path / kind)
        assert {f"{case.subject}_{ending}" for _, case in cases.values()} == set(cases)
        sections[kind] = {case.subject: section for section, case in cases.values()}
    assert len(sections["sarcoma_mr"]) == 11
    assert sections["sarcoma_ct"] == sections["brats"]
    assert sections["sarcoma_mr"].items() <= sections["sarcoma_ct"].items()


def test_masks_are_cropped_on_request(load_script, tmp_path, draw_case):
    for number in range(3):
        image, labels, affine = draw_case(number, (1, 0))
        write_image(tmp_path / "in" / "images" / f"{number}.nrrd", image, affine)
        write_image(tmp_path / "in" / "labels" / f"{number}.nii.gz", labels, affine)
    run(load_script("prepare_masks"), tmp_path / "in", tmp_path / "out", "--set", "flat", "--crop-mm", "1", *SPLIT)
    for name, (_, case) in masks_of(tmp_path / "out").items():
        _, labels, affine = draw_case(int(name), (1, 0))
        assert case.image.shape == (1, 5, 5, 5)
        centre = case.mask[0].nonzero().double().mean(0)
        place = case.mask.affine[:3, :3] @ centre + case.mask.affine[:3, 3]
        np.testing.assert_allclose(place, at(affine, FIRST), atol=1e-3)


def test_mask_faults_are_named(load_script, tmp_path, draw_case):
    script = load_script("prepare_masks")
    image, labels, affine = draw_case(0, (1, 2))
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="in: no image found"):
        run(script, tmp_path / "in", tmp_path / "out", "--set", "brats")
    for name in ("a", "b", "c"):
        write_image(tmp_path / "in" / name / "FLAIR.nii.gz", image, affine)
        write_image(tmp_path / "in" / name / "seg.nii.gz", labels, affine)
    write_image(tmp_path / "in" / "b" / "seg.nii.gz", labels[:-1], affine)
    with pytest.raises(InputError, match=r"seg\.nii\.gz: has 11 x 10 x 9 voxels and its image 12 x 10 x 9"):
        run(script, tmp_path / "in", tmp_path / "out", "--set", "brats", *SPLIT)
    (tmp_path / "in" / "b" / "seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"FLAIR\.nii\.gz of b: has no mask"):
        run(script, tmp_path / "in", tmp_path / "out", "--set", "brats", *SPLIT)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_masks_of_the_real_sets_are_found(load_script, tmp_path, real_data):
    script = load_script("prepare_masks")
    for kind, folder, count in (("brats", "mri_brats2013", 4), ("sarcoma_ct", "ctmr_sts", 36)):
        pairs = script.find_pairs(real_data / folder, kind)
        assert len(pairs) == count
        assert all(files.label.is_file() for files in pairs.values())
