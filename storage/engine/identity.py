"""Whose target a directory is: `target.toml`, written once, checked at every open.

path/target.toml    format, cluster_id, target_id
path/meta/          RocksDB
path/blocks/        block files, named <log2 of the block size>-<stripe>
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import NamedTuple

from fireflyfs.common.errors import Code, error, from_oserror

IDENTITY_FILE = "target.toml"
IDENTITY_FORMAT = 1
_HARMLESS = {"lost+found"}


class TargetIdentity(NamedTuple):
    cluster_id: str
    target_id: int


def read_identity(path: Path) -> TargetIdentity | None:
    """The identity of the target at path; None when there is none. Raises CONFIG and VERSION_MISMATCH."""
    try:
        text = (path / IDENTITY_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise from_oserror(exc) from exc
    try:
        table = tomllib.loads(text)
        stored_format = int(table["format"])
        identity = TargetIdentity(str(table["cluster_id"]), int(table["target_id"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise error(Code.CONFIG, f"{path / IDENTITY_FILE} cannot be understood: {exc}") from exc
    if stored_format != IDENTITY_FORMAT:
        raise error(
            Code.VERSION_MISMATCH,
            f"{path} holds a target of format {stored_format}, this release reads {IDENTITY_FORMAT}",
        )
    return identity


def require_identity(path: Path, cluster_id: str, target_id: int) -> None:
    """Raises unless path holds exactly this target of this cluster."""
    found = read_identity(path)
    if found is None:
        raise error(Code.CONFIG, f"{path} holds no target: create target {target_id} there first")
    if found.cluster_id != cluster_id:
        raise error(Code.WRONG_CLUSTER, f"{path} belongs to cluster {found.cluster_id!r}, not to {cluster_id!r}")
    if found.target_id != target_id:
        raise error(Code.CONFIG, f"{path} holds target {found.target_id}, not {target_id}")


def create_target(path: Path, cluster_id: str, target_id: int) -> None:
    """Make path an empty target. One that is already this target stays as it is.

    Raises WRONG_CLUSTER or CONFIG when path holds something else; nothing changed then.
    """
    try:
        if read_identity(path) is not None:
            require_identity(path, cluster_id, target_id)
            return
        path.mkdir(parents=True, exist_ok=True)
        foreign = sorted({entry.name for entry in path.iterdir()} - _HARMLESS - {IDENTITY_FILE + ".new"})
        if foreign:
            raise error(Code.CONFIG, f"{path} is not empty (it has {foreign[0]!r}): not made a target")
        text = f"format = {IDENTITY_FORMAT}\ncluster_id = {json.dumps(cluster_id)}\ntarget_id = {int(target_id)}\n"
        new = path / (IDENTITY_FILE + ".new")
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path / IDENTITY_FILE)
        sync_directory(path)
    except OSError as exc:
        raise from_oserror(exc) from exc


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
