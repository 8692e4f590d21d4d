"""Answers from before a change are told apart from later ones, also when much has changed since."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fireflyfs.fuse import change_log
from fireflyfs.fuse.change_log import ASKED_MAX, ChangeLog
from fireflyfs.proto import meta_pb2 as m


def test_what_was_changed_after_the_mark() -> None:
    log = ChangeLog()
    log.note(1)
    mark = log.mark()
    log.note(2)
    log.note((3, b"name"))
    assert not log.since(1, mark)
    assert log.since(2, mark)
    assert log.since((3, b"name"), mark)
    assert not log.since(3, mark)
    assert not log.since(2, log.mark())


def test_what_is_forgotten_counts_as_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "KEPT_MAX", 3)
    log = ChangeLog()
    mark = log.mark()
    for inode in (1, 2, 1, 3):
        log.note(inode)
    assert not log.since(9, mark)
    log.note(4)
    assert log.since(9, mark)  # as 2, which had to go, might be
    assert not log.since(9, mark + 2)
    assert log.since(1, mark + 2)


def test_an_answer_that_is_always_overtaken_is_taken_in_the_end() -> None:
    log = ChangeLog()
    asked = []

    def ask() -> m.Inode:
        asked.append(1)
        log.note(7)
        return m.Inode(id=7)

    assert log.newest(ask).id == 7
    assert len(asked) == ASKED_MAX


@pytest.mark.e2e
def test_a_listing_shows_no_attributes_from_before_a_change_here(backend: Any, mounts: Any) -> None:
    """The kernel asks for a page in pieces, and we have read it whole: it would believe what changed in between."""
    root = mounts(backend).mountpoint
    names = [root / f"{'n' * 200}{number:04d}" for number in range(600)]
    for name in names:
        name.touch()
    with os.scandir(root) as entries:
        next(entries).stat()  # else the kernel asks for names alone
        names[-1].write_bytes(b"x" * 50)
        names[-1].chmod(0o600)
        for entry in entries:
            if entry.name != names[-1].name:
                entry.stat()
    found = names[-1].stat()
    assert (found.st_size, found.st_mode & 0o777) == (50, 0o600)


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_listing_shows_no_name_that_went_here_meanwhile(backend: Any, mounts: Any, how: str) -> None:
    """The kernel would take the name for there, with its attributes, as long as it may trust them."""
    root = mounts(backend).mountpoint
    names = [root / f"{'n' * 200}{number:04d}" for number in range(600)]
    for name in names:
        name.touch()
    with os.scandir(root) as entries:
        next(entries).stat()
        if how == "unlink":
            names[-1].unlink()
        else:
            names[-1].rename(root / "zzz")
        for entry in entries:
            if entry.name not in (names[-1].name, "zzz"):
                entry.stat()  # or it would go on with names alone
    assert not names[-1].exists()
