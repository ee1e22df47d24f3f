"""What MONAI, its model zoo, Label and Deploy expect of a bundle; holds for every folder of bundles/."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out
from monai.data import MetaTensor

import medrl
from medrl.data.anatomy import Anatomy
from medrl.data.landmarks import read_landmarks
from medrl.data.phantoms import phantom, random_affine
from medrl.data.write import write_image
from medrl.types import MISSING

SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"  # from project-monai.github.io/schema, Apache-2.0
FILES = ("LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt")
CONFIGS = ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "smoke")


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


def test_files(bundle):
    for name in (*FILES, *(f"configs/{config}.json" for config in CONFIGS)):
        assert (bundle / name).stat().st_size > 0, name
    assert not list(bundle.rglob("*.py")), "a bundle is configuration, weights and docs"
    for path in bundle.rglob("*"):
        assert path.is_dir() or path.stat().st_size <= 16 * 2**20, f"{path.name} is above 16 MB"
    weights = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    for path in (*bundle.glob("configs/*"), *bundle.glob("docs/*")):
        text = path.read_text()
        assert "/home/" not in text, path.name
        assert bundle.name in text or path.name != "README.md"


def test_metadata(bundle, tmp_path):
    metadata = read(bundle, "metadata")
    validator = jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text()))
    assert [error.message for error in validator.iter_errors(metadata)] == []
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"] == {"medrl": medrl.__version__}
    shutil.copy(SCHEMA, tmp_path / "schema.json")  # a file that is there is not downloaded
    verify_metadata(
        meta_file=str(bundle / "configs/metadata.json"), filepath=str(tmp_path / "schema.json"), hash_type="sha256",
        hash_val=hashlib.sha256(SCHEMA.read_bytes()).hexdigest(),
    )  # fmt: skip
    formats = metadata["network_data_format"]
    labels = Anatomy.load(bundle / "models/anatomy.pt").labels
    assert list(formats["outputs"]["pred"]["channel_def"].values()) == labels
    assert formats["outputs"]["pred"]["num_channels"] == len(labels)


def test_network_as_metadata_says(bundle, tmp_path):
    files = {name: str(bundle / f"configs/{name}.json") for name in ("metadata", "inference")}
    verify_net_in_out(
        net_id="network_def", meta_file=files["metadata"], config_file=files["inference"], device="cpu",
        bundle_root=str(bundle),
    )  # fmt: skip
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "model.ts"), ckpt_file=str(bundle / "models/model.pt"),
        meta_file=files["metadata"], config_file=files["inference"], bundle_root=str(bundle),
    )  # fmt: skip
    network = medrl.load(bundle, "cpu").network
    formats = read(bundle, "metadata")["network_data_format"]
    shape = (2, formats["inputs"]["image"]["num_channels"], *formats["inputs"]["image"]["spatial_shape"])
    crops = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, exported = network(crops), torch.jit.load(tmp_path / "model.ts").eval()(crops)
    assert list(output.shape[2:]) == formats["outputs"]["pred"]["spatial_shape"]
    assert torch.equal(output, exported)


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


def test_bundles_of_one_kind_differ_in_numbers_only(bundle):
    first = sorted(bundle.parent.glob("*_landmark_detection"))[0]

    def words(config) -> object:
        if isinstance(config, dict):
            return {key: words(value) for key, value in config.items()}
        if isinstance(config, list):
            numbers = not any(isinstance(value, str | dict) for value in config)
            return None if numbers else [words(value) for value in config]
        return re.sub(r"[\d.]+", "", config) if isinstance(config, str) else None

    if bundle.name.endswith("_landmark_detection"):
        for name in CONFIGS[1:]:
            assert words(read(bundle, name)) == words(read(first, name)), name
