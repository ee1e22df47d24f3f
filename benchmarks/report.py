"""Measurements, and the markdown table that the speed benchmarks print of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One measurement."""

    part: str
    what: str
    value: float
    unit: str
    note: str = ""


class Report:
    """Collects rows; what raises becomes a failed row, so that the others are still measured."""

    def __init__(self, *, seconds: float, limit: float) -> None:
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.seconds, self.limit, self.start = seconds, limit, time.monotonic()

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds until nothing more should be begun."""
        return self.limit - self.spent()

    @contextmanager
    def attempt(self, part: str, what: str) -> Iterator[None]:
        """Turn an exception into a failed row."""
        try:
            yield
        except Exception as error:  # whatever a card or driver may raise
            message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            self.fail(part, what, f"{type(error).__name__}: {message[:160]}")

    def add(self, part: str, what: str, value: float, unit: str, note: str = "") -> None:
        """Keep a measurement."""
        self.rows.append(Row(part, what, value, unit, note))

    def fail(self, part: str, what: str, note: str) -> None:
        """Keep a failure."""
        self.rows.append(Row(part, what, float("nan"), "", f"FAILED, {note}"))
        self.failures.append(f"{part}, {what}: {note}")


def table(rows: list[Row]) -> str:
    """A markdown table of measurements."""
    cells = [(row.part, row.what, f"{figure(row.value)} {row.unit}", row.note) for row in rows]
    return markdown(("part", "what", "figure", "note"), cells)


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table of cells."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    """Three figures, with thousands set apart; a dash for no number."""
    if math.isnan(value):
        return "-"
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"


def write_json(path: Path, machine: str, rows: list[Row], failures: list[str]) -> None:
    """Write measurements to a file; no number is null."""
    values = [row._asdict() | {"value": None if math.isnan(row.value) else row.value} for row in rows]
    path.write_text(json.dumps({"machine": machine, "rows": values, "failures": failures}, indent=2) + "\n")
