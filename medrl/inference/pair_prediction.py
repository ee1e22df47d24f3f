"""Cases of registration, and what a report says of them: for a ``CasePredictor``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medrl.data.misalignment import LEVELS
from medrl.data.pairs import find_pairs, read_pairs
from medrl.types import CONVERGED, InputError


def list_pair_cases(dataset_dir: Path | str) -> list[dict[str, Any]]:
    """The pairs of a folder as ``{"case": id, "folder": path}``; InputError if there is none.

    ``medrl.inference.registration_transforms.LoadPaird`` reads the images of a folder.
    """
    return [{"case": case, "folder": folder} for case, folder in find_pairs(dataset_dir).items()]


def list_misaligned_cases(
    dataset_dir: Path | str, section: str, *, levels: Sequence[str] = tuple(LEVELS), repeats: int = 2
) -> list[dict[str, Any]]:
    """Every aligned pair of a section of dataset.json, to be moved apart ``repeats`` times a level.

    Each is ``{"case": "<pair>_<level>_<repeat>", "pair", "subject", "level", "fixed", "moving", "reference"}``; the
    cases of a pair follow each other.

    Raises:
        InputError: as `read_pairs`, or an unknown level.
    """
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        raise InputError(f"level {unknown[0]!r} is unknown; expected some of {', '.join(LEVELS)}")
    return [
        {
            "case": f"{pair.case}_{level}_{repeat}", "pair": pair.case, "subject": pair.subject, "level": level,
            "fixed": pair.fixed, "moving": pair.moving, "reference": pair.reference,
        }
        for pair in read_pairs(dataset_dir, section)
        for level in levels
        for repeat in range(repeats)
    ]  # fmt: skip


class RegistrationAnswers:
    """Status, confidence and scale of every registration, for the report."""

    def clear(self) -> None:
        """Forget an earlier run; nothing is kept."""

    def add(self, case: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Describe a registration; one that did not converge is no answer, and has a reason."""
        answer = data["pred"]
        entry: dict[str, Any] = {"confidence": round(answer.confidence, 3)}
        if answer.status != CONVERGED:
            reason = answer.reason or "the search did not end at one alignment"
            return entry | {"status": answer.status, "reason": reason}, f"{answer.status}: {reason}"
        entry |= {"scale": round(answer.scale, 4), "polish_mm": round(answer.polish_mm, 2)}
        return entry, f"confidence {answer.confidence:.2f}, scale {answer.scale:.3f}"

    def write(self, output_dir: Path) -> None:
        """Nothing: the report says it all."""
