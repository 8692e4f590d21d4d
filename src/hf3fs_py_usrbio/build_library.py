"""Builds the package's plain C libraries, which are no extension modules of Python's: libhf3fs_api_shared.so and
common/native's."""

from __future__ import annotations

import os

from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):  # type: ignore[misc]  # setuptools says no types
    """Without a C compiler the package is installed without them (`optional` in pyproject.toml)."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version in the name: programs and loaders ask for just this one."""
        return os.path.join(*fullname.split(".")) + ".so"
