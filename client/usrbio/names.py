"""Names of the links in `3fs-virt/iovs`, as 3FS has them. Pure.

`{uuid}[.b{block size}]` registers a region, `{uuid}.{r|w}{io_depth}[.p{h|n|l}].t{timeout ms}[.f{flags, binary}]` a
ring. What a ring needs stands in its header too, and that counts; the name tells what kind it is.
"""

from __future__ import annotations

import errno
import uuid
from dataclasses import dataclass

from fireflyfs.client.usrbio.layout import RingOptions

_PRIORITIES = {-1: "h", 0: "n", 1: "l"}


@dataclass(frozen=True, slots=True)
class LinkName:
    """`id` is what submissions name; `ring`: it is a ring, not a region."""

    id: bytes
    ring: bool


def ring_name(id_: bytes, options: RingOptions) -> str:
    parts = [id_.hex(), f"{'r' if options.for_read else 'w'}{options.io_depth}"]
    if options.priority:
        parts.append(f"p{_PRIORITIES[options.priority]}")
    parts.append(f"t{options.timeout_ms}")
    if options.flags:
        parts.append(f"f{options.flags:b}")
    return ".".join(parts)


def parse(name: str) -> LinkName:
    """Raises OSError EINVAL with what is wrong."""
    first, *fields = name.split(".")
    try:
        id_ = uuid.UUID(first).bytes
    except ValueError:
        raise OSError(errno.EINVAL, f"{name!r}: a link here begins with a UUID") from None
    ring = False
    for field in fields:
        kind, value = field[:1], field[1:]
        if kind in ("r", "w"):
            ring = True
            ok = value.removeprefix("-").isdecimal()
        elif kind in ("b", "t"):
            ok = value.isdecimal()
        elif kind == "p":
            ok = value in _PRIORITIES.values()
        else:
            ok = kind == "f" and bool(value) and set(value) <= {"0", "1"}
        if not ok:
            raise OSError(errno.EINVAL, f"{name!r}: {field!r} is no field of a link's name")
    return LinkName(id_, ring)
