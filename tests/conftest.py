"""For all tests: which worker runs what of real clusters, and a skipped test can be made a failure."""

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
# Of these, what another cluster beside it makes slower and no more: they do not wait for servers to be missed, nor look
# at how soon something happens. What is not named here must not run beside its like.
COMPANIONABLE = frozenset(
    f"tests/e2e/test_{name}.py"
    for name in (
        "cli", "cluster_semantics", "engines", "fsspec", "fsspec_many", "fsspec_suites", "fsspec_users", "mount_copies",
        "mount_fsx", "mount_libfuse", "mount_model", "mount_python_suites", "nonsense", "quotas_in_use", "rdma_guest",
        "record_dataset", "trash", "usrbio_clients",
    )
)  # fmt: skip
NO_SKIPS = "FFS_NO_SKIPS"  # set by `make test`: a machine that lacks something must not look like a pass


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Real clusters share mounts and cores: under pytest-xdist one worker runs them one after the other, first.

    The others run those that bear company, a module at a time, then single tests; the first does too when it is done.
    By where a test is, not by pytest-xdist's group marks: those change ids, which newer versions of pytest do not see.
    """
    if config.getvalue("dist") in ("no", "each"):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleForClusters(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return _cluster_scope(nodeid) or nodeid

    return ByModuleForClusters(config, log)


def _cluster_scope(nodeid: str) -> str:
    """What runs in one worker, in order; empty: a test that needs no cluster."""
    module = nodeid.partition("::")[0]
    if not module.startswith(E2E):
        return ""
    return module if module in COMPANIONABLE else "real clusters"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real clusters take longest: they begin first. Many short tests at the end keep all workers busy."""
    items.sort(key=lambda item: not _cluster_scope(item.nodeid))


@pytest.fixture(autouse=True)
def _alone_where_needed(request: pytest.FixtureRequest) -> None:
    """See `alone`; tests of the checker of faults alone need no cluster."""
    if _cluster_scope(request.node.nodeid) == "real clusters" and request.node.get_closest_marker("e2e") is not None:
        request.getfixturevalue("alone")


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Real clusters of one run that are killed and timed must not run side by side: they would time each other out."""
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
