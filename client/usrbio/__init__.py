"""I/O through rings in shared memory, with the interface of 3FS's USRBIO: docs/usrbio.md.

`layout` is the format of a ring; `ring`, `iovec` and `files` are the application's side, which `hf3fs_py_usrbio`
re-exports. The agent's side is `fireflyfs.fuse.usrbio`. These modules import nothing that takes long to load.
"""
