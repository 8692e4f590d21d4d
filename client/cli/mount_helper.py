"""`mount.ffs`: what mount(8) runs for `mount -t ffs HOST:PORT[,HOST:PORT] DIR -o ...` and for lines of fstab.

It is found when it stands in /sbin: `ln -s .../bin/mount.ffs /sbin/mount.ffs`. Its exit codes are those of mount(8).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE, FAILED = 1, 32


def main(arguments: Sequence[str] | None = None) -> int:
    """`SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, as mount(8) calls its helpers."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    places: list[str] = []
    options: list[str] = []
    fake = False
    left = iter(given)
    for argument in left:
        if argument == "-o":
            options.append(next(left, ""))
        elif argument in ("-t", "-N"):
            next(left, "")
        elif argument.startswith("-"):
            fake = fake or "f" in argument
        else:
            places.append(argument)
    if len(places) != 2:
        print("mount.ffs: usage: mount -t ffs HOST:PORT[,HOST:PORT] DIR [-o OPTIONS]", file=sys.stderr)
        return USAGE
    if fake:
        return 0
    from fireflyfs.client.cli.main import app

    source, directory = places
    command = ["--mgmtd", source, "mount", directory, *(f"-o{text}" for text in options if text)]
    try:
        app.main(command)
    except SystemExit as exc:
        return 0 if not exc.code else USAGE if exc.code == 2 else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
