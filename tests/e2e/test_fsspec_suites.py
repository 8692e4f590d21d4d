"""fsspec's own abstract test suites, unchanged, against a real local cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from fireflyfs.client.fsspec import FireflyFileSystem

pytestmark = pytest.mark.e2e


class Fixtures(AbstractFixtures):
    """What the suites run on."""

    @pytest.fixture
    def fs(self, mgmtd: str) -> FireflyFileSystem:
        found = fsspec.filesystem("ffs", mgmtd=mgmtd)
        assert isinstance(found, FireflyFileSystem)
        return found

    @pytest.fixture
    def fs_path(self, fs: FireflyFileSystem) -> Iterator[str]:
        path = f"/suite-{uuid.uuid4().hex}"
        fs.mkdir(path)
        yield path
        fs.rm(path, recursive=True)


class TestCopy(Fixtures, AbstractCopyTests):
    """Inside the cluster."""


class TestGet(Fixtures, AbstractGetTests):
    """To local files."""


class TestPut(Fixtures, AbstractPutTests):
    """From local files."""


class TestPipe(Fixtures, AbstractPipeTests):
    """From memory."""


class TestOpen(Fixtures, AbstractOpenTests):
    """Modes."""
