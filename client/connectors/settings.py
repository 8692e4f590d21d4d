"""How a connector is told which cache to use, and the keys that it stores blocks under."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from fireflyfs.client.kvcache.api import Cache
from fireflyfs.common.errors import Code, error

SECTION = "fireflyfs"  # where a host's free configuration holds ours
DIGEST_BYTES = 32
TAG_BYTES = 8


_KINDS: dict[str, type[str] | type[int] | type[float]] = {
    "mgmtd": str, "namespace": str, "replication": int, "capacity_bytes": int, "ttl_s": float,
}  # fmt: skip


@dataclass(frozen=True)
class CacheSettings:
    """One cache. Unknown names are errors."""

    mgmtd: str  # "host:port,host:port"
    namespace: str = ""  # empty: made from the host's name and the fingerprint, so that layouts never meet
    replication: int = 1
    capacity_bytes: int = 0  # 0: what the storage targets have
    ttl_s: float = 0.0  # 0: for ever

    @classmethod
    def of(cls, given: object) -> Self:
        """From a table such as {"mgmtd": "host:7700", "ttl_s": 3600}. Raises CONFIG with what is wrong."""
        if not isinstance(given, Mapping):
            raise error(Code.CONFIG, f'no table "{SECTION}" with "mgmtd" in the connector\'s configuration')
        for name in given:
            if name not in _KINDS:
                raise error(Code.CONFIG, f"unknown setting {SECTION}.{name}; there are {', '.join(_KINDS)}")
        if not given.get("mgmtd"):
            raise error(Code.CONFIG, f"{SECTION}.mgmtd is missing: the address that `ffs nodes list` shows")
        values: dict[str, Any] = {}
        for name, value in given.items():
            kind = _KINDS[name]
            try:
                values[name] = kind(value)
            except (TypeError, ValueError):
                raise error(Code.CONFIG, f"{SECTION}.{name} is {value!r}, not a {kind.__name__}") from None
        settings = cls(**values)
        if settings.replication < 1 or settings.capacity_bytes < 0 or not 0 <= settings.ttl_s < float("inf"):
            raise error(Code.CONFIG, f"{SECTION}: replication is at least 1, capacity_bytes and ttl_s at least 0")
        return settings

    @classmethod
    def of_url(cls, url: str) -> Self:
        """From "fireflyfs://host:port,host:port/namespace?ttl_s=3600"."""
        parts = urlsplit(url)
        if parts.scheme != SECTION or not parts.netloc:
            raise error(Code.CONFIG, f"{url!r} is not {SECTION}://host:port/namespace")
        given: dict[str, str] = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls.of({"mgmtd": parts.netloc, "namespace": unquote(parts.path.strip("/")), **given})

    def open(self, host: str, block_size: int, fingerprint: str) -> Cache:
        """The cache, made on first use. Raises FfsError for one that was made for another layout or block size."""
        from fireflyfs.client.kvcache import KVCache  # brings the whole client: only now

        cache: Cache = KVCache.open(
            self.mgmtd,
            self.namespace or f"{host}-{fingerprint[:16]}",
            block_size=block_size,
            replication=self.replication,
            capacity_bytes=self.capacity_bytes,
            ttl_s=self.ttl_s,
            fingerprint=fingerprint,
        )
        return cache


def digest_of(name: str) -> bytes:
    """32 bytes of a block's name: a sha256 in hexadecimal digits as it is, anything else hashed."""
    if len(name) == 2 * DIGEST_BYTES:
        try:
            digest = bytes.fromhex(name)
        except ValueError:
            digest = b""
        if digest.hex() == name:  # fromhex takes capitals and white space too: names that differ have other digests
            return digest
    return hashlib.sha256(name.encode()).digest()


def tag_of(*parts: object) -> bytes:
    """8 bytes that tell shards and kinds of blocks apart, behind a block's digest."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=TAG_BYTES).digest()
