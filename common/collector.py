"""The garbage collector of a process that serves for long."""

from __future__ import annotations

import gc

# Requests make and drop objects by the hundred, nearly all of them freed by their reference counts. The default, a look
# after 700 new ones, costs a busy storage worker 4 % of its time.
YOUNG_OBJECTS = 20_000


def settle() -> None:
    """Call once everything is loaded: what is there now is never looked at again, the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
