"""`ffs://host:port,host:port/path` taken apart and put together. Pure.

The authority names the cluster managers; without one (`ffs:///path`, or a plain path) storage options or the
environment do. A plain path starts at the root, with or without a leading '/'. fsspec splits URLs at '::', so an IPv6
address goes into the storage option `mgmtd`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SCHEME = "ffs"
_ADDRESS = re.compile(r"(?P<host>[^\s/:,@?#]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")


def split(url: str) -> tuple[tuple[str, ...], str]:
    """The managers that `url` names, possibly none, and the path: absolute, without a '/' at its end.

    Raises ValueError for an authority that is not HOST:PORT[,HOST:PORT...].
    """
    authority, path = "", url
    if url.startswith(f"{SCHEME}://"):
        authority, slash, path = url[len(SCHEME) + 3 :].partition("/")
        path = slash + path
    elif url.startswith(f"{SCHEME}::"):
        path = url[len(SCHEME) + 2 :]
    return (addresses(authority) if authority else ()), normal(path)


def normal(path: str) -> str:
    """From the root, without a '/' at the end, and with one '/' between names."""
    return "/" + "/".join(name for name in path.split("/") if name)


def above(path: str) -> Iterator[str]:
    """The directories that a normal path lies in, the root last."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def join(managers: tuple[str, ...], path: str) -> str:
    """What `split` takes apart."""
    return f"{SCHEME}://{','.join(managers)}{normal(path)}"


def addresses(text: str) -> tuple[str, ...]:
    """HOST:PORT[,HOST:PORT...] one by one. Raises ValueError, which says how a cluster is named."""
    found = tuple(part.strip() for part in text.split(","))
    for part in found:
        match = _ADDRESS.fullmatch(part)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise ValueError(
                f"{part!r} is no HOST:PORT of a cluster manager: write ffs://host:port/path, or ffs:///path with the "
                "storage option mgmtd='host:port'"
            )
    return found
