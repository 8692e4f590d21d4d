"""The whole check on a cluster in memory that changes between any two things that the check sees.

What the cluster can do: updates lock the head first, commit from the tail up, and may be seen half done at any moment;
files are made, written, appended to, cut and removed by several clients at once. What it cannot do: lose anything.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from fireflyfs.client.fsck import check
from fireflyfs.client.fsck.check import Check
from fireflyfs.client.fsck.core.facts import ABSENT, Content, Copy, File, Finding, Key, Kind, Look, Suspect, Writer
from fireflyfs.client.fsck.core.scan import Lost
from fireflyfs.common.errors import Code, FfsError, error

CHUNK = 65536
PAGE = 3
NOBODY = b"n" * 16


class World:
    """Chains of three replicas, files, and clients that take a step whenever the check looks at something."""

    def __init__(self, seed: int, clients: int, chains: int = 2) -> None:
        self.chance = random.Random(seed)
        self.serving = {chain: [chain * 10 + place for place in range(3)] for chain in range(1, chains + 1)}
        self.versions = dict.fromkeys(self.serving, 1)
        self.held: dict[int, dict[Key, Copy]] = {t: {} for members in self.serving.values() for t in members}
        self.busy: set[tuple[int, Key]] = set()
        self.found_files: dict[int, File] = {}
        self.next_id = 100
        self.now_s = 0.0
        self.updates = 0
        self.unreadable: set[int] = set()
        self.clients = [self.client() for _ in range(clients)]
        self.dropped: list[Key] = []

    # What clients do

    def client(self) -> Iterator[None]:
        while True:
            inode = self.next_id
            self.next_id += 1
            yield
            order = list(self.serving)
            self.chance.shuffle(order)
            file = self.found_files[inode] = File(inode, 0, 0, CHUNK, tuple(order), writing=True)
            yield
            for _ in range(self.chance.randrange(4)):
                index = self.chance.randrange(4)
                yield from self.update(file.chain_of(index), Key(inode, index), self.chance.choice([9, CHUNK]))
            yield
            self.close(inode)
            for _ in range(self.chance.randrange(3)):
                yield
                yield from self.chance.choice([self.append, self.cut])(inode)
            yield
            self.change(inode, removed=True)
            for index in range(8):
                yield
                yield from self.update(file.chain_of(index), Key(inode, index), None)
            del self.found_files[inode]

    def change(self, inode: int, **fields: object) -> None:
        self.found_files[inode] = self.found_files[inode]._replace(**fields)  # type: ignore[arg-type]

    def close(self, inode: int) -> None:
        """As meta does it: length and end of the session in one moment."""
        file = self.found_files[inode]
        ends = [0]
        for index in range(8):
            copy = self.held[self.serving[file.chain_of(index)][0]].get(Key(inode, index))
            if copy is not None and copy.content is not None:
                ends.append(index * CHUNK + copy.content.length)
        self.change(inode, writing=False, length=max(file.length, *ends))

    def append(self, inode: int) -> Iterator[None]:
        self.change(inode, writing=True)
        yield
        index = self.chance.randrange(8)
        yield from self.update(self.found_files[inode].chain_of(index), Key(inode, index), CHUNK)
        yield
        self.close(inode)

    def cut(self, inode: int) -> Iterator[None]:
        file = self.found_files[inode]
        length = self.chance.randrange(file.length + 1)
        self.change(inode, length=length, trimming=True, truncate_version=file.truncate_version + 1)
        full, rest = divmod(length, CHUNK)
        for index in range(full, 8):
            yield
            if index == full and rest:
                copy = self.held[self.serving[file.chain_of(index)][0]].get(Key(inode, index))
                if copy is not None and copy.content is not None and copy.content.length > rest:
                    yield from self.update(file.chain_of(index), Key(inode, index), rest)
            else:
                yield from self.update(file.chain_of(index), Key(inode, index), None)
        self.change(inode, trimming=False)

    def update(self, chain: int, key: Key, length: int | None) -> Iterator[None]:
        """A write, or a removal (None): locks down the chain, commits up the chain."""
        targets = list(self.serving[chain])
        head = self.held[targets[0]].get(key)
        if head is None and length is None:
            return
        self.updates += 1
        version = (head.content.version if head is not None and head.content is not None else 0) + 1
        writer = Writer(b"w" * 16, 1, self.updates)
        for target in targets:
            self.busy.add((target, key))
            yield
        crc = self.chance.choice([1, 2])
        for target in reversed(targets):
            if length is None:
                self.held[target].pop(key, None)
            else:
                self.held[target][key] = Copy(Content(version, length, crc, CHUNK), writer)
            if self.chance.random() < 0.5:
                yield
        for target in reversed(targets):
            yield
            self.busy.discard((target, key))

    def step(self) -> None:
        """Often nothing happens, sometimes a little, sometimes one client comes a long way."""
        if self.clients:
            busiest = self.chance.choice(self.clients)
            for _ in range(self.chance.choice([0, 0, 0, 1, 2, 5, 15, 60])):
                next(busiest)

    def all_there(self) -> set[Key]:
        return {key for held in self.held.values() for key in held}

    # What the check sees

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for _ in range(self.chance.choice([0, 3, 60])):
            self.step()

    def chains(self) -> dict[int, tuple[int, ...]]:
        return {chain: tuple(members) for chain, members in self.serving.items()}

    def next_inode(self) -> int:
        return self.next_id

    def files(self) -> Iterator[File]:
        after = 0
        while True:
            self.step()
            page = [self.found_files[inode] for inode in sorted(self.found_files) if inode > after][:PAGE]
            if not page:
                return
            yield from page
            after = page[-1].inode

    def listed(self, target_id: int, lists: int) -> Iterator[tuple[Key, Copy]]:
        after = Key(0, 0)
        while True:
            self.step()
            if target_id in self.unreadable:
                raise Lost("its server hangs")
            page = sorted((key, copy) for key, copy in self.held[target_id].items() if key > after)[:PAGE]
            if not page:
                return
            yield from page
            after = page[-1][0]

    def look(self, suspects: Sequence[Suspect]) -> list[Look | None]:
        before = {suspect.chain_id: self.versions.get(suspect.chain_id) for suspect in suspects}
        seen: list[dict[int, Copy]] = [{} for _ in suspects]
        for place, suspect in enumerate(suspects):
            for target in self.serving[suspect.chain_id]:
                self.step()
                copy = self.held[target].get(suspect.key, ABSENT)
                seen[place][target] = copy._replace(busy=(target, suspect.key) in self.busy)
        self.step()
        return [
            Look(self.now_s, self.versions[suspect.chain_id], copies, self.found_files.get(suspect.key.inode))
            if before[suspect.chain_id] == self.versions[suspect.chain_id]
            else None
            for suspect, copies in zip(suspects, seen, strict=True)
        ]

    def drop(self, chain_id: int, findings: Sequence[Finding]) -> list[Code]:
        codes = []
        for finding in findings:
            assert finding.key is not None
            copy = self.held[self.serving[chain_id][0]].get(finding.key, ABSENT)
            if copy.content is None:
                codes.append(Code.OK)
                continue
            if (copy.content.version, copy.writer) != (finding.version, finding.writer):
                codes.append(Code.STALE_UPDATE)
                continue
            self.dropped.append(finding.key)
            for target in self.serving[chain_id]:
                if finding.keep_bytes:
                    content = copy.content._replace(version=finding.version + 1, length=finding.keep_bytes)
                    self.held[target][finding.key] = Copy(content, Writer(NOBODY, 0, 0))
                else:
                    self.held[target].pop(finding.key, None)
            codes.append(Code.OK)
        return codes

    def resync(self, chain_id: int, target_id: int, timeout_s: float) -> None:
        members = self.serving[chain_id]
        if len(members) < 2:
            raise error(Code.BUSY, "the last one")
        members.remove(target_id)
        self.held[target_id] = dict(self.held[members[-1]])
        members.append(target_id)
        self.versions[chain_id] += 3


def plant(world: World, inode: int, index: int, chain: int, targets: Sequence[int], length: int = CHUNK) -> Key:
    key = Key(inode, index)
    for target in targets:
        world.held[target][key] = Copy(Content(5, length, 1, CHUNK), Writer(NOBODY, 1, 1))
    return key


def still(world: World, inode: int, length: int, chains: tuple[int, ...] = (1, 2)) -> File:
    """A file that no client touches, whole on all replicas."""
    file = world.found_files[inode] = File(inode, length, 0, CHUNK, chains)
    for index in range(file.chunks):
        chain = file.chain_of(index)
        plant(world, inode, index, chain, world.serving[chain], min(CHUNK, length - index * CHUNK))
    return file


@pytest.mark.parametrize("seed", range(40))
def test_a_cluster_in_use_is_clean(seed: int) -> None:
    world = World(seed, clients=6)
    for _ in range(600):
        world.step()
    for _ in range(3):
        report = Check(world, repair=True).run()
        assert not report.findings, report.findings
        assert not report.notes
    assert world.updates > 50
    assert not world.dropped


@pytest.mark.parametrize("seed", range(20))
def test_what_is_planted_in_a_cluster_in_use_is_found_and_mended_and_nothing_else(seed: int) -> None:
    world = World(seed, clients=4)
    first, second = world.serving[1], world.serving[2]
    whole = still(world, 10, 4 * CHUNK)
    still(world, 11, CHUNK + 100)
    plant(world, 5, 3, 1, first)  # no such file
    plant(world, 10, 0, 2, second)  # on the other chain
    plant(world, 10, 8, 1, first)  # beyond the end
    plant(world, 11, 1, 2, second, 200)  # a few bytes beyond the end
    del world.held[first[2]][Key(10, 2)]  # lost at the tail
    odd = world.held[second[0]][Key(10, 1)]
    assert odd.content is not None
    world.held[second[0]][Key(10, 1)] = odd._replace(content=odd.content._replace(crc32c=9))
    expected = {
        (Kind.ORPHAN, Key(5, 3)),
        (Kind.MISPLACED, Key(10, 0)),
        (Kind.BEYOND_END, Key(10, 8)),
        (Kind.BEYOND_END, Key(11, 1)),
        (Kind.MISSING, Key(10, 2)),
        (Kind.DIFFERS, Key(10, 1)),
    }
    before = {target: dict(held) for target, held in world.held.items()}
    report = Check(world).run()
    assert {(finding.kind, finding.key) for finding in report.findings} == expected
    assert report.left == 6
    planted = {key for _, key in expected}
    for target, held in world.held.items():
        assert {k: c for k, c in held.items() if k in planted} == {
            k: c for k, c in before[target].items() if k in planted
        }, "without repair nothing changes"
    world.clients.clear()  # a resync of this world would overwrite what is under way
    world.busy.clear()
    for target in first + second:
        world.held[target] = {key: copy for key, copy in world.held[target].items() if key.inode < 100}
    world.found_files = {inode: file for inode, file in world.found_files.items() if inode < 100}
    report = Check(world, repair=True).run()
    assert {(finding.kind, finding.key) for finding in report.findings} == expected
    assert all(finding.repaired for finding in report.findings)
    assert report.left == 0
    report = Check(world).run()
    assert not report.findings
    assert world.all_there() == {Key(10, index) for index in range(whole.chunks)} | {Key(11, 0), Key(11, 1)}


def test_an_id_that_was_not_given_out_before_is_left_alone() -> None:
    world = World(1, clients=0)
    plant(world, 5000, 0, 1, world.serving[1])
    report = Check(world, repair=True).run()
    (finding,) = report.findings
    assert finding.kind is Kind.ORPHAN
    assert not finding.repaired
    assert report.left == 1
    assert not world.dropped


def test_orphans_are_dropped_only_some_time_after_the_beginning() -> None:
    world = World(1, clients=0)
    plant(world, 5, 0, 1, world.serving[1])
    Check(world, repair=True).run()
    assert world.dropped
    assert world.now_s >= check.DROP_AFTER_S


def test_a_chunk_that_is_written_before_it_is_dropped_stays() -> None:
    world = World(1, clients=0)
    key = plant(world, 5, 0, 1, world.serving[1])
    drop = world.drop

    def written_first(chain_id: int, findings: Sequence[Finding]) -> list[Code]:
        for target in world.serving[1]:
            world.held[target][key] = world.held[target][key]._replace(writer=Writer(b"w" * 16, 9, 9))
        return drop(chain_id, findings)

    world.drop = written_first  # type: ignore[method-assign]
    report = Check(world, repair=True).run()
    assert report.left == 1
    assert "left alone" in report.findings[0].text
    assert key in world.held[world.serving[1][0]]


def test_where_it_cannot_be_told_who_is_right_nothing_is_resynced() -> None:
    world = World(1, clients=0, chains=1)
    still(world, 10, 2 * CHUNK, (1,))
    for number, target in enumerate(world.serving[1]):
        copy = world.held[target][Key(10, 0)]
        assert copy.content is not None
        world.held[target][Key(10, 0)] = copy._replace(content=copy.content._replace(version=9 - number))
    del world.held[world.serving[1][0]][Key(10, 1)]
    report = Check(world, repair=True).run()
    assert report.left == 2
    assert world.versions[1] == 1
    assert any("cannot be told" in note for note in report.notes)


def test_many_findings_are_counted_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BATCH", 64)
    world = World(1, clients=0)
    for inode in range(2, 99):
        for index in range(5):
            plant(world, inode, index, 1, world.serving[1])
    report = Check(world, repair=True, shown_max=7).run()
    assert report.found[Kind.ORPHAN] == report.repaired[Kind.ORPHAN] == 97 * 5
    assert len(report.findings) == 7
    assert not world.all_there()


def test_chains_without_replicas_and_replicas_that_cannot_be_read() -> None:
    world = World(1, clients=0)
    world.found_files[10] = File(10, CHUNK, 0, CHUNK, (7,))
    world.serving[2] = []
    world.found_files[11] = File(11, CHUNK, 0, CHUNK, (2,))
    world.unreadable.add(world.serving[1][1])
    report = Check(world).run()
    found = {(finding.kind, finding.chain_id) for finding in report.findings}
    assert found == {(Kind.NO_CHAIN, 7), (Kind.NOT_SERVING, 2), (Kind.UNREAD, 1)}
    assert report.tally.files_with_holes == 0


def test_a_replica_that_leaves_its_chain_is_noted_and_the_last_one_is_a_finding() -> None:
    for away, kinds in ((1, []), (3, [Kind.UNREAD])):
        world = World(1, clients=0)
        still(world, 10, 2 * CHUNK)
        members = list(world.serving[1])
        world.unreadable.update(members[:away])
        everything = world.chains()
        answers = iter([everything])
        # Only the first answer shows them: they left while the check ran.
        after = {chain: targets if chain != 1 else targets[away:] for chain, targets in everything.items()}
        world.chains = lambda answers=answers, after=after: next(answers, after)  # type: ignore[method-assign, misc]
        report = Check(world).run()
        assert [finding.kind for finding in report.findings] == kinds
        assert len(report.notes) == away - len(kinds)


def test_a_chain_that_comes_back_while_the_check_runs_was_not_read() -> None:
    world = World(1, clients=0)
    everything = world.chains()
    answers = iter([{**everything, 2: ()}])
    world.chains = lambda: next(answers, {**everything, 3: (99,)})  # type: ignore[method-assign]
    world.found_files[10] = File(10, CHUNK, 0, CHUNK, (3,))  # on a chain that was made meanwhile
    report = Check(world).run()
    assert [(finding.kind, finding.chain_id) for finding in report.findings] == [(Kind.UNREAD, 2)]
    assert len(report.notes) == 1


def test_a_resync_that_mends_nothing_leaves_the_finding() -> None:
    world = World(1, clients=0)
    still(world, 10, CHUNK)
    del world.held[world.serving[1][0]][Key(10, 0)]
    world.resync = lambda *_: None  # type: ignore[method-assign]
    report = Check(world, repair=True).run()
    assert report.left == 1
    assert any("still differ" in note for note in report.notes)


def test_a_failed_resync_leaves_the_finding() -> None:
    world = World(1, clients=0)
    still(world, 10, CHUNK)
    del world.held[world.serving[1][0]][Key(10, 0)]

    def refused(chain_id: int, target_id: int, timeout_s: float) -> None:
        raise error(Code.BUSY, "not now")

    world.resync = refused  # type: ignore[method-assign]
    report = Check(world, repair=True).run()
    assert report.left == 1
    assert any("not now" in note for note in report.notes)


def test_a_version_pending_for_good_at_a_follower_is_resynced() -> None:
    world = World(1, clients=0)
    still(world, 10, CHUNK)
    follower = world.serving[1][1]
    copy = world.held[follower][Key(10, 0)]
    world.held[follower][Key(10, 0)] = copy._replace(pending=6, pending_writer=Writer(NOBODY, 2, 2))
    report = Check(world, repair=True).run()
    assert [(finding.kind, finding.targets) for finding in report.findings] == [(Kind.PENDING, (follower,))]
    assert report.left == 0
    assert not Check(world).run().findings


def test_meta_that_refuses_ends_the_check() -> None:
    world = World(1, clients=0)

    def refused() -> int:
        raise error(Code.NOT_PERMITTED)

    world.next_inode = refused  # type: ignore[method-assign]
    with pytest.raises(FfsError):
        Check(world).run()
