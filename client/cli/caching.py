"""`ffs cache`: namespaces of the KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.settings import Amount, Settings, pass_settings
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache import KVCache, Namespace, Namespaces
from fireflyfs.common.errors import Code, FfsError

_COLUMNS = [
    ("name", "name"),
    ("block", "block"),
    ("replicas", "replicas"),
    ("capacity", "capacity"),
    ("ttl", "ttl"),
    ("blocks", "blocks"),
    ("used", "used"),
    ("hits", "hits"),
    ("misses", "misses"),
    ("evictions", "evicted"),
    ("damaged", "damaged"),
]


@click.group()
def cache() -> None:
    """The KV cache's namespaces: list, create, show, clear, remove."""


@contextmanager
def _opened(fs: FileSystem, name: str) -> Iterator[KVCache]:
    """A namespace that exists. Raises NO_ENTRY."""
    namespace, file = Namespaces(fs).get(name)
    with KVCache(fs, namespace, file) as opened:
        yield opened


def _row(opened: KVCache) -> dict[str, Any]:
    namespace = opened.namespace
    servers = opened.stats().servers
    return {
        **_facts(namespace),
        "blocks": servers["blocks"],
        "used": output.bytes_text(servers["bytes"]),
        "used_bytes": servers["bytes"],
        **{name: servers[name] for name in ("hits", "misses", "hit_bytes", "puts", "evictions", "expired", "damaged")},
        "workers_unanswered": servers["unanswered"],
        "targets_loading": servers["loading"],
    }


def _facts(namespace: Namespace) -> dict[str, Any]:
    return {
        "name": namespace.name,
        "inode": namespace.inode,
        "block": output.bytes_text(namespace.block_size),
        "block_size": namespace.block_size,
        "replicas": namespace.replication,
        "capacity": output.bytes_text(namespace.capacity_bytes) if namespace.capacity_bytes else "as the targets have",
        "capacity_bytes": namespace.capacity_bytes,
        "ttl": output.age_text(namespace.ttl_s) if namespace.ttl_s else "for ever",
        "ttl_s": namespace.ttl_s,
        "fingerprint": _text(namespace.fingerprint),
        "fingerprint_hex": namespace.fingerprint.hex(),
    }


def _text(fingerprint: bytes) -> str:
    try:
        text = fingerprint.decode()
    except UnicodeDecodeError:
        return fingerprint.hex()
    return text if text.isprintable() else fingerprint.hex()


@cache.command("list")
@pass_settings
def list_caches(settings: Settings) -> None:
    """List namespaces with what they hold. Counters are since the storage workers started."""
    rows = []
    with connect.filesystem(settings) as fs:
        for name in Namespaces(fs).names():
            try:
                with _opened(fs, name) as opened:
                    rows.append(_row(opened))
            except FfsError as exc:
                if exc.code is Code.NO_ENTRY:
                    continue  # removed since it was listed
                if exc.code not in (Code.INVALID, Code.ACCESS_DENIED):
                    raise
                click.echo(f"ffs: {name}: {exc.message}", err=True)  # whoever put it there, the others are shown
    output.show_rows(settings, rows, _COLUMNS, empty="there is no namespace: `ffs cache create` makes one")


@cache.command()
@click.argument("name")
@click.option("--block-size", type=click.IntRange(1), required=True, metavar="BYTES", help="Of the largest block.")
@click.option("--replication", type=click.IntRange(1), default=1, show_default=True, help="Replicas, at least.")
@click.option(
    "--capacity", type=click.IntRange(0), default=0, metavar="BYTES", help="Of all blocks; 0: as the targets have."
)
@click.option("--ttl", type=Amount(0), default=0.0, metavar="SECONDS", help="After a put; 0: for ever.")
@click.option("--fingerprint", default="", metavar="TEXT", help="Of the model and layout: others are refused.")
@pass_settings
def create(
    settings: Settings, name: str, block_size: int, replication: int, capacity: int, ttl: float, fingerprint: str
) -> None:
    """Make a namespace, before its first user does it."""
    with connect.filesystem(settings) as fs:
        namespace, _ = Namespaces(fs).open(
            name,
            block_size=block_size,
            replication=replication,
            capacity_bytes=capacity,
            ttl_s=ttl,
            fingerprint=fingerprint.encode(),
        )
    output.done(settings, f"namespace {name} is there", **_facts(namespace))


@cache.command()
@click.argument("name")
@pass_settings
def show(settings: Settings, name: str) -> None:
    """Show a namespace with its counters, since the storage workers started."""
    with connect.filesystem(settings) as fs, _opened(fs, name) as opened:
        output.show_record(settings, _row(opened))


def _empty(opened: KVCache, question: str, yes: bool) -> None:
    """Remove every block, when whoever asks is sure of it."""
    if not yes:
        click.confirm(question, abort=True, err=True)
    opened.clear()


@cache.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def clear(settings: Settings, name: str, yes: bool) -> None:
    """Remove every block of a namespace."""
    with connect.filesystem(settings) as fs, _opened(fs, name) as opened:
        _empty(opened, f"Remove every block of {name}?", yes)
    output.done(settings, f"namespace {name} is empty", name=name)


@cache.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def remove(settings: Settings, name: str, yes: bool) -> None:
    """Remove a namespace with its blocks."""
    with connect.filesystem(settings) as fs, _opened(fs, name) as opened:
        _empty(opened, f"Remove {name} and every block of it?", yes)
        Namespaces(fs).remove(name)
    output.done(settings, f"namespace {name} is removed", name=name)
