"""3FS's convenience layer over `hf3fs_py_usrbio`: the same names, docs/usrbio.md."""
