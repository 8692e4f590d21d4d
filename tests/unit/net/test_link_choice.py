"""Which link is taken, and what is said when one that is demanded cannot be had."""

from __future__ import annotations

import asyncio

import pytest

from fireflyfs.client.session import ClientContext
from fireflyfs.common import config as configuration
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address
from fireflyfs.common.net.dial import dial
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LINK_ENV, LINKS, LinkChoice, check_name, choose_link
from fireflyfs.common.net.rdma import adapters
from fireflyfs.common.net.rdma.adapters import Adapters
from fireflyfs.common.net.rdma.settings import RdmaSettings
from fireflyfs.common.net.server import LinkServer
from fireflyfs.fuse.options import MountOptions
from fireflyfs.meta.server import MetaConfig
from fireflyfs.storage.server import StorageConfig


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Adapters(RdmaSettings(devices=("none such",)))
    monkeypatch.setattr(adapters, "_adapters", none)
    assert none.names == []


def test_an_argument_goes_before_the_environment_and_that_before_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LINK_ENV, raising=False)
    assert choose_link() is LinkChoice.AUTO
    assert choose_link(configured="shm") is LinkChoice.SHM
    monkeypatch.setenv(LINK_ENV, " TCP ")
    assert choose_link(configured="shm") is LinkChoice.TCP
    assert choose_link("rdma", configured="shm") is LinkChoice.RDMA
    assert choose_link("") is LinkChoice.TCP
    assert Identity("test").link is LinkChoice.TCP


def test_what_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINK_ENV, "carrier pigeon")
    with pytest.raises(FfsError, match=LINK_ENV) as caught:
        choose_link()
    assert caught.value.code is Code.CONFIG
    with pytest.raises(ValueError, match="auto, rdma, tcp, shm"):
        check_name("carrier pigeon")
    for name in LINKS:
        check_name(name)


def test_rdma_that_this_machine_does_not_have(no_device: None) -> None:
    """A server does not start, and a client does not connect: both are told what to do."""
    with pytest.raises(FfsError, match="ffs rdma check") as caught:
        LinkServer(Identity("test", link=LinkChoice.RDMA), {})
    assert caught.value.code is Code.CONFIG
    adapters.check_link(LinkChoice.AUTO)
    with pytest.raises(FfsError, match="ffs rdma check") as caught:  # before it looks for the cluster
        ClientContext.connect(["127.0.0.1:1"], link="rdma", connect_timeout_s=60)
    assert caught.value.code is Code.CONFIG


@pytest.mark.parametrize("schema", [MetaConfig, StorageConfig, MountOptions])
def test_configurations_have_it(schema: type) -> None:
    common = 'cluster_id = "c"\nnode_id = 1\nmgmtd = []\n'
    needed = {
        MetaConfig: common + 'kv = "memory"\n',
        StorageConfig: common + 'workers = [{targets = [{target_id = 1, path = "p"}]}]\n',
        MountOptions: "",
    }[schema]
    assert configuration.parse(schema, needed).link == "auto"
    assert configuration.parse(schema, 'link = "shm"\n' + needed).link == "shm"
    with pytest.raises(FfsError, match="auto, rdma, tcp, shm") as caught:
        configuration.parse(schema, 'link = "smoke signals"\n' + needed)
    assert caught.value.code is Code.CONFIG


async def _dialed(server: LinkServer, link: LinkChoice, address: Address) -> str:
    await server.start()
    try:
        dialed = await asyncio.to_thread(dial, Identity("test", link=link), address_of(server, address), 5.0)
        dialed.close()
        return str(dialed.welcome.link.name)
    finally:
        await server.stop(0)


def address_of(server: LinkServer, like: Address) -> Address:
    return Address(server.tcp, server.unix if like.unix else "", like.host_id or server.identity.host_id)


def test_links_that_are_insisted_on(no_device: None, tmp_path) -> None:
    here, elsewhere = Address("", "yes"), Address("", "yes", "another host")

    def to(address: Address, link: LinkChoice, offered: LinkChoice = LinkChoice.AUTO) -> str:
        server = LinkServer(Identity("test", link=offered), {}, unix_path=str(tmp_path / "unix"))
        return asyncio.run(_dialed(server, link, address))

    assert to(here, LinkChoice.AUTO) == "SHM"
    assert to(here, LinkChoice.TCP) == "TCP"
    assert to(here, LinkChoice.SHM) == "SHM"
    assert to(elsewhere, LinkChoice.AUTO) == "TCP"
    assert to(here, LinkChoice.AUTO, offered=LinkChoice.TCP) == "TCP"
    for address, offered in ((elsewhere, LinkChoice.AUTO), (here, LinkChoice.TCP)):
        with pytest.raises(FfsError, match="shares no memory with us") as caught:
            to(address, LinkChoice.SHM, offered)
        assert caught.value.code is Code.CONFIG
    with pytest.raises(FfsError, match="ffs rdma check") as caught:
        to(here, LinkChoice.RDMA)
    assert caught.value.code is Code.UNAVAILABLE
