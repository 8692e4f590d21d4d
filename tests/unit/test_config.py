"""Configuration: what is accepted, and what each mistake is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fireflyfs.common import config
from fireflyfs.common.errors import Code, GiveUp


@dataclass
class Inner:
    port: int = 80
    hosts: list[str] = field(default_factory=list)


@dataclass
class Example:
    name: str
    ratio: float = 0.5
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    items: list[Inner] = field(default_factory=list)


def test_defaults_and_nested_values() -> None:
    value = config.parse(Example, 'name = "a"\nratio = 1\n[inner]\nport = 9\n[[items]]\nhosts = ["x"]\n')
    assert value == Example("a", 1.0, True, Inner(9), [Inner(80, ["x"])])


def test_dump_reads_back() -> None:
    value = Example('quo"te\\', 2.0, False, Inner(1, ["a", "b"]), [Inner(2), Inner(3, ["c"])])
    assert config.parse(Example, config.dump(value)) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "a"\n[inner]\nprot = 1', "unknown key inner.prot; did you mean inner.port?"),
        ('name = "a"\nxyz = 1\nqqqq = 2', "unknown key xyz, qqqq; known: inner, items, name, on, ratio"),
        ("ratio = 1.0", "missing key name"),
        ('name = "a"\n[inner]\nport = "x"', "inner.port must be int, got 'x'"),
        ('name = "a"\n[inner]\nport = true', "inner.port must be int, got True"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    with pytest.raises(GiveUp, match="configuration") as caught:
        config.parse(Example, text)
    assert says in caught.value.message
    assert caught.value.code is Code.CONFIG


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GiveUp, match=r"nothing\.toml"):
        config.load(Example, tmp_path / "nothing.toml")
