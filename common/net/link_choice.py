"""Which link a process takes to a server: what its caller says, else the environment, else its configuration."""

from __future__ import annotations

import os
from enum import Enum
from typing import Final

from fireflyfs.common.errors import Code, error

LINK_ENV: Final = "FFS_LINK"


class LinkChoice(Enum):
    """`auto` takes the best that both ends offer; the others insist on one."""

    AUTO = "auto"
    RDMA = "rdma"
    TCP = "tcp"
    SHM = "shm"

    @property
    def tries_rdma(self) -> bool:
        return self in (LinkChoice.AUTO, LinkChoice.RDMA)

    @property
    def tries_shm(self) -> bool:
        return self in (LinkChoice.AUTO, LinkChoice.SHM)


LINKS: Final = tuple(choice.value for choice in LinkChoice)


def parse_link(text: str, what: str = "link") -> LinkChoice:
    """Raises CONFIG, with `what` as the name of the setting."""
    try:
        return LinkChoice(text.strip().lower())
    except ValueError as exc:
        raise error(Code.CONFIG, f"{what} is {text!r}; it takes auto, rdma, tcp or shm") from exc


def check_name(text: str) -> None:
    """For configurations: raises ValueError for what is no link."""
    if text not in LINKS:
        raise ValueError(f"link must be one of {', '.join(LINKS)}, not {text!r}")


def choose_link(said: str | None = None, configured: str = LinkChoice.AUTO.value) -> LinkChoice:
    """`said` by who started this (an option, an argument), else FFS_LINK, else `configured`. Raises CONFIG."""
    if said:
        return parse_link(said)
    text = os.environ.get(LINK_ENV, "").strip()
    return parse_link(text, LINK_ENV) if text else parse_link(configured)
