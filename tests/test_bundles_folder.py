from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from medrl import bundles_folder
from medrl.bundles_folder import bundle_names, bundle_path
from medrl.types import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    source, installed = tmp_path / "bundles", tmp_path / "medrl" / "bundles"
    for folder, names in ((source, ["brain"]), (installed, ["brain", "mouse"])):
        for name in names:
            (folder / name / "configs").mkdir(parents=True)
            (folder / name / "configs" / "metadata.json").write_text("{}")
    (source / "not_a_bundle").mkdir()
    monkeypatch.setattr(bundles_folder, "FOLDERS", (source, installed))
    return source, installed


def test_source_tree_comes_before_the_installed_copy(folders: tuple[Path, Path]) -> None:
    source, installed = folders
    assert bundle_path("brain") == source / "brain"
    assert bundle_path("mouse") == installed / "mouse"


def test_only_folders_with_metadata_are_bundles(folders: tuple[Path, Path]) -> None:
    assert bundle_names() == ["brain", "mouse"]
    with pytest.raises(InputError, match=r"bundle 'not_a_bundle' is not here: expected one of brain, mouse"):
        bundle_path("not_a_bundle")


@pytest.mark.parametrize("name", ["", "..", "../bundles/brain", "brain/configs"])
def test_a_name_is_no_path(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(InputError, match="is not here"):
        bundle_path(name)


def test_bundles_of_this_tree_are_found_and_packed() -> None:
    here = {path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/metadata.json")}
    assert here <= set(bundle_names())
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"]["bundles"] == "medrl/bundles"
    assert "bundles" in wheel["only-include"]
