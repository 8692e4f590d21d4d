"""A mount from its beginning to its end: `Mount(context, mountpoint, options).run()`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import FfsError
from fireflyfs.fuse import device, protocol
from fireflyfs.fuse.arrivals import Arrivals, AtWork
from fireflyfs.fuse.backend import Backend
from fireflyfs.fuse.handshake import handshake
from fireflyfs.fuse.operations.files import drop_handle
from fireflyfs.fuse.options import MountOptions
from fireflyfs.fuse.protocol import InitFlag
from fireflyfs.fuse.service import Service
from fireflyfs.fuse.usrbio.host import RingHost
from fireflyfs.fuse.volume import Volume

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
STUCK_S: Final = 0.2  # when every service thread has been busy for so long, one more is started
IDLE_SPARE: Final = 2  # idle threads beyond which one that was added ends
UNMOUNT_GRACE_S: Final = 3.0  # for programs to leave, before they are cut off
STORE_S: Final = 20.0  # to store what waits, when servers may be away
JOIN_S: Final = 10.0


class Mount:
    """One mounted file system. `run` blocks; `stop` may be called from any thread or signal handler's thread."""

    def __init__(
        self,
        backend: Backend,
        mountpoint: Path,
        options: MountOptions | None = None,
        *,
        clock: Clock | None = None,
        rings: Callable[[Volume], RingHost] | None = None,
    ) -> None:
        """`rings` makes what serves applications' rings (docs/usrbio.md); without it the mount has none."""
        self.mountpoint = Path(os.path.abspath(mountpoint))
        self.options = options or MountOptions()
        self.clock = clock or SystemClock()
        self.volume = Volume(backend, self.options, self.clock, self._notify)
        self.volume.reads_before = self._reads_before
        self.volume.interrupted = self._interrupted
        self.volume.mountpoint = self.mountpoint
        self.volume.rings = rings(self.volume) if rings is not None else None
        self._session_fd = -1
        self._at_work = AtWork()
        self._request_bytes_max = self.options.request_bytes_max
        self._lock = threading.Lock()
        self._services: list[Service] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._stopping = threading.Event()
        self._finishing = threading.Lock()
        self._finished = False

    def start(self) -> None:
        """Mount, and serve in threads. Raises OSError or FfsError; nothing is mounted then."""
        options = self.options
        self._session_fd = device.mount(
            self.mountpoint,
            source=options.source,
            allow_other=options.allow_other,
            default_permissions=True,
            max_read=options.request_bytes_max,
            use_helper=options.use_helper,
            subtype=options.subtype,
        )
        try:
            session = handshake(self._session_fd, options.request_bytes_max, local_locks=options.local_locks)
            self._request_bytes_max = session.request_bytes_max
            self.volume.kernel_says_who_keeps_set_id = bool(session.flags & InitFlag.HANDLE_KILLPRIV_V2)
            if not session.flags & InitFlag.SETXATTR_EXT:
                self.volume.setxattr_in = protocol.SETXATTR_IN_OLD
            for _ in range(options.threads):
                self._add_service()
        except BaseException:
            with contextlib.suppress(OSError):
                device.unmount(self.mountpoint)
            os.close(self._session_fd)
            raise
        number = device.device_number(self.mountpoint)
        if options.kernel_readahead_kib and number and os.geteuid() == 0:
            device.set_kernel_readahead(number, options.kernel_readahead_kib)
        for _ in range(options.flush_threads):
            self._spawn(self.volume.write_behind.run_background, "flush")
        self._spawn(self.volume.session_ender.run, "sessions")
        self._spawn(self.volume.locks.run, "locks")
        self._spawn(self.volume.locks.held.watch, "held-locks")
        self._spawn(self.volume.names.run, "names")
        self._spawn(self._maintain, "maintain")
        if self.volume.rings is not None:
            self.volume.rings.start()
        log.info("mounted on %s", self.mountpoint)

    def run(self) -> None:
        """Mount, serve until unmounted by anyone, and clean up. In the main thread SIGTERM and SIGINT unmount."""
        if self._session_fd < 0:
            self.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stop_soon())
        while not self._ended.wait(0.5):  # in pieces, so that signals are seen
            pass
        self._finish()

    def _stop_soon(self) -> None:
        if not self._stopping.is_set():
            threading.Thread(target=self.stop, name="stop", daemon=True).start()

    def stop(self) -> None:
        """Unmount: at once when nobody uses it; else after a moment, cutting off who still does. Everything written
        is stored first. Returns when all is over."""
        self._stopping.set()
        give_up_s = self.clock.monotonic_s() + UNMOUNT_GRACE_S
        while not self._ended.is_set():
            try:
                device.unmount(self.mountpoint, lazy=False)
                break
            except OSError as exc:
                if exc.errno != errno.EBUSY:
                    log.warning("cannot unmount %s: %s", self.mountpoint, exc)
            if self.clock.monotonic_s() >= give_up_s:
                log.warning("%s is in use; cutting off its users", self.mountpoint)
                storing = threading.Thread(target=self._store_all, name="fuse-store", daemon=True)
                storing.start()
                storing.join(STORE_S)
                self.volume.backend.give_up()
                with contextlib.suppress(OSError):
                    device.unmount(self.mountpoint, lazy=True, force=True)
                break
            time.sleep(TICK_S)
        self._ended.wait(JOIN_S)
        self._ended.set()
        self._finish()

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and what is held now."""
        return {**self.volume.statistics(), "threads": len(self._services)}

    def _notify(self, *message: bytes | memoryview) -> bool:
        """Tell the kernel something; whether it listened. ENOENT: it does not know the inode, so nothing was stale."""
        try:
            os.writev(self._session_fd, message)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.EBADF):
                log.warning("the kernel refused a notification: %s", exc)
            return False
        return True

    def _spawn(self, body: object, name: str) -> None:
        assert callable(body)
        thread = threading.Thread(target=body, name=f"fuse-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _add_service(self) -> None:
        arrivals = Arrivals(self._session_fd, self._at_work)
        service = Service(arrivals, self.volume, self._request_bytes_max, self._may_end)
        with self._lock:
            self._services.append(service)
        self._spawn(lambda: self._serve(service), "service")

    def _serve(self, service: Service) -> None:
        try:
            service.run()
        except Exception:
            log.exception("a service thread died")
        with self._lock:
            added = service not in self._services
            if not added:
                self._services.remove(service)
        if not added:
            self._ended.set()

    def _reads_before(self, nodeid: int, unique: int) -> bool:
        return any(each.reads(nodeid, unique) for each in list(self._services))

    def _interrupted(self, unique: int) -> None:
        for each in list(self._services):
            each.interrupted(unique)

    def _may_end(self, service: Service) -> bool:
        if len(self._services) <= self.options.threads:
            return False
        with self._lock:
            idle = sum(1 for each in self._services if not each.busy_since_s)
            if len(self._services) > self.options.threads and idle > IDLE_SPARE:
                self._services.remove(service)
                return True
        return False

    def _maintain(self) -> None:
        """Start flushes of old bytes; let go of callers that were killed; add a thread while all wait for servers."""
        while not self._ended.wait(TICK_S):
            self.volume.write_behind.want_old()
            now = time.monotonic()
            with self._lock:
                services = list(self._services)
            for each in services:
                each.look_after_callers()
            stuck = all(each.busy_since_s and now - each.busy_since_s > STUCK_S for each in services)
            if services and stuck and len(services) < self.options.threads_max:
                try:
                    self._add_service()
                except OSError as exc:
                    log.warning("cannot add a service thread: %s", exc)

    def _store_all(self) -> None:
        for live in self.volume.table.all():
            try:
                self.volume.flush(live)
                self.volume.record(live)
            except FfsError as exc:
                log.error("inode %d: not stored at the unmount: %s", live.id, exc)

    def _finish(self) -> None:
        """Store and let go of everything. Who comes second waits: the process may end with its return."""
        with self._finishing:
            if not self._finished:
                self._finished = True
                self._let_go()

    def _let_go(self) -> None:
        if self.volume.rings is not None:
            self.volume.rings.stop()
        # Files that were open when the connection ended never get their RELEASE.
        for handle in self.volume.handles.open_files():
            drop_handle(self.volume, handle)
        self.volume.write_behind.stop_background(self.options.flush_threads)
        self.volume.session_ender.stop()
        self.volume.locks.stop()
        self.volume.locks.held.stop()
        self.volume.names.stop()
        with contextlib.suppress(OSError):
            if device.is_mounted(self.mountpoint):
                device.unmount(self.mountpoint)
        end_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end_s - time.monotonic()))
        os.close(self._session_fd)
        if not any(thread.is_alive() for thread in self._threads):
            self.volume.segments.close()
        log.info("unmounted %s: %s", self.mountpoint, self.statistics())
