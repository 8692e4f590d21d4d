"""Which staging slot may be filled next. A slot is reused only when every copy that was begun from it is over.

No clock, no device: the caller waits for what `next_wait` names. Not safe for threads; its user has a lock.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Protocol

from fireflyfs.common.errors import Code, error


class Event(Protocol):
    """A point in a device's queue of copies."""

    def done(self) -> bool:
        """Whether everything before it is over. Raises when the device failed."""

    def wait(self) -> None:
        """Until then. Raises when the device failed: nothing is known about the copies before it."""


class State(enum.Enum):
    """What a slot's memory is used for."""

    FREE = "free"
    FILLING = "filling"  # its user writes to it, or reads it
    IN_FLIGHT = "in flight"  # the device does, until its event
    UNKNOWN = "unknown"  # a copy may be under way and there is no event for it: only after the device was drained


class SlotRing:
    """Slots 0 to count - 1, used one after the other."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError("staging needs a slot")
        self._states = [State.FREE] * count
        self._events: dict[int, Event] = {}
        self._order: deque[int] = deque(range(count))  # the one to use next first

    def __len__(self) -> int:
        return len(self._states)

    def state(self, slot: int) -> State:
        return self._states[slot]

    def next_wait(self) -> Event | None:
        """What must have passed before `take` gives a slot; None: nothing.

        Raises FfsError: BUSY when every slot is in its user's hands, IO_ERROR when what is left is unknown.
        """
        slot = self._candidate()
        return self._events[slot] if self._states[slot] is State.IN_FLIGHT else None

    def take(self) -> int:
        """A slot to fill. Raises as `next_wait`, and ValueError when what that gave has not passed."""
        slot = self._candidate()
        self._use(slot)
        return slot

    def in_flight(self, slot: int, event: Event) -> None:
        """Copies from or to a taken slot were begun; `event` comes after them."""
        self._end(slot, State.IN_FLIGHT)
        self._events[slot] = event

    def claim(self, slot: int) -> None:
        """Back into its user's hands, to read what the device copied to it: its event has passed, or ValueError."""
        if self._states[slot] is not State.IN_FLIGHT:
            raise ValueError(f"slot {slot} is {self._states[slot].value}, not in flight")
        self._use(slot)

    def put_back(self, slot: int) -> None:
        """No copy of a taken slot was begun, or all are over."""
        self._end(slot, State.FREE)

    def lose(self, slot: int) -> None:
        """Copies of a taken slot may have been begun, and no event tells when they are over."""
        self._end(slot, State.UNKNOWN)

    def events(self) -> list[Event]:
        """Of all slots in flight, in the order they were begun."""
        return [self._events[slot] for slot in self._order if slot in self._events]

    def drained(self) -> None:
        """The device has finished everything that was begun: what was in flight or unknown is free."""
        self._events.clear()
        for slot, state in enumerate(self._states):
            if state is not State.FILLING:
                self._states[slot] = State.FREE

    def _candidate(self) -> int:
        for wanted in (State.FREE, State.IN_FLIGHT):
            for slot in self._order:
                if self._states[slot] is wanted:
                    return slot
        if self._order:
            raise error(Code.IO_ERROR, "the device failed and its copies cannot be waited for: no staging slot is safe")
        raise error(Code.BUSY, "all staging slots are in use")

    def _use(self, slot: int) -> None:
        event = self._events.get(slot)
        if event is not None and not event.done():
            raise ValueError(f"slot {slot} has a copy under way")
        self._events.pop(slot, None)
        self._order.remove(slot)
        self._states[slot] = State.FILLING

    def _end(self, slot: int, state: State) -> None:
        if self._states[slot] is not State.FILLING:
            raise ValueError(f"slot {slot} is {self._states[slot].value}, not taken")
        self._states[slot] = state
        self._order.append(slot)
