"""A wrong input, told in one line however deep it was found."""

from __future__ import annotations

import sys
from typing import Any

from medrl.types import InputError


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an error; MONAI's configurations and transforms wrap what they meet in RuntimeErrors."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def reason_of(error: BaseException) -> str:
    """One line that may be shown: what was wrong with the input, or the kind of an error that was not foreseen.

    The text of an unforeseen error is left out, as it may hold a path.
    """
    wrong = input_error(error)
    if wrong is not None:
        return str(wrong)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "not enough memory; crop the volume, or choose another device"
    return f"unexpected {type(error).__name__}; set the log level to DEBUG to see where"


def report_in_one_line() -> None:
    """From now on an InputError ends this process with ``error: <one line>``; other errors keep their traceback."""
    before = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        wrong = input_error(error)
        if wrong is None:
            before(kind, error, trace)
        else:
            sys.stderr.write(f"error: {wrong}\n")

    sys.excepthook = report
