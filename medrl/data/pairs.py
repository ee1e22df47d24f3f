"""Pairs of images: folders ``<case>/fixed.*`` and ``<case>/moving.*`` to be registered, data sets of aligned pairs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor

from medrl.data.dataset import SECTIONS, relative_path
from medrl.data.headers import check_geometry_known
from medrl.data.read import IMAGE_SUFFIXES, case_name, read_image
from medrl.data.slices import Policy
from medrl.data.write import write_json
from medrl.geometry.grids import spacing_of
from medrl.types import InputError

logger = logging.getLogger(__name__)

ROLES = ("fixed", "moving")
EXACT, SILVER = "exact", "silver"  # whether the images of a data set agree to the voxel, or to some millimetres
LEAST_SLICES, LEAST_MM = 8, 30.0  # along every axis; less cannot tell a pose in space


class PairFiles(NamedTuple):
    """The files of a pair of a data set, which are aligned in world space."""

    case: str
    subject: str  # pairs of one patient have one subject
    fixed: Path
    moving: Path
    reference: str = EXACT  # EXACT or SILVER


def find_pairs(folder: Path | str) -> dict[str, Path]:
    """Find the cases of a folder: every sub-folder with something called ``fixed`` or ``moving``, or the folder itself.

    What is missing in a case is told by `pair_files`, so that one bad case does not stop the others.

    Returns:
        case id -> folder, sorted by case id.

    Raises:
        InputError: no such folder, or no case in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.name}: no such folder; expected a folder of cases, <case>/fixed.* and moving.*")
    if any(_candidates(folder, role) for role in ROLES):
        return {folder.resolve().name: folder}
    parts = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    cases = {part.name: part for part in parts if any(_candidates(part, role) for role in ROLES)}
    if len(cases) < len(parts):
        logger.warning("%d sub-folders without fixed and moving image were left out", len(parts) - len(cases))
    if not cases:
        raise InputError(f"{folder.name}: holds no pair; expected a folder a case with fixed.nii.gz and moving.nii.gz")
    return cases


def pair_files(case: Path | str) -> tuple[Path, Path]:
    """Return the fixed and the moving image of a case's folder: image files, or DICOM folders of these names.

    Raises:
        InputError: one of the two is missing, or has two candidates.
    """
    found = []
    for role in ROLES:
        paths = _candidates(Path(case), role)
        if not paths:
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise InputError(f"no {role} image; expected {role}.* ({suffixes}) or a DICOM folder called {role}")
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise InputError(f"{names}: {len(paths)} candidates for the {role} image; expected one, remove the others")
        found.append(paths[0])
    return found[0], found[1]


def read_pair(fixed: Any, moving: Any, *, policy: Policy = "refuse") -> tuple[MetaTensor, MetaTensor]:
    """Read two volumes to be registered, by their paths; what is a MetaTensor (1, X, Y, Z) already is checked only.

    Raises:
        InputError: as `read_image`, and as `check_pair`; or a header that says nothing about geometry.
    """
    volumes = []
    for image in (fixed, moving):
        if not isinstance(image, MetaTensor):
            check_geometry_known(image)
            image = read_image(image, policy=policy, one_slice=True)
        volumes.append(image)
    check_pair(volumes[0], volumes[1])
    return volumes[0], volumes[1]


def check_pair(fixed: MetaTensor, moving: MetaTensor) -> None:
    """Check that two images (1, X, Y, Z) can be registered.

    Raises:
        InputError: a single slice, a field of view of a few slices, or one image given twice.
    """
    flat = [1 in image.shape[1:] for image in (fixed, moving)]
    if any(flat):
        which = "fixed and moving image are" if all(flat) else f"the {ROLES[flat.index(True)]} image is"
        raise InputError(f"{which} a single slice; expected two volumes, a slice cannot be registered to a volume")
    for role, image in zip(ROLES, (fixed, moving), strict=True):
        shape = tuple(image.shape[1:])
        sides_mm = spacing_of(torch.as_tensor(image.affine).double()) * torch.tensor(shape)
        if min(shape) < LEAST_SLICES or float(sides_mm.min()) < LEAST_MM:
            size = " x ".join(map(str, shape))
            sides = " x ".join(f"{side:.0f}" for side in sides_mm)
            raise InputError(
                f"the {role} image has a field of view of a few slices ({size} voxels, {sides} mm); expected at least "
                f"{LEAST_SLICES} voxels and {LEAST_MM:g} mm along every axis"
            )
    affines = [torch.as_tensor(image.affine).double().cpu() for image in (fixed, moving)]
    if torch.equal(*affines) and torch.equal(fixed.as_tensor(), moving.as_tensor()):
        raise InputError("fixed and moving are one image given twice; expected two different images")


def read_pairs(dataset_dir: Path | str, section: str) -> list[PairFiles]:
    """List the pairs of a section of ``dataset.json``: entries with ``fixed``, ``moving``, ``subject``, ``reference``.

    Paths are relative to the folder.  ``case`` is ``<subject>_<moving>`` where an entry does not name it, ``reference``
    "exact" (the images agree in world space) or "silver" (to some millimetres).

    Raises:
        InputError: no such file or section, an empty section, a wrong entry, a named file that is missing, two pairs
            with one case id, or a subject in two sections (a leak between training and test).
    """
    folder = Path(dataset_dir)
    document = _read_document(folder)
    if not isinstance(document.get(section), list) or not document[section]:
        have = ", ".join(name for name in SECTIONS if document.get(name)) or "none"
        raise InputError(f"dataset.json: has no pairs in section {section} (sections with pairs: {have})")
    sections = {
        name: [_read_entry(folder, entry) for entry in document[name]]
        for name in SECTIONS
        if isinstance(document.get(name), list)
    }
    seen: dict[str, str] = {}
    for name, pairs in sections.items():
        for subject in {pair.subject for pair in pairs}:
            if subject in seen:
                raise InputError(f"dataset.json: subject {subject} is in {seen[subject]} and in {name}; keep it in one")
            seen[subject] = name
    cases = [pair.case for pair in sections[section]]
    twice = next((case for case in cases if cases.count(case) > 1), None)
    if twice is not None:
        raise InputError(f"dataset.json: two pairs of section {section} have the case id {twice}; name them by 'case'")
    for pair in sections[section]:
        for path in (pair.fixed, pair.moving):
            if not path.exists():
                raise InputError(f"dataset.json: names {path.name} of {pair.case}, which does not exist")
    return sections[section]


def write_pair_dataset(dataset_dir: Path | str, name: str, sections: Mapping[str, Sequence[PairFiles]]) -> Path:
    """Write ``dataset.json`` for aligned pairs, paths relative to its folder; returns its path."""
    folder = Path(dataset_dir)
    document: dict[str, Any] = {"name": name}
    for section in SECTIONS:
        document[section] = [
            pair._asdict() | {role: relative_path(getattr(pair, role), folder) for role in ROLES}
            for pair in sections.get(section, ())
        ]
    path = folder / "dataset.json"
    write_json(path, document)
    return path


def _candidates(folder: Path, role: str) -> list[Path]:
    """Image files and folders of a name, case-insensitive."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if case_name(entry).lower() == role and (entry.is_dir() or case_name(entry) != entry.name)
    )


def _read_document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder.name}: holds no dataset.json; see data_scripts/prepare_pairs.py") from None
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict):
        raise InputError("dataset.json: cannot be read; expected a JSON object")
    return document


def _read_entry(folder: Path, entry: Any) -> PairFiles:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(role), str) for role in ROLES):
        raise InputError('dataset.json: expected every pair as {"fixed": path, "moving": path, "subject": id}')
    fixed, moving = (folder / entry[role] for role in ROLES)
    subject = str(entry.get("subject", fixed.parent.name))
    reference = entry.get("reference", EXACT)
    if reference not in (EXACT, SILVER):
        raise InputError(f"dataset.json: reference {reference!r} of {subject}; expected 'exact' or 'silver'")
    return PairFiles(str(entry.get("case", f"{subject}_{case_name(moving)}")), subject, fixed, moving, reference)
