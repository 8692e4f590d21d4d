"""Which replica of a chain may be brought up to date next, so that nothing right is overwritten. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def next_to_resync(serving: Sequence[int], wrong: Collection[int]) -> int | None:
    """One of the `wrong` targets, or None when none can be mended this way.

    It goes to the end of the chain and is made whatever the last of the others is, in every chunk. So that one must be
    right in all that was found. `serving`: head first.
    """
    for target in reversed(serving):
        if target in wrong:
            others = [other for other in serving if other != target]
            if others and others[-1] not in wrong:
                return target
    return None
