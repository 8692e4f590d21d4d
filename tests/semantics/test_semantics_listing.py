"""Directories that change while they are read; telldir, seekdir and rewinddir."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from semantics.syscalls import Directory

pytestmark = pytest.mark.e2e


def fill(folder: Path, count: int) -> list[bytes]:
    names = [b"name-%06d" % number for number in range(count)]
    directory = os.open(folder, os.O_RDONLY)
    for name in names:
        os.mknod(name, 0o100644, dir_fd=directory)
    os.close(directory)
    return names


@pytest.mark.parametrize("count", [0, 1, 100, 3000])
def test_every_entry_once(root: Path, count: int) -> None:
    names = fill(root, count)
    directory = Directory(root)
    assert sorted(directory.names()) == names
    assert directory.read() is None
    directory.rewind()
    assert sorted(directory.names()) == names
    directory.close()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_removing_while_reading(root: Path, share: float) -> None:
    """Each entry that stays is seen once, and everything is seen before it is removed."""
    names = fill(root, 5000)
    drawn = random.Random(5)
    directory = Directory(root)
    seen = []
    for name in directory.names():
        seen.append(name)
        if drawn.random() < share:
            os.unlink(root / os.fsdecode(name))
    directory.close()
    assert sorted(seen) == names


def test_removing_ahead_and_making_anew_while_reading(root: Path) -> None:
    names = fill(root, 4000)
    drawn = random.Random(6)
    lasting = set(names[::3])
    loose = [name for name in names if name not in lasting]
    directory = Directory(root)
    seen = []
    for number, name in enumerate(directory.names()):
        seen.append(name)
        if number % 2 and loose:
            victim = root / os.fsdecode(loose.pop(drawn.randrange(len(loose))))
            os.unlink(victim)
            if number % 4 == 1:
                victim.touch()
            (root / f"new-{number}").touch()
    directory.close()
    assert len(seen) == len(set(seen))
    assert lasting <= set(seen)


def test_renaming_while_reading(root: Path) -> None:
    names = fill(root, 3000)
    (root / "sub").mkdir()
    directory = Directory(root)
    seen = []
    for name in directory.names():
        seen.append(name)
        if name in names:
            os.rename(root / os.fsdecode(name), root / "sub" / os.fsdecode(name))
    directory.close()
    assert sorted(seen) == [*names, b"sub"]


def test_positions_last(root: Path) -> None:
    """From a position that telldir gave, what follows is what followed then, also after entries were removed."""
    fill(root, 4000)
    directory = Directory(root)
    positions = []
    order = []
    while True:
        position = directory.tell()
        name = directory.read()
        if name is None:
            break
        positions.append(position)
        order.append(name)
    drawn = random.Random(7)
    for place in [0, len(order) - 1, *drawn.choices(range(len(order)), k=50)]:
        directory.seek(positions[place])
        assert directory.read() == order[place]
    gone = set(drawn.sample([name for name in order if name not in (b".", b"..")], 1500))
    for name in gone:
        os.unlink(root / os.fsdecode(name))
    for place in drawn.choices(range(len(order)), k=30):
        directory.seek(positions[place])
        rest = [name for name in iter(directory.read, None) if name not in gone]
        assert sorted(rest) == sorted(name for name in order[place:] if name not in gone)
    directory.close()


def test_a_name_removed_while_it_was_listed_is_gone(root: Path) -> None:
    """The rest of a page that was read before must not bring a name back."""
    fill(root, 900)
    directory = os.open(root, os.O_RDONLY)
    with os.scandir(directory) as entries:
        next(entries)
        for name in os.listdir(root)[::7]:
            os.unlink(root / name)
        left = set(os.listdir(root))
        for entry in entries:
            assert (root / entry.name).exists() == (entry.name in left), entry.name
    os.close(directory)


def test_two_readers_do_not_disturb_each_other(root: Path) -> None:
    names = fill(root, 2500)
    one, two = Directory(root), Directory(root)
    seen_one = [name for _, name in zip(range(700), one.names(), strict=False)]
    seen_two = list(two.names())
    two.rewind()
    seen_one += one.names()
    assert sorted(seen_one) == sorted(seen_two) == names
    one.close()
    two.close()


def test_rewinding_shows_what_is_there_now(root: Path) -> None:
    fill(root, 10)
    directory = Directory(root)
    assert len(list(directory.names())) == 10
    (root / "later").touch()
    (root / "name-000003").unlink()
    directory.rewind()
    assert len(list(directory.names())) == 10
    directory.close()
    assert os.listdir(root).count("later") == 1


@pytest.mark.slow
def test_a_hundred_thousand_entries(root: Path) -> None:
    names = fill(root, 100_000)
    directory = Directory(root)
    seen = []
    middle = 0
    for number, name in enumerate(directory.names()):
        seen.append(name)
        if number == 50_000:
            middle = directory.tell()
        if number % 10 == 0:
            os.unlink(root / os.fsdecode(name))
    assert sorted(seen) == names
    directory.seek(middle)
    rest = [name for name in directory.names() if (root / os.fsdecode(name)).exists()]
    assert sorted(rest) == sorted(name for number, name in enumerate(seen) if number > 50_000 and number % 10)
    directory.close()


def test_dot_and_dot_dot(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    directory = Directory(root / "d")
    assert sorted(iter(directory.read, None)) == [b".", b"..", b"e"]
    directory.close()
    with os.scandir(root / "d") as entries:
        assert [(entry.name, entry.inode()) for entry in entries] == [("e", (root / "d" / "e").stat().st_ino)]


def test_a_removed_directory_is_empty(root: Path) -> None:
    (root / "d").mkdir()
    held = os.open(root / "d", os.O_RDONLY)
    directory = Directory(root / "d")
    (root / "d").rmdir()
    assert [name for name in iter(directory.read, None) if name not in (b".", b"..")] == []
    assert os.fstat(held).st_nlink == 0
    with pytest.raises(FileNotFoundError):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=held)
    with pytest.raises(FileNotFoundError):
        os.mkdir("f", dir_fd=held)
    os.close(held)
    directory.close()
