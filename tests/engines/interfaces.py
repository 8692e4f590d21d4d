"""What hosts ask of a connector, as data: recorded from their packages, and made classes for tests without them."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

RECORDED = Path(__file__).with_name("interfaces.json")
# package -> module -> names that connectors use, or that a test of them needs
WANTED = {
    "sglang": {
        "sglang.srt.mem_cache.hicache_storage": [
            "HiCacheStorage", "HiCacheStorageConfig", "HiCacheStorageExtraInfo", "PoolHitPolicy", "PoolName",
            "PoolTransfer", "PoolTransferResult",
        ],
    },
    "vllm": {
        "vllm.distributed.kv_transfer.kv_connector.v1.base": [
            "KVConnectorBase_V1", "KVConnectorHandshakeMetadata", "KVConnectorMetadata", "KVConnectorRole",
        ],
    },
    "lmcache": {
        "lmcache.v1.storage_backend.connector": ["ConnectorAdapter"],
        "lmcache.v1.storage_backend.connector.base_connector": ["RemoteConnector"],
    },
}  # fmt: skip


def describe(cls: type) -> dict[str, Any]:
    """A class as data: what it is, and its methods or fields."""
    if issubclass(cls, enum.Enum):
        return {"kind": "enum", "text": issubclass(cls, str), "members": {m.name: m.value for m in cls}}
    if dataclasses.is_dataclass(cls):
        named = [
            (field.name, field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
            for field in dataclasses.fields(cls)
        ]
        return {"kind": "dataclass", "fields": [[name, "needed" if needed else "optional"] for name, needed in named]}
    methods = {}
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            words = [_written(parameter) for parameter in inspect.signature(function).parameters.values()]
            words += ["async"] * inspect.iscoroutinefunction(function)
            words += ["abstract"] * bool(getattr(function, "__isabstractmethod__", False))
            methods[name] = " ".join(words)
    return {"kind": "class", "methods": methods}


def _written(parameter: inspect.Parameter) -> str:
    """`name`, `name=` where it has a default, `*name` and `**name`."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    return stars + parameter.name + ("" if parameter.default is parameter.empty else "=")


def rebuilt(name: str, described: dict[str, Any]) -> type:
    """A class with that interface. Its methods that are not abstract do nothing."""
    if described["kind"] == "enum":
        return enum.Enum(name, described["members"], type=str if described["text"] else None)  # type: ignore[return-value]
    if described["kind"] == "dataclass":
        fields = [
            (field, Any) if need == "needed" else (field, Any, dataclasses.field(default=None))
            for field, need in described["fields"]
        ]
        return dataclasses.make_dataclass(name, fields)  # type: ignore[arg-type]
    body: dict[str, Any] = {}
    for method, words in described["methods"].items():

        def nothing(self: Any, *arguments: Any, **named: Any) -> None:
            return None

        body[method] = abstractmethod(nothing) if "abstract" in words.split() else nothing
    return type(name, (ABC,), body)


def recorded(package: str) -> dict[str, dict[str, Any]]:
    """module -> name -> description."""
    modules: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())[package]["modules"]
    return modules


@contextmanager
def stand_in(package: str, **extras: Any) -> Iterator[dict[str, Any]]:
    """Within: `package` can be imported, with the recorded classes and nothing else; `extras` replace some of them."""
    mine = f"fireflyfs.client.connectors.{package}"

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == package or name.startswith(mine)]

    before = {name: sys.modules.pop(name) for name in loaded()}
    names: dict[str, Any] = {}
    for module, classes in recorded(package).items():
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            if path not in sys.modules:
                sys.modules[path] = ModuleType(path)
                sys.modules[path].__path__ = []
        for name, described in classes.items():
            names[name] = extras.get(name) or rebuilt(name, described)
            setattr(sys.modules[module], name, names[name])
    try:
        yield names
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def differences(mine: type, described: dict[str, Any]) -> list[str]:
    """Why a host that calls by a described interface could not call `mine`; empty when it can."""
    found: list[str] = []
    for method, words in described["methods"].items():
        given = words.split()
        awaited = "async" in given
        own = inspect.getattr_static(mine, method, None)
        function = getattr(own, "__func__", own)
        if function is None or not inspect.isfunction(function) or method == "__init__":
            continue
        if getattr(function, "__isabstractmethod__", False):
            found.append(f"{method} is abstract and missing")
            continue
        if method not in vars(mine):
            continue
        if inspect.iscoroutinefunction(function) != awaited:
            found.append(f"{method} is {'' if awaited else 'not '}awaited by the host")
        parameters = inspect.signature(function).parameters
        gathers = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        known = [word.rstrip("=") for word in given if word not in ("async", "abstract") and not word.startswith("*")]
        for word in known:
            if word not in parameters and not gathers:
                found.append(f"{method} has no {word}")
        for parameter in parameters.values():
            needed = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL,
            )  # fmt: skip
            if needed and parameter.name not in known:
                found.append(f"{method} wants {parameter.name}, which the host does not give")
    return found
