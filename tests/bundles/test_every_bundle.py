"""What MONAI, its model zoo, Label and Deploy expect of a bundle; holds for every folder of bundles/."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

import medrl

SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"  # from project-monai.github.io/schema, Apache-2.0
FILES = ("LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt")
CONFIGS = ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "smoke")


def read(bundle: Path, name: str) -> dict:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


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
    assert formats["inputs"]["image"]["num_channels"] == len(formats["inputs"]["image"]["channel_def"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # a network that asks which input it was given
def test_network_as_metadata_says(bundle, tmp_path):
    files = {name: str(bundle / f"configs/{name}.json") for name in ("metadata", "inference")}
    verify_net_in_out(
        net_id="network_def", meta_file=files["metadata"], config_file=files["inference"], device="cpu",
        bundle_root=str(bundle),
    )  # fmt: skip
    formats = read(bundle, "metadata")["network_data_format"]
    shape = (1, formats["inputs"]["image"]["num_channels"], *formats["inputs"]["image"]["spatial_shape"])
    trace = {} if bundle.name.endswith("_landmark_detection") else {"use_trace": True, "input_shape": list(shape)}
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "model.ts"), ckpt_file=str(bundle / "models/model.pt"),
        meta_file=files["metadata"], config_file=files["inference"], bundle_root=str(bundle), **trace,
    )  # fmt: skip
    network = medrl.load(bundle, "cpu").network
    low, high = formats["inputs"]["image"]["value_range"]
    crops = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, exported = network(crops), torch.jit.load(tmp_path / "model.ts").eval()(crops)
    assert list(output.shape[2:]) == formats["outputs"]["pred"]["spatial_shape"]
    # a traced copy of a state dict in half precision stays the same up to the order of sums
    assert torch.allclose(output, exported, rtol=1e-4, atol=1e-4)


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
