"""Makes a target's folder on this machine."""

from __future__ import annotations

from pathlib import Path

from fireflyfs.storage.engine.store import create_target


def format_target(path: Path, cluster_id: str, target_id: int) -> None:
    """Make `path` the folder of `target_id`. Raises when it already belongs to another target or cluster."""
    path.mkdir(parents=True, exist_ok=True)
    create_target(path, cluster_id, target_id)
