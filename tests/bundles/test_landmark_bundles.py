"""Inference of the landmark bundles, as a user, MONAI Label and MONAI Deploy run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from medrl.data.anatomy import Anatomy
from medrl.data.landmarks import read_landmarks
from medrl.data.phantoms import phantom, random_affine
from medrl.data.write import write_image
from medrl.types import MISSING

KIND = "_landmark_detection"


def read(bundle: Path, name: str) -> dict:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder with one oblique phantom as large as a bundle's anatomy."""

    def write(bundle: Path) -> Path:
        folder = tmp_path_factory.mktemp("images")
        lower, upper = Anatomy.load(bundle / "models/anatomy.pt").box_mm()
        spacing_mm = float((upper - lower).max()) / 28
        affine = random_affine(np.random.default_rng(5), (spacing_mm, 0.9 * spacing_mm, 1.1 * spacing_mm))
        voxels, affine, _ = phantom(np.random.default_rng(6), shape=(28, 30, 26), modality="mr", affine=affine)
        write_image(folder / "one.nrrd", voxels, affine)
        return folder

    return write


def test_metadata_names_the_landmarks(bundle):
    labels = Anatomy.load(bundle / "models/anatomy.pt").labels
    output = read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]
    assert list(output["channel_def"].values()) == labels
    assert output["num_channels"] == len(labels)


def test_inference(bundle, images, workflow, tmp_path):
    folder = images(bundle)
    running = workflow(bundle, "inference", dataset_dir=str(folder), output_dir=str(tmp_path), device="cpu")
    assert running.check_properties() == []
    running.run()
    running.finalize()
    labels = Anatomy.load(bundle / "models/anatomy.pt").labels
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "landmarks.csv",
        "one.mrk.json",
        "report.json",
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bundle"] == {"name": bundle.name, "version": read(bundle, "metadata")["version"]}
    assert report["cases"]["one"]["landmarks"] == len(labels)

    landmarks = running.evaluator.landmarks["one"]
    written = read_landmarks(tmp_path / "one.mrk.json")
    assert [mark.label for mark in landmarks] == labels
    assert list(written) == [mark.label for mark in landmarks if mark.status != MISSING]
    for mark in landmarks:
        if mark.status != MISSING:
            assert np.abs(written[mark.label] - mark.position_mm).max() < 1e-3


def test_what_label_and_deploy_do(bundle, images):
    """Both run preprocessing, ``inferer(inputs, network)`` and postprocessing, without what reads and writes files."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.read_meta(bundle / "configs/metadata.json")
    parser.update({"bundle_root": str(bundle), "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True), strict=True)
    reading = parser.get_parsed_content("preprocessing").transforms
    whole = {"image": next(images(bundle).iterdir())}
    for transform in reading:
        whole = transform(whole)
    in_memory = {"image": MetaTensor(whole["image"][0].as_tensor(), affine=whole["image"].affine)}
    for transform in reading:
        in_memory = in_memory if "LoadImage" in type(transform).__name__ else transform(in_memory)
    assert torch.equal(in_memory["image"].as_tensor(), whole["image"].as_tensor())
    assert torch.equal(in_memory["image"].affine, whole["image"].affine)
    inferer = parser.get_parsed_content("inferer")
    in_memory["pred"] = inferer(inputs=in_memory["image"][None], network=network.eval())[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        in_memory = in_memory if "Save" in type(transform).__name__ else transform(in_memory)
    format_ = parser["_meta_"]["network_data_format"]["post_processed_outputs"]["pred"]
    assert tuple(in_memory["pred"].shape) == (format_["num_channels"], *format_["spatial_shape"])
