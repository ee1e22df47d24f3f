"""Errors in one line."""

from __future__ import annotations

import sys

import pytest

from medrl.errors import input_error, reason_of, report_in_one_line
from medrl.types import InputError


def wrapped() -> BaseException:
    try:
        try:
            raise InputError("a.nii.gz: is empty")
        except InputError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as error:
        return error


def test_reason_is_found_below():
    assert str(input_error(wrapped())) == "a.nii.gz: is empty"
    assert reason_of(wrapped()) == "a.nii.gz: is empty"
    assert input_error(ValueError("other")) is None


def test_an_unforeseen_error_shows_its_kind_only():
    assert reason_of(ValueError("/home/doe/scan.nii")) == (
        "unexpected ValueError; set the log level to DEBUG to see where"
    )
    assert "not enough memory" in reason_of(MemoryError())


def test_hook(monkeypatch, capsys):
    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error))
    report_in_one_line()
    sys.excepthook(RuntimeError, wrapped(), None)
    assert capsys.readouterr().err == "error: a.nii.gz: is empty\n"
    error = KeyError("x")
    sys.excepthook(KeyError, error, None)
    assert others == [(KeyError, error, None)]


@pytest.mark.parametrize("value", ["maybe", 1])
def test_switch(value):
    from medrl.inference.transforms import as_switch

    assert as_switch("true", "pictures") is True
    assert as_switch(False, "pictures") is False
    with pytest.raises(InputError, match="pictures is"):
        as_switch(value, "pictures")
