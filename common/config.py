"""Typed TOML configuration: a dataclass is the schema, its defaults work, an unknown key is an error.

Values are checked against the field types (int, float, bool, str, lists of them, nested dataclasses, and dictionaries
from str to any of these). Every problem of a file is reported at once, each with its full key and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from fireflyfs.common.errors import Code, error

C = TypeVar("C")


def load(schema: type[C], path: Path) -> C:
    """Read `path` as `schema`. Raises CONFIG with all problems in its message."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise error(Code.CONFIG, f"cannot read configuration {path}: {exc}") from exc
    return parse(schema, text, source=str(path))


def parse(schema: type[C], text: str, *, source: str = "configuration") -> C:
    """Read TOML `text` as `schema`. Raises CONFIG with all problems in its message."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise error(Code.CONFIG, f"{source} is not valid TOML: {exc}") from exc
    problems: list[str] = []
    value = _build(schema, data, "", problems)
    if problems:
        raise error(Code.CONFIG, f"{source}: " + "; ".join(problems))
    return typing.cast(C, value)


def check(schema: type[Any], text: str, *, source: str = "configuration") -> None:
    """Check TOML `text` that sets some keys of `schema`: what it leaves out comes from elsewhere.

    Raises CONFIG with every unknown key and every value of a wrong type; where nothing of `schema` is missing, also
    with what the values say about each other.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise error(Code.CONFIG, f"{source} is not valid TOML: {exc}") from exc
    problems: list[str] = []
    _build(schema, data, "", problems, partial=True)
    if problems:
        raise error(Code.CONFIG, f"{source}: " + "; ".join(problems))


def dump(config: Any) -> str:
    """`config` (a dataclass instance) as TOML that `parse` reads back."""
    lines: list[str] = []
    _dump(config if isinstance(config, dict) else _fields_of(config), "", lines)
    return "\n".join(lines).strip() + "\n"


def _build(schema: type[Any], data: dict[str, Any], prefix: str, problems: list[str], *, partial: bool = False) -> Any:
    """`partial`: keys without a default may be missing at this level; then no value is made."""
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    values: dict[str, Any] = {}
    strange = []  # like no key that there is: what there is, is told once for all of them
    for key, raw in data.items():
        if key in fields:
            values[key] = _convert(hints[key], raw, prefix + key, problems)
        elif near := difflib.get_close_matches(key, fields, n=1):
            problems.append(f"unknown key {prefix}{key}; did you mean {prefix}{near[0]}?")
        else:
            strange.append(prefix + key)
    if strange:
        problems.append(f"unknown key {', '.join(strange)}; known: {', '.join(sorted(fields))}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in data
    ]
    if not partial:
        problems += [f"missing key {prefix}{name}" for name in missing]
    if problems or missing:
        return None
    try:
        return schema(**values)
    except ValueError as exc:  # a check in __post_init__
        problems.append(f"{prefix.rstrip('.') or 'value'}: {exc}")
        return None


def _convert(hint: Any, raw: Any, key: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(raw, dict):
            return _build(hint, raw, key + ".", problems)
    elif origin in (list, tuple):
        if isinstance(raw, list):
            inner = typing.get_args(hint)[0]
            items = [_convert(inner, item, f"{key}[{i}]", problems) for i, item in enumerate(raw)]
            return items if origin is list else tuple(items)
    elif origin is dict:
        if isinstance(raw, dict):
            inner = typing.get_args(hint)[1]
            return {name: _convert(inner, item, f"{key}.{name}", problems) for name, item in raw.items()}
    elif origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(inner, raw, key, problems)
    elif hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    elif isinstance(raw, hint) and not (isinstance(raw, bool) and hint is not bool):
        return raw
    name = getattr(hint, "__name__", str(hint))
    problems.append(f"{key} must be {name}, got {raw!r}")
    return None


def _fields_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _dump(values: dict[str, Any], prefix: str, lines: list[str]) -> None:
    tables: list[tuple[str, dict[str, Any]]] = []
    arrays: list[tuple[str, list[Any]]] = []
    for key, value in values.items():
        if value is None:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            tables.append((key, _fields_of(value)))
        elif isinstance(value, dict):
            tables.append((key, value))
        elif isinstance(value, list | tuple) and value and dataclasses.is_dataclass(value[0]):
            arrays.append((key, list(value)))
        else:
            lines.append(f"{key} = {_literal(value)}")
    for key, table in tables:
        lines += ["", f"[{prefix}{key}]"]
        _dump(table, f"{prefix}{key}.", lines)
    for key, items in arrays:
        for item in items:
            lines += ["", f"[[{prefix}{key}]]"]
            _dump(_fields_of(item), f"{prefix}{key}.", lines)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)
