"""The connector for vLLM: scheduler and workers in one process, called in the order in which vLLM calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engines.interfaces import differences, recorded, stand_in
from engines.vllm_host import BLOCK, MODULE, Host, running
from fireflyfs.client.connectors.vllm_plan import Scheduled, StepPlanner, Transfer
from fireflyfs.client.kvcache.hashes import vllm_block_hashes
from fireflyfs.common.errors import Code, FfsError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with running(monkeypatch) as host:
        yield host


def test_it_is_what_vllm_calls() -> None:
    with stand_in("vllm"):
        import fireflyfs.client.connectors.vllm as module

        assert differences(module.FireflyConnector, recorded("vllm")[MODULE]["KVConnectorBase_V1"]) == []


@pytest.mark.parametrize(("ranks", "mla"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("load_async", [False, True])
def test_another_engine_goes_on_from_what_one_computed(host: Host, ranks: int, mla: bool, load_async: bool) -> None:
    first, second = (host.engine(ranks, mla, load_async=load_async) for _ in range(2))
    tokens = list(range(500, 518))  # four blocks, and two tokens
    one = first.request("one", tokens)
    assert first.schedule(one) == (0, False)
    first.step((one, 0, 10))
    first.step((one, 10, 8), new=False)
    first.flush()
    assert len(host.opened.blocks) == 4 * (1 if mla else ranks)
    wanted = first.content(one, 16)
    first.finish(one)

    two = second.request("two", [*tokens[:16], 1, 2, 3, 4, 5])
    two.blocks = []
    assert second.schedule(two) == (16, load_async)
    if load_async:
        second.step()
        while second.received != {"two"}:
            second.step()
    second.step((two, 16, 5))
    assert not second.failed
    assert second.content(two, 16) == wanted
    second.flush()
    assert len(host.opened.blocks) == 5 * (1 if mla else ranks), "only the new block was saved"
    assert len(set(host.opened.fingerprints)) == 1


def test_a_whole_prompt_in_the_cache_leaves_its_last_token_to_compute(host: Host) -> None:
    engine = host.engine()
    tokens = list(range(16))
    one = engine.request("one", tokens)
    engine.schedule(one)
    engine.step((one, 0, 16))
    engine.flush()
    assert engine.schedule(engine.request("two", tokens)) == (12, False)
    assert engine.schedule(engine.request("three", tokens[:3])) == (0, False)
    assert engine.schedule(engine.request("four", tokens), computed=8) == (4, False)


def test_a_rank_that_lacks_a_block_ends_the_match(host: Host) -> None:
    engine = host.engine(2)
    one = engine.request("one", list(range(17)))
    engine.schedule(one)
    engine.step((one, 0, 17))
    engine.flush()
    lost = vllm_block_hashes(one.tokens, BLOCK)[2] + b"\0\1"
    del host.opened.blocks[lost]
    assert engine.scheduler.get_num_new_matched_tokens(engine.request("two", one.tokens), 0) == (8, False)


@pytest.mark.parametrize("load_async", [False, True])
@pytest.mark.parametrize("why", ["gone", "error", "other length"])
def test_blocks_that_went_are_reported_and_never_taken_for_loaded(host: Host, why: str, load_async: bool) -> None:
    engine = host.engine(1, False, load_async=load_async)
    one = engine.request("one", list(range(17)))
    engine.schedule(one)
    engine.step((one, 0, 17))
    engine.flush()
    two = engine.request("two", one.tokens)
    assert engine.schedule(two)[0] == 16
    hashes = vllm_block_hashes(one.tokens, BLOCK)
    if why == "gone":
        del host.opened.blocks[hashes[1] + b"\0\0"]
    elif why == "other length":
        host.opened.blocks[hashes[1] + b"\0\0"] = bytes(100)
    else:
        host.opened.caches[0].fail = FfsError(Code.UNAVAILABLE)
    engine.step()
    while load_async and engine.received != {"two"}:
        engine.step()
    assert engine.failed == (set(two.blocks[:4]) if why == "error" else {two.blocks[1]})
    assert engine.workers[0].get_block_ids_with_load_errors() == set()


def test_an_unreachable_cache_is_no_match(host: Host) -> None:
    engine = host.engine()
    host.opened.caches[-1].fail = FfsError(Code.UNAVAILABLE)
    assert engine.schedule(engine.request("one", list(range(9)))) == (0, False)
    unconnected = host.connector("SCHEDULER", 1, 0, False, {})
    assert unconnected.get_num_new_matched_tokens(engine.request("two", list(range(9))), 0) == (0, False)
    assert unconnected.reset_cache() is False
    assert engine.scheduler.reset_cache() is True


def test_what_does_not_keep_up_is_dropped(host: Host) -> None:
    engine = host.engine(1, False, staging_bytes=1, save_wait_s=0)
    one = engine.request("one", list(range(80)))
    engine.schedule(one)
    engine.step((one, 0, 80))
    engine.flush()
    counts = engine.workers[0]._saver.counts
    assert counts.stored + counts.dropped == 20
    assert len(host.opened.blocks) == counts.stored >= 3, "three slots of one page were free"


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"pipeline_parallel_size": 2}, {}, "pipeline_parallel_size over 1"),
        ({"decode_context_parallel_size": 2}, {}, "decode_context_parallel_size over 1"),
        ({"groups": [1, 2]}, {}, "2 kinds of cache"),
        ({}, {"speed": 1}, "unknown options"),
        ({}, {"fireflyfs": None}, "no table"),
    ],
)
def test_what_is_not_supported_is_said_at_the_start(host: Host, changes: Any, extra: Any, message: str) -> None:
    with pytest.raises(FfsError, match=message):
        host.connector("WORKER", 1, 0, False, extra, **changes)


def test_workers_of_different_layouts_are_refused(host: Host) -> None:
    scheduler = host.connector("SCHEDULER", 2, 0, False, {})
    pages = host.module.Pages
    with pytest.raises(FfsError, match="2 different layouts"):
        scheduler.set_xfer_handshake_metadata({0: pages(64, "a"), 1: pages(64, "b")})


# The planner


def hashes(count: int) -> list[bytes]:
    return [b"%032d" % number for number in range(count)]


def test_blocks_are_saved_once_when_they_are_full_and_named() -> None:
    planner = StepPlanner(4, 4)
    known = hashes(2)
    planner.wanted("r", known, 14, 0)
    planner.allocated("r", known, [], 0)
    assert planner.step([Scheduled("r", [7, 8, 9, 5], True, 0, 6)]) == ([], [Transfer("r", (known[0],), (7,))])
    # The third block is full in this step, but its last token was sampled in it: no name yet.
    assert planner.step([Scheduled("r", [], False, 6, 6)]) == ([], [Transfer("r", (known[1],), (8,))])
    known += hashes(4)[2:]
    assert planner.step([Scheduled("r", [6], False, 12, 1)]) == ([], [Transfer("r", (known[2],), (9,))])
    assert planner.step([Scheduled("r", [], False, 13, 1)]) == ([], [])
    planner.finished("r")
    assert len(planner) == 0
    assert planner.step([Scheduled("r", [], False, 14, 9)]) == ([], [])


def test_a_block_whose_name_comes_late_is_saved_then() -> None:
    planner = StepPlanner(4, 4)
    known: list[bytes] = []
    planner.allocated("r", known, [], 0)
    assert planner.step([Scheduled("r", [7, 8], True, 0, 3)]) == ([], [])
    assert planner.step([Scheduled("r", [], False, 3, 1)]) == ([], []), "vLLM schedules ahead of what it has sampled"
    known += hashes(1)
    assert planner.step([Scheduled("r", [], False, 4, 1)]) == ([], [Transfer("r", (known[0],), (7,))])


def test_a_preempted_request_saves_nothing_twice() -> None:
    planner = StepPlanner(4, 4)
    known = hashes(4)
    planner.allocated("r", known, [], 0)
    assert planner.step([Scheduled("r", [1, 2, 3], True, 0, 8)])[1] == [Transfer("r", tuple(known[:2]), (1, 2))]
    planner.wanted("r", known, 13, 0)
    planner.allocated("r", known, [4, 5, 6, 7], 8)
    loads, saves = planner.step([Scheduled("r", [4, 5, 6, 7], True, 8, 5)])
    assert loads == [Transfer("r", tuple(known[:2]), (4, 5))]
    assert saves == [Transfer("r", (known[2],), (6,))]


def test_what_the_engine_had_itself_is_not_saved() -> None:
    planner = StepPlanner(4, 4)
    known = hashes(4)
    assert planner.wanted("r", known, 17, 8) == tuple(known[2:4])
    planner.allocated("r", known, [1, 2, 3, 4, 5], 4)
    loads, saves = planner.step([Scheduled("r", [1, 2, 3, 4, 5], True, 12, 5)])
    assert loads == [Transfer("r", (known[2],), (3,))]
    assert saves == [Transfer("r", (known[3],), (4,))]


def test_coarse_blocks_have_the_last_of_their_fine_hashes() -> None:
    planner = StepPlanner(16, 4)
    known = hashes(9)
    assert planner.wanted("r", known, 40, 0) == (known[3], known[7])
    with pytest.raises(ValueError, match="a hash for every 5"):
        StepPlanner(16, 5)


def test_a_finished_request_is_not_loaded_and_too_few_blocks_are_an_error() -> None:
    planner = StepPlanner(4, 4)
    known = hashes(4)
    planner.wanted("r", known, 17, 0)
    with pytest.raises(ValueError, match="2 blocks for 4"):
        planner.allocated("r", known, [1, 2], 16)
    planner.allocated("r", known, [1, 2, 3, 4], 16)
    planner.finished("r")
    assert planner.step([]) == ([], [])
