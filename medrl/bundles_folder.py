"""Where the bundles that come with the package are."""

from __future__ import annotations

from pathlib import Path

from medrl.types import InputError

PACKAGE = Path(__file__).resolve().parent
FOLDERS = (PACKAGE.parent / "bundles", PACKAGE / "bundles")  # of a source tree, of an installed package


def bundle_path(name: str) -> Path:
    """Folder of a bundle: in the source tree where there is one beside the package, else the installed copy.

    Raises InputError for a name that no bundle has.
    """
    names = bundle_names()
    if name not in names:
        raise InputError(
            f"bundle {name!r} is not here: expected one of {', '.join(names) or 'none'}; check the spelling"
        )
    return next(folder / name for folder in FOLDERS if _is_bundle(folder / name))


def bundle_names() -> list[str]:
    """Names of all bundles at hand."""
    found = {path.name for folder in FOLDERS if folder.is_dir() for path in folder.iterdir() if _is_bundle(path)}
    return sorted(found)


def _is_bundle(folder: Path) -> bool:
    return (folder / "configs" / "metadata.json").is_file()
