"""Options of a mount as fstab and `mount -o` write them: `ro,noatime,attr_timeout=5,x-systemd.automount`."""

from __future__ import annotations

from dataclasses import dataclass, field

import click

# The kernel's own: set on the mount once it is made, which needs root.
KERNEL = {
    "ro", "suid", "nosuid", "dev", "nodev", "noexec", "nodiratime", "sync", "dirsync",
}  # fmt: skip
# What they undo, which a mount begins with; and what tells others (mount, systemd, the boot) what to do.
NOTHING = {
    "rw", "exec", "diratime", "async", "defaults",
    "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "default_permissions",
}  # fmt: skip
# Ours: name to the option of `ffs mount`; those with a value, and those without.
VALUES = {
    "attr_timeout": "--attr-timeout",
    "entry_timeout": "--entry-timeout",
    "threads": "--threads",
    "log_file": "--log-file",
    "subtype": "--subtype",
    "link": "--link",
}
SWITCHES = {
    "allow_other": "--allow-other",
    "only_me": "--only-me",
    "relatime": "--relatime",
    "noatime": "--noatime",
    "strict": "--strict",
    "local_locks": "--local-locks",
    "libfuse": "--libfuse",
}


@dataclass(frozen=True)
class Parsed:
    """`arguments` for `ffs mount`, and what the kernel is told."""

    arguments: list[str] = field(default_factory=list)
    kernel: list[str] = field(default_factory=list)


def parse(texts: list[str]) -> Parsed:
    """Raises click's UsageError for an option that nobody knows, or that lacks its value."""
    parsed = Parsed()
    for option in (option for text in texts for option in text.split(",") if option):
        name, _, value = option.partition("=")
        if name in VALUES:
            if not value:
                raise click.UsageError(f"mount option {name} needs a value: {name}=...")
            parsed.arguments.append(f"{VALUES[name]}={value}")
        elif option in SWITCHES:
            parsed.arguments.append(SWITCHES[option])
        elif option in KERNEL:
            parsed.kernel.append(option)
        elif option not in NOTHING and not name.startswith(("x-", "X-", "comment")):
            raise click.UsageError(f"unknown mount option: {option}")
    return parsed


def split(arguments: list[str]) -> list[str]:
    """The arguments of `ffs mount` with every `-o` replaced by what it stands for. Raises UsageError as `parse`."""
    found: list[str] = []
    texts: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            found += [argument, *left]
        elif argument == "-o":
            texts.append(next(left, ""))
        elif argument.startswith("-o") and not argument.startswith("--"):
            texts.append(argument[2:])
        else:
            found.append(argument)
    parsed = parse(texts)
    return [*parsed.arguments, *(f"--kernel={option}" for option in parsed.kernel), *found]
