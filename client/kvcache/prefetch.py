"""`get_batch` in the background: a few threads, a bounded number of jobs, each in parts so that it can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from fireflyfs.client.kvcache.api import MISS, Out
from fireflyfs.common.errors import Code, error

THREADS = 2
JOBS_MAX = 256
PART_KEYS = 64


class PrefetchJob:
    """One `prefetch` (api.py)."""

    def __init__(self, keys: Sequence[bytes], out: Sequence[Out]) -> None:
        self._keys = keys
        self._out = out
        self._known: list[int | None] = [None] * len(keys)
        self._cancelled = threading.Event()
        self.future: Future[None] | None = None

    def run(self, get: Callable[[Sequence[bytes], Sequence[Out]], list[int]]) -> None:
        """In a thread of the cache. What cannot be had is a miss."""
        try:
            for start in range(0, len(self._keys), PART_KEYS):
                if self._cancelled.is_set():
                    return
                part = slice(start, start + PART_KEYS)
                self._known[part] = get(self._keys[part], self._out[part])
        finally:
            self._known = [MISS if known is None else known for known in self._known]

    def done(self) -> bool:
        return self.future is not None and self.future.done()

    def poll(self) -> list[int | None]:
        return list(self._known)

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Raises TimeoutError, and what `get_batch` raises."""
        assert self.future is not None
        if not wait([self.future], timeout_s).done:
            raise TimeoutError(f"the prefetch goes on after {timeout_s} s")
        if not self.future.cancelled():
            self.future.result()
        return [MISS if known is None else known for known in self._known]

    def cancel(self) -> bool:
        self._cancelled.set()
        return not self.done()


class Prefetcher:
    """The threads of one cache, started with its first prefetch."""

    def __init__(self, get: Callable[[Sequence[bytes], Sequence[Out]], list[int]]) -> None:
        self._get = get
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: set[PrefetchJob] = set()
        self._closed = False

    def start(self, keys: Sequence[bytes], out: Sequence[Out]) -> PrefetchJob:
        """Raises OVERLOADED when too many are under way."""
        job = PrefetchJob(keys, out)
        with self._lock:
            if self._closed:
                raise error(Code.CANCELLED, "the cache is closed")
            if len(self._jobs) >= JOBS_MAX:
                raise error(Code.OVERLOADED, f"{JOBS_MAX} prefetches are under way")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ffs-prefetch")
            self._jobs.add(job)
            job.future = self._pool.submit(job.run, self._get)
        job.future.add_done_callback(lambda _: self._over(job))
        return job

    def _over(self, job: PrefetchJob) -> None:
        with self._lock:
            self._jobs.discard(job)

    def close(self) -> None:
        """Cancels what is under way and waits for it."""
        with self._lock:
            self._closed = True
            jobs, pool = list(self._jobs), self._pool
        for job in jobs:
            job.cancel()
        if pool is not None:
            pool.shutdown(wait=True)
