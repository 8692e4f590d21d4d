"""Rings of applications (docs/usrbio.md): `host` in the mount's process, `agent` in processes beside it.

The mount knows who registered what, and with which right; it starts agents, hands them rings, regions and files, and
learns from them what was written. An agent moves the bytes, and talks to storage by itself.
"""
