#!/bin/bash
# Fetches programs written for 3FS into DIR, for tests/e2e/test_usrbio_clients.py: the Python half of its I/O module as
# DeepSeek published it, and a reader with a compiled extension. They are unpacked and not installed: the first asks for
# its own compiled half, the other for a GPU's libraries.
set -euo pipefail
dir=$1
pip=${2:-pip}
[ -e "$dir/.complete" ] && exit 0
rm -rf "$dir" && mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Its setup.py asks git for a revision: of any repository.
git init -q "$work/git"
git -C "$work/git" -c user.name=x -c user.email=x@localhost commit -q --allow-empty -m x
GIT_DIR="$work/git/.git" "$pip" download --quiet --disable-pip-version-check --no-binary :all: --no-deps \
  --dest "$work" 'hf3fs-py-usrbio==1.2.9'
tar -xzf "$work"/hf3fs_py_usrbio-*.tar.gz -C "$dir" --strip-components=1
"$pip" download --quiet --disable-pip-version-check --only-binary :all: --no-deps --dest "$work" \
  'fastsafetensor-3fs-reader==0.3.3'
python3 -m zipfile -e "$work"/fastsafetensor_3fs_reader-*.whl "$dir"
touch "$dir/.complete"
