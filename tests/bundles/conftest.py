"""Every bundle, and what running one leaves behind in the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/metadata.json"))


def pytest_generate_tests(metafunc):
    """Run a test that takes ``bundle`` for every bundle, of the module's KIND where it has one."""
    if "bundle" in metafunc.fixturenames:
        bundles = [path for path in BUNDLES if path.name.endswith(getattr(metafunc.module, "KIND", ""))]
        metafunc.parametrize("bundle", bundles, ids=[path.name for path in bundles], scope="session")


@pytest.fixture(scope="session")
def one_bundle() -> Path:
    """Any bundle, for what is the same in all."""
    return BUNDLES[0]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Undo what a configuration does to the process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


@pytest.fixture(scope="session")
def workflow():
    """Start a bundle's configurations as ``python -m monai.bundle run`` does, in this process."""

    def start(bundle: Path, *names: str, kind: str = "infer", **overrides) -> ConfigWorkflow:
        files = [str(bundle / "configs" / f"{name}.json") for name in names]
        started = ConfigWorkflow(files, workflow_type=kind, logging_file=False, bundle_root=str(bundle), **overrides)
        started.initialize()
        return started

    return start


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, workflow):
    """Folder of a finished training of seconds on phantoms, once a bundle."""
    done: dict[Path, Path] = {}

    def train(bundle: Path) -> Path:
        if bundle not in done:
            folder = tmp_path_factory.mktemp("smoke")
            training = workflow(bundle, "train", "smoke", kind="train", output_dir=str(folder))
            assert training.check_properties() == []
            training.run()
            training.finalize()
            done[bundle] = folder
        return done[bundle]

    return train
