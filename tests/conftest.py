"""For all tests: real-process tests stay in one worker, and a skipped test can be made a failure."""

from __future__ import annotations

import os

import pytest

NO_SKIPS = "FFS_NO_SKIPS"  # set by `make test`: a machine that lacks something must not look like a pass


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real clusters share mounts and cores: under pytest-xdist they run one after the other in one worker, first."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("e2e"))
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


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
