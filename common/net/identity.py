"""Who a process is on the data link: what its HELLO says and what its server compares."""

from __future__ import annotations

from dataclasses import dataclass, field

from fireflyfs.common.ids import ClientId, new_client_id
from fireflyfs.common.net.host import host_id
from fireflyfs.common.net.link_choice import LinkChoice, choose_link


@dataclass(frozen=True, slots=True)
class Identity:
    """`host_id` decides whether shared memory is tried; empty means never. `link` is what this process takes."""

    cluster_id: str
    client_id: ClientId = field(default_factory=new_client_id)
    host_id: str = field(default_factory=host_id)
    link: LinkChoice = field(default_factory=choose_link)
