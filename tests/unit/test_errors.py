"""The error table is complete and each code leads to the class that says what to do."""

from __future__ import annotations

import errno

import pytest

from fireflyfs.common import errors
from fireflyfs.common.errors import Code, Reaction


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_row(code: Code) -> None:
    meaning = errors.MEANINGS[code]
    raised = errors.error(code, "why")
    assert raised.reaction is meaning.reaction
    assert raised.message == "why"
    assert (meaning.errno == 0) == (code is Code.OK)


def test_unknown_code_is_kept_in_the_text() -> None:
    raised = errors.error(4242, "strange")
    assert raised.code is Code.INTERNAL
    assert "4242" in raised.message


def test_oserror_both_ways() -> None:
    raised = errors.from_oserror(FileNotFoundError(errno.ENOENT, "x", "/some/path"))
    assert raised.code is Code.NO_ENTRY
    assert raised.to_oserror("p").errno == errno.ENOENT
    assert isinstance(raised.to_oserror("p"), FileNotFoundError)
    assert errors.from_oserror(OSError(errno.EXFULL, "x")).code is Code.IO_ERROR
    assert errors.MEANINGS[Code.CHAIN_VERSION].reaction is Reaction.REFRESH
