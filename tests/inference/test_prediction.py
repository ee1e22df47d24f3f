"""A folder of good and bad cases, answered by a network that sees the truth."""

from __future__ import annotations

import csv
import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from bad_files import SECRETS, write_bad_images, write_slices
from blobs import BlobNet, anatomy, blob_volume
from ignite.engine import Events
from monai.data import Dataset
from monai.transforms import Compose

from medrl.data.landmarks import read_landmarks
from medrl.data.phantoms import random_affine
from medrl.data.transforms import LoadImageStrictd
from medrl.data.write import write_image, write_truth_csv
from medrl.inference.landmarks import LandmarkInferer
from medrl.inference.prediction import CasePredictor, list_annotated_cases, list_cases
from medrl.inference.transforms import LandmarkPointsd, LoadTruthd, SaveLandmarksd
from medrl.types import InputError

SHAPE = (44, 40, 46)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def points() -> torch.Tensor:
    return anatomy().shape_mm.double() + torch.tensor([5.0, -3.0, 8.0])


def centred(matrix: np.ndarray) -> np.ndarray:
    """The same grid with its middle among the blobs."""
    matrix = matrix.copy()
    matrix[:3, 3] = points().mean(0).numpy() - matrix[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return matrix


def grids() -> dict[str, np.ndarray]:
    oblique = random_affine(np.random.default_rng(4), (1.8, 2.2, 2.0), oblique_degrees=20.0)
    if np.linalg.det(LPS @ oblique) < 0:  # a series cannot store a left-handed grid
        oblique[:3, 0] *= -1
    return {"las": centred(np.diag([-2.0, 2.0, 2.0, 1.0])), "oblique": centred(oblique)}


def write_blobs(path, matrix) -> np.ndarray:
    voxels = blob_volume(torch.as_tensor(matrix), SHAPE, points()).numpy().astype(np.int16)
    if path.suffix:
        write_image(path, voxels, matrix)
    return voxels


def predictor(cases, output_dir, *more, **options) -> CasePredictor:
    preprocessing = Compose([LoadImageStrictd(keys="image"), *more])
    return CasePredictor(
        device="cpu", dataset=Dataset(cases, preprocessing), network=BlobNet(), output_dir=output_dir,
        inferer=LandmarkInferer(anatomy(), step_mm=(8.0, 4.0, 2.0)),
        postprocessing=Compose([LandmarkPointsd(keys="pred"), SaveLandmarksd(output_dir=output_dir)]), **options,
    )  # fmt: skip


def test_good_cases_are_done_and_bad_ones_told(tmp_path, caplog):
    folder, output = tmp_path / "Planted^Name", tmp_path / "out"
    expected = write_bad_images(folder)
    matrices = grids()
    write_blobs(folder / "las.nii.gz", matrices["las"])
    write_blobs(folder / "oblique.nrrd", matrices["oblique"])
    voxels = write_blobs(folder / "none", matrices["oblique"])
    write_slices(folder / "series", voxels, matrices["oblique"], rescale=(1, 0))
    engine = predictor(list_cases(folder), output, progress_bar=False)
    with caplog.at_level(logging.DEBUG):
        engine.run()

    assert list(engine.landmarks) == ["las", "oblique", "series"]
    for case in engine.landmarks:
        answer = read_landmarks(output / f"{case}.mrk.json")
        assert list(answer) == anatomy().labels
        error = np.linalg.norm(np.stack(list(answer.values())) - points().numpy(), axis=1)
        assert error.max() < 1.0, f"{case}: {error}"
    assert set(engine.failures) == set(expected)
    for case, words in expected.items():
        assert words in engine.failures[case]
        assert "\n" not in engine.failures[case]
    with pytest.raises(InputError, match=r"7 of 10 cases failed"):
        engine.check()

    written = sorted(path.name for path in output.iterdir())
    assert written == ["landmarks.csv", "las.mrk.json", "oblique.mrk.json", "report.json", "series.mrk.json"]
    report = json.loads((output / "report.json").read_text())
    assert report["cases"]["las"]["files"] == ["las.mrk.json"]
    assert report["cases"]["las"]["landmarks"] == 4
    assert set(report["cases"]["las"]["seconds"]) == {"read", "find", "write"}
    assert report["cases"]["constant"]["status"] == "failed"
    with (output / "landmarks.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12

    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    shown = "\n".join([*lines, *(path.read_text() for path in output.iterdir())])
    for secret in (*SECRETS, str(tmp_path)):
        assert secret not in shown


def test_an_unforeseen_error_is_one_case_too(tmp_path, caplog):
    write_blobs(tmp_path / "in" / "a.nii.gz", grids()["las"])
    engine = predictor(list_cases(tmp_path / "in"), tmp_path / "out")
    engine.inferer = lambda inputs, network: 1 / 0
    engine.run()
    assert engine.failures == {"a": "unexpected ZeroDivisionError; set the log level to DEBUG to see where"}


def test_list_cases_takes_a_file_and_refuses_an_empty_folder(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), tmp_path / "one.nii.gz")
    assert list_cases(tmp_path / "one.nii.gz") == [{"case": "one", "image": tmp_path / "one.nii.gz"}]
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "holds no image"), ("nowhere", "no such folder")):
        with pytest.raises(InputError, match=words):
            list_cases(tmp_path / folder)


def test_the_truth_must_be_of_the_image(tmp_path):
    labels, matrix = anatomy().labels, grids()["oblique"]
    truth = dict(zip(labels, points().numpy(), strict=True))
    far = {label: point + np.array([0, 0, 500.0]) for label, point in truth.items()}
    part, other = dict(list(truth.items())[:2]), {"nose": points()[0].numpy()}
    tables = {"good": truth, "partial": part, "outside": far, "other": other}
    entries = []
    for case, table in tables.items():
        write_blobs(tmp_path / f"{case}.nii.gz", matrix)
        write_truth_csv(tmp_path / f"{case}.csv", table)
        entries.append({"image": f"{case}.nii.gz", "landmarks": f"{case}.csv"})
    write_blobs(tmp_path / "twice.nii.gz", matrix)
    (tmp_path / "twice.csv").write_text((tmp_path / "good.csv").read_text() + f"{labels[0]},1,2,3\n")
    write_blobs(tmp_path / "unlabelled.nii.gz", matrix)
    entries += [{"image": "twice.nii.gz", "landmarks": "twice.csv"}, {"image": "unlabelled.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"landmarks": labels, "test": entries}))
    outputs = []
    cases, load_truth = list_annotated_cases(tmp_path, "test"), LoadTruthd(keys="label", labels=labels)
    engine = predictor(cases, tmp_path / "out", load_truth, progress_bar=False)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.extend(e.state.output))
    engine.run()
    assert list(engine.landmarks) == ["good", "partial"]
    assert torch.allclose(outputs[0]["label"], points(), atol=1e-3)
    assert outputs[1]["label"].isfinite().all(1).tolist() == [True, True, False, False]
    reasons = engine.failures
    assert "4 of 4 landmarks lie outside the image" in reasons["outside"]
    assert "names none of the bundle's landmarks" in reasons["other"]
    assert "occurs twice" in reasons["twice"]
    assert "no landmark file is named" in reasons["unlabelled"]
