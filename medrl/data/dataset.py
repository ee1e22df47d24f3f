"""Decathlon-style ``dataset.json``: which image has which answer, and which cases are held out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medrl.data.read import case_name
from medrl.data.write import write_json
from medrl.types import InputError

SECTIONS = ("training", "validation", "test")


def read_dataset(dataset_dir: Path | str, section: str, *, answer: str = "landmarks") -> list[dict[str, Any]]:
    """List the cases of one section of ``dataset_dir/dataset.json``.

    Args:
        dataset_dir: folder of ``dataset.json``; paths inside are relative to it.
        section: ``training``, ``validation`` or ``test``.
        answer: key of the file that an image comes with: ``landmarks``, or ``label`` for a mask.

    Returns:
        one ``{"image": Path, answer: Path | None, "case": str, "subject": str}`` a case, in the order of the file;
        the subject is the case id where the file names none.

    Raises:
        InputError: no such file or section, an empty section, a named file that is missing, two images with one case
            id, or an image listed twice, be it in two sections (a leak between training and test).
    """
    folder = Path(dataset_dir)
    document = _read_document(folder)
    if not isinstance(document.get(section), list):
        have = ", ".join(name for name in SECTIONS if name in document) or "none"
        raise InputError(f"dataset.json: has no section {section} (it has {have}); add a list of that name")
    if not document[section]:
        raise InputError(f"dataset.json: section {section} is empty; expected at least one case")
    _check_leaks(document)
    cases = [_read_entry(folder, entry, answer) for entry in document[section]]
    names = [case["case"] for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"dataset.json: two images of section {section} have the case id {twice}; rename one")
    return cases


def find_datasets(dataset_dir: Path | str) -> list[Path]:
    """List the data sets of a folder: itself, or those of its sub-folders that hold a ``dataset.json``; by name.

    Raises InputError if there is none.
    """
    folder = Path(dataset_dir)
    if (folder / "dataset.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/dataset.json"))
    if not found:
        raise InputError(f"{folder.name}: holds no dataset.json, nor does a folder in it; see data_scripts/")
    return found


def dataset_labels(dataset_dir: Path | str) -> list[str]:
    """Return the landmark labels of ``dataset_dir/dataset.json``, in its order; InputError if there are none."""
    labels = _read_document(Path(dataset_dir)).get("landmarks")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise InputError("dataset.json: expected 'landmarks', a list of labels")
    if len(set(labels)) < len(labels):
        raise InputError("dataset.json: 'landmarks' names a label twice; expected every label once")
    return labels


def write_dataset(
    dataset_dir: Path | str,
    name: str,
    labels: Sequence[str],
    sections: Mapping[str, Sequence[tuple[Path, Path | None]]],
) -> Path:
    """Write ``dataset_dir/dataset.json`` from (image, landmarks) paths a section; returns its path.

    Paths become relative to ``dataset_dir`` where one exists (another drive has none).
    """
    folder = Path(dataset_dir)
    document: dict[str, Any] = {"name": name, "landmarks": list(labels)}
    for section in SECTIONS:
        document[section] = [
            {key: relative_path(path, folder) for key, path in (("image", image), ("landmarks", landmarks)) if path}
            for image, landmarks in sections.get(section, ())
        ]
    path = folder / "dataset.json"
    write_json(path, document)
    return path


def split_cases(
    cases: Sequence[str], *, validation: float, test: float, generator: np.random.Generator
) -> dict[str, list[str]]:
    """Split case (or subject) ids at random into training, validation and test; the fractions are of all cases.

    A fraction above 0 gives at least one case, and training keeps at least one.

    Raises:
        InputError: fractions outside 0 to 1, or too few cases.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise InputError(f"validation {validation:g} and test {test:g}: expected fractions that sum to less than 1")
    order = [cases[index] for index in generator.permutation(len(cases))]
    counts = [max(1, round(fraction * len(cases))) if fraction else 0 for fraction in (test, validation)]
    if sum(counts) >= len(cases):
        raise InputError(f"{len(cases)} cases are too few for the split; expected more than {sum(counts)}")
    first, second = counts[0], sum(counts)
    parts = {"training": order[second:], "validation": order[first:second], "test": order[:first]}
    return {section: sorted(part) for section, part in parts.items()}


def split_subjects(subjects: Iterable[str], *, validation: float, test: float, seed: int = 0) -> dict[str, list[str]]:
    """Split subjects by a hash of their id, so that one subject falls into the same section of every data set.

    The id and the seed alone decide, so the fractions are met on average only.  Where a section of a fraction above 0
    would stay empty, the largest section gives it the subject whose hash is nearest.

    Raises:
        InputError: fractions outside 0 to 1, or too few subjects.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise InputError(f"validation {validation:g} and test {test:g}: expected fractions that sum to less than 1")
    ends = {"test": test, "validation": test + validation, "training": 1.0}  # of the sections' shares of the hashes
    wanted = [section for section in ends if section == "training" or {"test": test, "validation": validation}[section]]
    parts: dict[str, list[str]] = {section: [] for section in ends}
    for share, subject in sorted((_hash_share(f"{seed} {subject}"), subject) for subject in set(subjects)):
        parts[next(section for section, end in ends.items() if share < end)].append(subject)
    for section in wanted:
        if not parts[section]:
            donor = max(parts, key=lambda name: len(parts[name]))
            if len(parts[donor]) < 2:
                raise InputError(f"{sum(map(len, parts.values()))} subjects are too few for {len(wanted)} sections")
            parts[section].append(parts[donor].pop(-1 if ends[section] > ends[donor] else 0))
    return {section: sorted(parts[section]) for section in SECTIONS}


def relative_path(path: Path, folder: Path) -> str:
    """Path from a folder to a file, or the whole path where there is none (another drive); links keep their names."""
    path = path.parent.resolve() / path.name  # a link's name is the case id (git-annex, datalad)
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _hash_share(text: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _read_document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder.name}: holds no dataset.json; write one with a script of data_scripts/") from None
    except (OSError, ValueError):
        raise InputError("dataset.json: cannot be read; expected a JSON object") from None
    if not isinstance(document, dict):
        raise InputError("dataset.json: cannot be read; expected a JSON object")
    return document


def _read_entry(folder: Path, entry: Any, answer: str) -> dict[str, Any]:
    entry = _as_entry(entry)
    image = folder / entry["image"]
    answer_path = folder / entry[answer] if entry.get(answer) else None
    for path in (image, answer_path):
        if path is not None and not path.exists():
            raise InputError(f"dataset.json: names {path.name}, which does not exist; check the paths and --input")
    case = case_name(image)
    return {"image": image, answer: answer_path, "case": case, "subject": str(entry.get("subject", case))}


def _as_entry(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):  # the Decathlon lists its test images so
        return {"image": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError('dataset.json: expected every case as {"image": path, "landmarks": path}')
    return entry


def _check_leaks(document: dict[str, Any]) -> None:
    seen: dict[str, str] = {}
    for section in SECTIONS:
        for entry in document.get(section) or []:
            image = os.path.normpath(_as_entry(entry)["image"])
            if image in seen:
                name = Path(image).name
                raise InputError(f"dataset.json: {name} is listed in {seen[image]} and in {section}; list it once")
            seen[image] = section
