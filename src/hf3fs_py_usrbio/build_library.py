"""Builds libhf3fs_api_shared.so with the package: a plain C library, which is no extension module of Python's."""

from __future__ import annotations

import os

from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):  # type: ignore[misc]  # setuptools says no types
    """Without a C compiler the package is installed without the library (`optional` in pyproject.toml)."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version in the name: programs and loaders ask for just this one."""
        return os.path.join(*fullname.split(".")) + ".so"
