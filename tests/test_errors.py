"""The exception tree is what its docstring draws, and every error can be acted on."""

import re
import signal

import pytest

from puna import errors
from puna.errors import DiskFull, FormatError, Interrupted, MissingExtra, PunaError, UsageError, unknown_name


def test_the_docstring_draws_every_error_and_only_those() -> None:
    drawn = re.findall(r"^(?:[|`]-- )?([A-Z]\w+) {2,}", errors.__doc__ or "", flags=re.MULTILINE)
    defined = [name for name in errors.__all__ if name[0].isupper()]
    assert sorted(drawn) == sorted(defined)
    assert all(issubclass(getattr(errors, name), PunaError) for name in defined)


def test_exit_codes_are_two_for_usage_one_for_failure_and_128_plus_the_signal() -> None:
    assert (UsageError("x").exit_code, DiskFull("x").exit_code) == (2, 1)
    assert Interrupted("x").exit_code == 130
    assert Interrupted("x", signum=signal.SIGTERM).exit_code == 143


def test_an_error_keeps_its_message_and_its_hint() -> None:
    error = FormatError("model.json", "dim", "a number", "'wide'", "write a number")
    assert str(error) == error.message == "model.json: dim: expected a number, got 'wide'"
    assert error.hint == "write a number"
    assert "pip install 'puna[serve]'" in MissingExtra("serving", "uvicorn", "serve").hint


@pytest.mark.parametrize(("name", "offered"), [("trian", "did you mean 'train'? "), ("zzzz", "")])
def test_an_unknown_name_is_answered_with_the_nearest_and_all_known(name: str, offered: str) -> None:
    error = unknown_name("verb", name, ["train", "adapt"])
    assert error.message == f"unknown verb '{name}'"
    assert error.hint == f"{offered}known: adapt, train"
