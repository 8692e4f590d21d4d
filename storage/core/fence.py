"""When a worker that lost mgmtd must stop serving.

mgmtd takes a silent worker's targets out of their chains after its failure interval. A worker that counts from its last
answered heartbeat, and stops earlier than that, can never answer a read beside the chain that replaced it.
"""

from __future__ import annotations

FENCE_S = 3.0


def is_fenced(now_s: float, last_success_s: float | None, fence_s: float = FENCE_S) -> bool:
    """Whether serving must stop. `last_success_s`: when the last answered heartbeat was *sent*, not answered."""
    return last_success_s is None or now_s - last_success_s >= fence_s
