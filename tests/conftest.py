"""For all tests: real-process tests stay in one worker, and a skipped test can be made a failure."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from reachable import reachable_folder

settings.register_profile("house", deadline=None)  # how fast it is, is measured in bench/
settings.load_profile("house")

E2E = ("tests/e2e/", "tests/fault/")  # where all real-process tests are
NO_SKIPS = "FFS_NO_SKIPS"  # set by `make test`: a machine that lacks something must not look like a pass


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Real clusters share mounts and cores: under pytest-xdist one worker runs them one after the other, first.

    By where a test is, not by pytest-xdist's group marks: those change ids, which newer versions of pytest do not see.
    """
    if config.getvalue("dist") in ("no", "each"):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerForClusters(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return "real clusters" if nodeid.startswith(E2E) else nodeid

    return OneWorkerForClusters(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real clusters take longest: they begin first."""
    items.sort(key=lambda item: not item.nodeid.startswith(E2E))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Real clusters of one run must not run side by side: on two cores they would time each other out."""
    base = tmp_path_factory.getbasetemp()
    with (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base).joinpath("e2e.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail("two workers run real clusters: see pytest_xdist_make_scheduler in tests/conftest.py")
        yield


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder for one test that other users get to. What is mounted in it must be made after it."""
    with reachable_folder("test") as folder:
        yield folder


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With FFS_NO_SKIPS a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get(NO_SKIPS):
        return
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped and session.exitstatus == 0:
        session.exitstatus = 1
        reporter.ensure_newline()
        reporter.write_line(
            f"{skipped} tests were skipped and {NO_SKIPS} is set: this machine lacks something that they need "
            "(the reasons are below). To accept that: make test FFS_ALLOW_SKIPS=1",
            red=True,
        )
