"""What is asked of the mirror before somebody waits for it, and what of it is kept."""

import contextlib
import functools
from itertools import repeat
from pathlib import Path
from types import TracebackType

import pytest
import trio
import trio.testing

from idcfs.catalog.index import Index
from idcfs.errors import DeadlineExceeded, Unreachable
from idcfs.reading.policy import BLOCK, HEAD, RUN_BLOCKS, SMALL_OBJECT
from idcfs.reading.request_limit import FIRST_REQUESTS
from idcfs.store.base import Body, Finished, Progress, Range
from tests.filesystem.opened import Opened, open_filesystem, path_of
from tests.index_factory import Row, build_catalogue, fill_store, instances, make_index
from tests.memory_store import FailingStore, MemoryStore, Request
from tests.processes import PATIENCE

SLICE = 90_000
PIECE = 32 << 10

SCAN = Row("ct", "a", sizes=(SLICE,) * 40)
SECOND = Row("ct", "b", sizes=(2000,) * 5)
THIRD = Row("ct", "c", sizes=(1000,) * 5)
SLIDE = Row("slides", "one", modality="SM", sizes=(100, SMALL_OBJECT + 40 * BLOCK + 5))
ROWS = [SCAN, SECOND, THIRD, SLIDE]

files_of = functools.cache(instances)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("index"), ROWS)


@pytest.fixture(scope="module")
def built(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_catalogue(tmp_path_factory.mktemp("built"), index)


@pytest.fixture
def store() -> MemoryStore:
    return fill_store(MemoryStore(), ROWS)


def file_of(row: Row, number: int) -> str:
    return f"{path_of(row)}/{files_of(row)[number].name}"


def gets(store: MemoryStore, row: Row) -> list[Request]:
    return [request for request in store.requests if request.operation == "get" and row.uuid in request.key]


def is_listed(store: MemoryStore, row: Row) -> bool:
    return any(request.operation == "list" and row.uuid in request.key for request in store.requests)


def large_and_small(row: Row) -> tuple[int, int]:
    """The numbers of the largest file of a series and of the smallest."""
    order = sorted(range(len(row.sizes)), key=lambda number: len(files_of(row)[number].content))
    return order[-1], order[0]


async def scan(opened: Opened, row: Row) -> None:
    """Read the start of each file, as a tool does that wants headers."""
    for number, instance in enumerate(files_of(row)):
        assert await opened.read(file_of(row, number), 0, 4096) == instance.content[:4096]
        await opened.settled()


async def test_files_are_fetched_ahead_and_each_once(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        node = await opened.node(path_of(SCAN))
        await opened.entries(node.inode)
        assert gets(store, SCAN) == [], "listing reads nothing"
        for number, instance in enumerate(files_of(SCAN)):
            asked = {request.key.rpartition("/")[2] for request in gets(store, SCAN)}
            assert number == 0 or instance.name in asked
            for start in range(0, SLICE, PIECE):
                assert await opened.read(file_of(SCAN, number), start, PIECE) == instance.content[start : start + PIECE]
            await opened.settled()
    asked_for = [request.key for request in gets(store, SCAN)]
    assert len(asked_for) == len(set(asked_for)) == 40


async def test_a_header_scan_asks_for_heads(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await scan(opened, SCAN)
    spans = [(request.start, request.stop) for request in gets(store, SCAN)]
    # Three wholes before it looks like a scan.
    assert spans == [(0, SLICE)] * 3 + [(0, HEAD)] * 37


async def test_heads_are_there_at_the_next_mount_without_a_network(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await scan(opened, SCAN)
    broken = FailingStore(store, repeat(Unreachable("no network")))
    async with open_filesystem(cache, index, broken) as opened:
        for number in (30, 20, 7, 39, 0):
            assert await opened.read(file_of(SCAN, number), 0, PIECE) == files_of(SCAN)[number].content[:PIECE]
        with pytest.raises(Unreachable):
            await opened.read(file_of(SCAN, 30), HEAD, 1)
        await scan(opened, SCAN)


async def test_a_scan_of_what_is_there_whole_asks_for_nothing(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for number in range(40):
            await opened.read(file_of(SCAN, number))
        await opened.settled()
    asked = len(gets(store, SCAN))
    async with open_filesystem(cache, index, store) as opened:
        await scan(opened, SCAN)
    assert len(gets(store, SCAN)) == asked


async def test_after_heads_all_of_a_file_can_be_read(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await scan(opened, SCAN)
        for number, instance in enumerate(files_of(SCAN)):
            assert await opened.read(file_of(SCAN, number)) == instance.content
            assert await opened.read(file_of(SCAN, number), HEAD - 10, 20) == instance.content[HEAD - 10 : HEAD + 10]
    async with open_filesystem(cache, index, FailingStore(store, repeat(Unreachable("away")))) as opened:
        for number, instance in enumerate(files_of(SCAN)):
            assert await opened.read(file_of(SCAN, number)) == instance.content


async def test_blocks_that_follow_each_other_are_one_request(cache: Path, index: Index, store: MemoryStore) -> None:
    large, _ = large_and_small(SLIDE)
    content = files_of(SLIDE)[large].content
    async with open_filesystem(cache, index, store) as opened:
        for start in range(0, len(content), PIECE):
            assert await opened.read(file_of(SLIDE, large), start, PIECE) == content[start : start + PIECE]
            if start % BLOCK == 0:
                await opened.settled()
        await opened.settled()
    asked = [request for request in gets(store, SLIDE) if request.key.endswith(files_of(SLIDE)[large].name)]
    spans = sorted((request.start, request.stop) for request in asked if request.start is not None)
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])], "each byte once"
    assert spans[-1][1] == len(content)
    assert max(stop - start for start, stop in spans if stop) == RUN_BLOCKS * BLOCK
    # The first windows have smaller requests.
    assert len(spans) < len(content) / (RUN_BLOCKS * BLOCK) + 6
    broken = FailingStore(store, repeat(Unreachable("away")))
    async with open_filesystem(cache, index, broken) as opened:
        assert await opened.read(file_of(SLIDE, large)) == content


async def test_blocks_on_the_disk_are_not_asked_for_again(cache: Path, index: Index, store: MemoryStore) -> None:
    large, _ = large_and_small(SLIDE)
    content = files_of(SLIDE)[large].content
    async with open_filesystem(cache, index, store) as opened:
        for block in (5, 30, 11):
            await opened.read(file_of(SLIDE, large), block * BLOCK, 10)
        await opened.settled()
    before = len(gets(store, SLIDE))
    async with open_filesystem(cache, index, store) as opened:
        for start in range(0, len(content), BLOCK):
            assert await opened.read(file_of(SLIDE, large), start, BLOCK) == content[start : start + BLOCK]
            await opened.settled()
    asked: list[int] = []
    for request in gets(store, SLIDE)[before:]:
        if request.key.endswith(files_of(SLIDE)[large].name):
            assert request.start is not None
            assert request.stop is not None
            asked += range(request.start // BLOCK, -(-request.stop // BLOCK))
    assert sorted(asked) == sorted(set(range(-(-len(content) // BLOCK))) - {5, 30, 11})


async def test_the_next_series_is_listed_and_fetched_in_the_order_of_the_tree(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await opened.names(path_of(SECOND))
        for number in range(5):
            await opened.read(file_of(SECOND, number))
            await opened.settled()
        assert is_listed(store, THIRD)
        assert gets(store, THIRD)
        await opened.names(path_of(THIRD))
        for number in range(5):
            await opened.read(file_of(THIRD, number))
            await opened.settled()
    assert len(gets(store, THIRD)) == 5
    assert len([request for request in store.requests if request.operation == "list"]) == len(
        {request.key for request in store.requests if request.operation == "list"}
    )


async def test_in_a_cohort_the_next_series_is_the_cohorts(cache: Path, index: Index, store: MemoryStore) -> None:
    (cache / "cohorts").mkdir()
    (cache / "cohorts" / "mine.sql").write_text(
        "SELECT SeriesInstanceUID FROM index WHERE \"PatientID\" IN ('b', 'one')"
    )
    async with open_filesystem(cache, index, store) as opened:
        for number in range(5):
            await opened.read(f"cohorts/mine/{file_of(SECOND, number)}")
            await opened.settled()
        assert is_listed(store, SLIDE)
        assert not is_listed(store, THIRD)


async def test_what_was_served_to_its_end_is_not_kept_in_memory(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for number, instance in enumerate(files_of(SCAN)):
            for start in range(0, SLICE, PIECE):
                assert await opened.read(file_of(SCAN, number), start, PIECE) == instance.content[start : start + PIECE]
            await opened.settled()
        assert not [lease for lease in opened.arena.kept._leases.values() if len(lease) == SLICE]
        # From the disk.
        asked = len(gets(store, SCAN))
        assert await opened.read(file_of(SCAN, 3)) == files_of(SCAN)[3].content
        assert len(gets(store, SCAN)) == asked


async def test_an_object_stored_anew_while_its_old_bytes_wait_to_be_written(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    large, _ = large_and_small(SLIDE)
    name = files_of(SLIDE)[large].name
    async with open_filesystem(cache, index, store) as opened:
        await opened.names(path_of(SLIDE))
        await opened.read(file_of(SLIDE, large), 3 * BLOCK, 10)
        new = files_of(SLIDE)[large].content[::-1]
        store.put(SLIDE.bucket, f"{SLIDE.uuid}/{name}", new)
        assert await opened.read(file_of(SLIDE, large), 9 * BLOCK, 10) == new[9 * BLOCK : 9 * BLOCK + 10]
        await opened.settled()
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SLIDE, large)) == new


class LateStore(MemoryStore):
    """Answers what is wanted soon when it is left, with an error, as one does whose processes end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Finished] = []
        self.is_left = False

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        if not self.is_left:
            self.waiting.append(finished)
        return not self.is_left

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_left = True
        for finished in self.waiting:
            finished(Unreachable("the store has been left"))
        await super().__aexit__(kind, error, trace)


async def test_a_mount_ends_in_peace_while_more_is_wanted_than_is_asked_for(tmp_path: Path) -> None:
    many = Row("ct", "many", sizes=(HEAD + 1,) * 400)
    store = LateStore()
    fill_store(store, [many])
    async with open_filesystem(tmp_path / "cache", make_index(tmp_path / "index", [many]), store, seconds=1) as opened:
        node = await opened.node(path_of(many))
        await opened.entries(node.inode)
        number = 0
        while len(store.waiting) < FIRST_REQUESTS:
            with contextlib.suppress(DeadlineExceeded):
                # What is wanted soon does not come.
                await opened.read(file_of(many, number))
            number += 1


class BusyStore(MemoryStore):
    """Takes a while, and refuses what comes while it is asked for many things."""

    MOST = 8

    def __init__(self) -> None:
        super().__init__()
        self.under_way = 0
        self.answers: list[bool] = []

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        self.answers.append(self.under_way < self.MOST)
        if not self.answers[-1]:
            await trio.sleep(0.01)
            raise Unreachable("HTTP status 503")
        self.under_way += 1
        try:
            await trio.sleep(0.01)
            return await super().get(wanted, progress)
        finally:
            self.under_way -= 1

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        return False


async def test_less_is_asked_for_at_a_time_of_a_mirror_that_refuses_some(tmp_path: Path) -> None:
    many = Row("ct", "many", sizes=(100,) * 2000)
    store = BusyStore()
    fill_store(store, [many])
    async with open_filesystem(tmp_path / "cache", make_index(tmp_path / "index", [many]), store) as opened:
        for number in range(2000):
            with contextlib.suppress(Unreachable):
                await opened.read(file_of(many, number))
    half = len(store.answers) // 2
    refused_first, refused_later = store.answers[:half].count(False), store.answers[half:].count(False)
    assert refused_first > FIRST_REQUESTS // 2
    assert refused_later < refused_first / 2


async def test_a_block_of_a_run_is_there_before_the_runs_end(cache: Path, index: Index) -> None:
    large, _ = large_and_small(SLIDE)
    content = files_of(SLIDE)[large].content
    store = HalfStore()
    fill_store(store, ROWS)
    async with open_filesystem(cache, index, store) as opened:
        with trio.fail_after(PATIENCE):
            at = 0
            # Until the reader waits for the second half of something.
            while not store.stalled:
                assert at < len(content)
                with trio.move_on_after(0.5) as patience:
                    assert await opened.read(file_of(SLIDE, large), at, PIECE) == content[at : at + PIECE]
                    at += PIECE
                    patience.deadline = float("inf")
                    await trio.testing.wait_all_tasks_blocked()
            start, stop = store.stalled[0]
            middle = start + (stop - start) // 2 // BLOCK * BLOCK
            for block in range(start, middle, BLOCK):
                assert await opened.read(file_of(SLIDE, large), block, 10) == content[block : block + 10]
            assert not store.may_end.is_set()
            store.may_end.set()
            assert await opened.read(file_of(SLIDE, large), stop - 10, 10) == content[stop - 10 : stop]
        await opened.settled()
        assert await opened.read(file_of(SLIDE, large)) == content


class HalfStore(MemoryStore):
    """Sends the first half of what is wanted as it comes, and the other when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled: list[tuple[int, int]] = []
        self.may_end = trio.Event()

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        start, stop = wanted.start, wanted.stop
        data = await super().get(wanted)
        if progress is None or stop - start < 4 * BLOCK:
            return data
        assert isinstance(data, bytes)
        assert self.arena is not None
        lease = await self.arena.take(stop - start)
        half = (stop - start) // 2
        lease.view[:half] = data[:half]
        progress(lease, half)
        self.stalled.append((start, stop))
        await self.may_end.wait()
        lease.view[half:] = data[half:]
        return lease
