"""Registration of a folder of good and bad pairs by an inferer that knows the answer."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from pair_answers import KnownInferer, write_bundle

import medrl
from medrl.cli import main
from medrl.data.itk_transforms import read_transform
from medrl.data.misalignment import LEVELS, registration_error_mm
from medrl.data.pair_phantoms import pair_phantom, write_pair_phantoms
from medrl.data.read import read_image
from medrl.data.write import write_image
from medrl.errors import input_error
from medrl.geometry.transforms import invert, transform_points
from medrl.inference.pair_prediction import list_misaligned_cases
from medrl.inference.registration_transforms import LoadPaird, Misalignd, SaveRegistrationd, move_image
from medrl.types import NOT_CONVERGED, InputError, Registration

SHIFT_MM = (3.0, -2.0, 1.0)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "known_registration")


@pytest.fixture
def pairs(tmp_path, generator):
    """Two good cases, one that does not converge, one without a moving image, one of a few slices."""
    folder = tmp_path / "Planted^Name"
    for name in ("good", "other", "doubtful"):
        pair = pair_phantom(generator, shape=(18, 16, 17), spacing_mm=9.0)
        pair.mr[0, 0, 0] = int(name == "doubtful")
        write_image(folder / name / "fixed.nii.gz", pair.ct, pair.ct_affine)
        write_image(folder / name / "moving.nrrd", pair.mr, pair.mr_affine)
    write_image(folder / "lonely" / "fixed.nii.gz", pair.ct, pair.ct_affine)
    write_image(folder / "slab" / "fixed.nii.gz", pair.ct, pair.ct_affine)
    write_image(folder / "slab" / "moving.nii.gz", pair.mr[:, :, :4], pair.mr_affine)
    return folder


def test_a_folder(bundle, pairs, tmp_path, caplog):
    loaded = medrl.load(bundle, "cpu")
    with caplog.at_level(logging.INFO, "medrl"):
        predictor = loaded.predict_folder(pairs, tmp_path / "out", pictures=True)
    report = json.loads((tmp_path / "out/report.json").read_text())
    cases = report["cases"]
    assert list(cases) == ["doubtful", "good", "lonely", "other", "slab"]
    good = cases["good"]
    assert good["status"] == "done"
    assert (good["confidence"], good["scale"], good["polish_mm"]) == (0.875, 1.0, 0.5)
    assert good["files"] == ["good.tfm", "good_moved.nii.gz", "good.png", "good.html"]
    assert cases["doubtful"]["status"] == "not converged"
    assert cases["doubtful"]["reason"] == "two alignments are as likely"
    assert cases["doubtful"]["confidence"] == 0.125
    assert cases["doubtful"]["files"] == []
    assert cases["lonely"]["reason"].startswith("no moving image")
    assert "field of view of a few slices" in cases["slab"]["reason"]
    assert set(predictor.failures) == {"doubtful", "lonely", "slab"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*good["files"], *cases["other"]["files"], "report.json"]
    )
    with pytest.raises(InputError, match="3 of 5 cases failed"):
        predictor.check()
    assert "doubtful: not converged: two alignments are as likely" in caplog.text
    assert "Planted" not in caplog.text + json.dumps(report)
    matrix = read_transform(tmp_path / "out/good.tfm")
    np.testing.assert_allclose(matrix[:3, 3], SHIFT_MM, atol=1e-12)


def test_command_line(bundle, pairs, tmp_path, capsys):
    arguments = ["predict", str(pairs), "--bundle", str(bundle), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 1
    assert "2 cases done, 3 failed" in capsys.readouterr().out
    arguments[1] = str(pairs / "good")
    assert main(arguments) == 0
    assert main([*arguments[:1], str(tmp_path / "nothing"), *arguments[2:]]) == 1
    assert "error: nothing: no such folder" in capsys.readouterr().err


def test_bundle_configuration_ends_with_the_failures(bundle, pairs, tmp_path):
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(pairs), "output_dir": str(tmp_path / "out")})
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        parser.get_parsed_content("run")
    assert "3 of 5 cases failed" in str(input_error(caught.value))


def test_one_pair_in_python(bundle, pairs, tmp_path):
    loaded = medrl.load(bundle, "cpu")
    assert loaded.registering
    answer = loaded.register(pairs / "good/fixed.nii.gz", str(pairs / "good/moving.nrrd"))
    assert isinstance(answer, Registration)
    assert answer.moving_from_fixed[:3, 3].tolist() == list(SHIFT_MM)
    fixed, moving = read_image(pairs / "good/fixed.nii.gz"), read_image(pairs / "doubtful/moving.nrrd")
    assert loaded.register(fixed, moving).status == NOT_CONVERGED
    array = moving[0].numpy()
    assert loaded.register(fixed, array, moving_ras_from_voxel=moving.affine).status == NOT_CONVERGED
    for arguments, words in (
        ((fixed, array), "needs ras_from_voxel"), ((fixed, fixed), "one image given twice"),
        ((fixed, pairs / "none.nii"), "none.nii: no such file"), ((fixed, moving[:, :5]), "few slices"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            loaded.register(*arguments)
    with pytest.raises(InputError, match="takes a fixed and a moving image; call register"):
        loaded.predict(fixed)


def test_other_bundles_refuse_pairs():
    with pytest.raises(InputError, match="does not register images; call predict"):
        medrl.load("brain_mri_landmark_detection", "cpu").register("a.nii.gz", "b.nii.gz")


def as_image(voxels, affine):
    return MetaTensor(torch.as_tensor(voxels).float()[None], affine=torch.as_tensor(affine))


@pytest.mark.parametrize("axes", [(0,), (0, 1, 2)])
def test_storage_does_not_change_the_moved_image(generator, axes, tmp_path):
    """A left-handed copy of the moving image gives the same moved image, one of the fixed its flipped copy."""
    pair = pair_phantom(generator, shape=(18, 16, 17), spacing_mm=9.0)
    fixed, moving = as_image(pair.ct, pair.ct_affine), as_image(pair.mr, pair.mr_affine)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(SHIFT_MM)

    def flipped(image):
        flip = torch.eye(4, dtype=torch.float64)
        for axis in axes:
            flip[axis, axis], flip[axis, 3] = -1.0, image.shape[axis + 1] - 1
        return as_image(image[0].as_tensor().flip(axes), torch.as_tensor(image.affine) @ flip)

    assert float(torch.linalg.det(flipped(moving).affine)) * float(torch.linalg.det(moving.affine)) < 0
    expected = move_image(moving, fixed, matrix)[0].as_tensor()
    torch.testing.assert_close(move_image(flipped(moving), fixed, matrix)[0].as_tensor(), expected, rtol=0, atol=0.05)
    other = move_image(moving, flipped(fixed), matrix)[0].as_tensor()
    torch.testing.assert_close(other.flip(axes), expected, rtol=0, atol=0.05)
    # where a fixed voxel lies, the moving image has that value
    index = torch.tensor([[9.0, 8.0, 8.0], [8.0, 9.0, 7.0]], dtype=torch.float64)
    place = transform_points(invert(torch.as_tensor(moving.affine)) @ matrix @ torch.as_tensor(fixed.affine), index)
    low, share = place.floor().long(), place - place.floor()
    for number in range(2):
        value = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([s if c else 1 - s for s, c in zip(share[number].tolist(), corner, strict=True)])
            value += weight * pair.mr[tuple((low[number] + torch.tensor(corner)).tolist())]
        assert float(expected[tuple(index[number].long().tolist())]) == pytest.approx(value, abs=0.01)


def test_files_of_a_registration(generator, tmp_path):
    pair = pair_phantom(generator, shape=(16, 16, 16), spacing_mm=9.0)
    fixed, moving = as_image(pair.ct, pair.ct_affine), as_image(pair.mr, pair.mr_affine)
    data = {"fixed": fixed, "moving": moving, "case": "a"}
    answer = KnownInferer(shift_mm=SHIFT_MM).matrix
    saved = SaveRegistrationd(output_dir=tmp_path)(data | {"pred": Registration(answer, 0.5)})
    assert saved["files"] == ["a.tfm", "a_moved.nii.gz"]
    import nibabel

    written = nibabel.load(tmp_path / "a_moved.nii.gz")
    assert written.get_data_dtype() == np.int16
    np.testing.assert_allclose(written.affine, pair.ct_affine, atol=1e-4)
    expected = move_image(moving, fixed, answer)[0].numpy()
    assert np.abs(np.asarray(written.dataobj) - expected).max() <= 0.5
    assert np.asarray(written.dataobj).min() == pair.mr.min()
    halves = data | {"moving": as_image(pair.mr * 0.5, pair.mr_affine), "pred": Registration(answer, 0.5)}
    SaveRegistrationd(output_dir=tmp_path)(halves)
    assert nibabel.load(tmp_path / "a_moved.nii.gz").get_data_dtype() == np.float32

    doubtful = data | {"case": "b", "pred": Registration(answer, 0.1, NOT_CONVERGED, "no agreement")}
    assert SaveRegistrationd(output_dir=tmp_path)(doubtful)["files"] == []
    assert not list(tmp_path.glob("b*"))
    kept = SaveRegistrationd(output_dir=tmp_path, keep_unconverged="true")(doubtful)["files"]
    assert kept == ["b.tfm", "b_moved.nii.gz"]
    with pytest.raises(InputError, match="keep_unconverged is 'maybe'"):
        SaveRegistrationd(output_dir=tmp_path, keep_unconverged="maybe")


def test_misaligned_cases(generator, tmp_path):
    write_pair_phantoms(tmp_path, 4, generator, shape=(18, 16, 17), spacing_mm=9.0, validation=0.25, test=0.5)
    cases = list_misaligned_cases(tmp_path, "test", levels=["small", "similarity"], repeats=2)
    assert len(cases) == 8
    assert cases[3]["case"] == f"{cases[3]['pair']}_similarity_1"
    assert len({case["case"] for case in cases}) == 8
    load, move = LoadPaird(), Misalignd(seed=7)
    done = [move(load(case)) for case in cases]
    assert len({tuple(case["truth"].flatten().tolist()) for case in done}) == 8
    for case, before in zip(done, cases, strict=True):
        initial = float(registration_error_mm(torch.eye(4), case["truth"], case["points"]))
        assert initial > 3.0
        assert float(registration_error_mm(case["truth"], case["truth"], case["points"])) < 1e-9
        again = Misalignd(seed=7)(load(before))  # alone and in another order: the same draw
        assert torch.equal(again["truth"], case["truth"])
        assert torch.equal(again["points"], case["points"])
        assert torch.equal(again["moving"], case["moving"])
    other = Misalignd(seed=8)(load(cases[0]))
    assert not torch.equal(other["truth"], done[0]["truth"])
    ball = Misalignd(seed=7, ball="true")(load(cases[0]))
    assert torch.equal(ball["truth"], done[0]["truth"])
    assert float((ball["moving"] > ball["moving"].min()).float().mean()) < float(
        (done[0]["moving"] > done[0]["moving"].min()).float().mean()
    )
    assert [len(list_misaligned_cases(tmp_path, "training", repeats=3)), len(LEVELS)] == [12, 4]
    with pytest.raises(InputError, match="level 'huge' is unknown"):
        list_misaligned_cases(tmp_path, "test", levels=["huge"])
