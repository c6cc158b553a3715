import itertools
import tempfile
from collections.abc import Callable
from itertools import chain, count, repeat
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idcfs.catalog.index import Index
from idcfs.errors import AccessDenied, DeadlineExceeded, NotFound, ObjectChanged, Unreachable, Untrusted
from idcfs.inode import FileAddress, unpack
from idcfs.reading import listings
from idcfs.reading.policy import BLOCK, Extent
from idcfs.store.base import Body, Finished, ListPage, Progress, Range
from tests.conftest import WarningsLogged
from tests.filesystem.opened import GatedStore, open_filesystem, path_of, until_asked
from tests.filesystem.rows import ALL, LARGE, MANY, MISSING, SLIDE, SMALL, SPACES
from tests.index_factory import Row, fill_store, instances, write_mirror
from tests.memory_store import FailingStore, MemoryStore, Request
from tests.processes import PATIENCE

SLIDE_BYTES = instances(SLIDE)[0].content
SLIDE_BLOCKS = -(-len(SLIDE_BYTES) // BLOCK)
FAR = 100
"""A file of a series that is not at its front: reading it fetches nothing ahead."""


def file_of(row: Row, number: int = 0) -> str:
    return f"{path_of(row)}/{instances(row)[number].name}"


def gets(store: MemoryStore) -> list[Request]:
    return [request for request in store.requests if request.operation == "get"]


def lists(store: MemoryStore, row: Row) -> list[Request]:
    return [request for request in store.requests if request.operation == "list" and row.uuid in request.key]


def blocks_of(request: Request) -> list[int]:
    """The blocks that a request for a part of a large object is for."""
    assert request.start is not None
    assert request.stop is not None
    return list(range(request.start // BLOCK, -(-request.stop // BLOCK)))


async def test_what_is_read_is_what_is_stored(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for row in (SMALL, SPACES, SLIDE):
            for number, instance in enumerate(instances(row)):
                assert await opened.read(file_of(row, number)) == instance.content
        assert opened.metrics.bytes_served == sum(sum(row.sizes) for row in (SMALL, SPACES, SLIDE))


offsets = st.integers(0, len(SLIDE_BYTES) + 2 * BLOCK) | st.sampled_from(
    [edge + by for edge in (0, BLOCK, 8 * BLOCK, 20 * BLOCK, len(SLIDE_BYTES)) for by in (-1, 0, 1) if edge + by >= 0]
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(offsets, st.integers(0, 4096) | st.integers(0, 3 * BLOCK)), min_size=1, max_size=12))
def test_any_ranges_of_a_large_object(
    built: Path, index: Index, store: MemoryStore, ranges: list[tuple[int, int]]
) -> None:
    async def read() -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "catalogue").symlink_to(built / "catalogue")
            async with open_filesystem(Path(folder), index, store) as opened:
                for offset, length in ranges:
                    assert await opened.read(file_of(SLIDE), offset, length) == SLIDE_BYTES[offset : offset + length]

    trio.run(read)


async def test_many_readers_of_one_extent_are_one_request(cache: Path, index: Index) -> None:
    store = GatedStore()
    fill_store(store, [SMALL, SLIDE])
    async with open_filesystem(cache, index, store) as opened:
        read: list[bytes] = []

        async def read_one(path: str) -> None:
            read.append(await opened.read(path, 5, 20))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read_one, file_of(SMALL, 2))
            await until_asked(store, 1)
            await trio.testing.wait_all_tasks_blocked()
            store.gate.set()
        assert read == [instances(SMALL)[2].content[5:25]] * 10
    assert len(lists(store, SMALL)) == 1
    assert len(gets(store)) == 1


async def test_a_reader_who_gives_up_does_not_take_the_bytes_from_the_others(cache: Path, index: Index) -> None:
    store = GatedStore()
    fill_store(store, [SMALL])
    async with open_filesystem(cache, index, store) as opened:
        read: list[bytes] = []

        async def read_one() -> None:
            read.append(await opened.read(file_of(SMALL)))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0):
                await opened.read(file_of(SMALL))
            nursery.start_soon(read_one)
            await until_asked(store, 1)
            await trio.testing.wait_all_tasks_blocked()
            store.gate.set()
        assert read == [instances(SMALL)[0].content]
    assert len(lists(store, SMALL)) == 1


async def test_a_file_whose_end_is_looked_at_first_is_fetched_once(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    row = MANY
    content = instances(row)[FAR].content
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(row, FAR), len(content) - 100) == content[-100:]
        assert await opened.read(file_of(row, FAR)) == content
        assert len([request for request in gets(store) if request.key.endswith(instances(row)[FAR].name)]) == 1
        assert opened.metrics.cache_hits == 0


async def test_what_was_read_once_is_read_offline(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        expected = [await opened.read(file_of(row)) for row in (SMALL, SLIDE)]
        await opened.settled()
    broken = FailingStore(store, repeat(Unreachable("no network")))
    async with open_filesystem(cache, index, broken) as opened:
        assert await opened.names(path_of(SMALL)) == [instance.name for instance in instances(SMALL)]
        assert [await opened.read(file_of(row)) for row in (SMALL, SLIDE)] == expected
        with pytest.raises(Unreachable):
            await opened.read(file_of(SPACES))
    assert broken.calls == 2, "for what was not read, and a series ahead"


async def test_no_more_than_a_bound_of_what_was_fetched_is_remembered_and_all_is_found_again(
    cache: Path, index: Index, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.reading.on_disk._EXTENTS_REMEMBERED", 5)
    # In no order that is known, so nothing is fetched ahead.
    numbers = [150, 20, 90, 40, 7, 120]
    async with open_filesystem(cache, index, store) as opened:
        inode = unpack((await opened.node(file_of(MANY))).inode)
        assert isinstance(inode, FileAddress)
        other = Extent(inode.series, FAR, 0, MANY.sizes[FAR])
        for number in numbers[:5]:
            await opened.read(file_of(MANY, number))
        assert not opened.fetcher._disk.may_have(other)
        await opened.read(file_of(MANY, numbers[5]))
        assert opened.fetcher._disk.may_have(other)
        await opened.kept(len(numbers))
        for number in numbers:
            assert await opened.read(file_of(MANY, number)) == instances(MANY)[number].content
        assert len(gets(store)) == len(numbers)


async def test_a_cache_that_is_damaged_makes_reads_slower_not_wrong(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SLIDE)) == SLIDE_BYTES
        await opened.kept(SLIDE_BLOCKS)
    for file in files(cache / "objects"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    asked = len(gets(store))
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SLIDE)) == SLIDE_BYTES
        # The last block, a small one, is in the database.
        again = {block for request in gets(store)[asked:] for block in blocks_of(request)}
        assert again == set(range(SLIDE_BLOCKS - 1))


async def test_memory_is_bounded(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store, memory=32 * BLOCK) as opened:
        assert await opened.read(file_of(SLIDE)) == SLIDE_BYTES
        kept = opened.arena.kept
        assert sum(map(len, kept._leases.values())) == kept._size <= 16 * BLOCK
        await opened.settled()
        assert opened.arena.leased == kept._size, "nothing else is held once everything is written"


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.val"))


async def test_failures_are_told_and_not_kept(cache: Path, index: Index, store: MemoryStore) -> None:
    for error in (Unreachable("away"), AccessDenied("no"), Untrusted("short")):
        # A listing that cannot be trusted is asked for twice.
        attempts = 2 if isinstance(error, Untrusted) else 1
        failing = FailingStore(store, [*[error] * attempts, None, error])
        async with open_filesystem(cache, index, failing) as opened:
            for _ in range(2):
                with pytest.raises(type(error), match=str(error)):
                    await opened.read(file_of(MANY, FAR))
            assert await opened.read(file_of(MANY, FAR)) == instances(MANY)[FAR].content
        (cache / "listings" / "cache.db").unlink()
        (cache / "objects" / "cache.db").unlink()


async def test_who_waited_in_vain_for_a_whole_file_does_not_wait_again_for_its_head(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    """The kernel asks again for a page that failed, and meanwhile the readers of the series may turn to headers."""
    hanging = FailingStore(store, [None, *repeat(60.0, 9)])
    async with open_filesystem(cache, index, hanging, seconds=2) as opened:
        address = unpack((await opened.node(file_of(MANY))).inode)
        assert isinstance(address, FileAddress)
        whole = Extent(address.series, FAR, 0, MANY.sizes[FAR])
        with pytest.raises(DeadlineExceeded):
            await opened.fetcher.get(whole)
        before = hanging.calls
        with pytest.raises(DeadlineExceeded):
            await opened.fetcher.get(whole._replace(length=100))
        assert hanging.calls == before


async def test_a_store_that_never_answers(cache: Path, index: Index, store: MemoryStore) -> None:
    never = FailingStore(store, repeat(float("inf")))
    async with open_filesystem(cache, index, never, seconds=0.2) as opened:
        with pytest.raises(DeadlineExceeded):
            await opened.names(path_of(SMALL))
    never = FailingStore(store, [None, *repeat(float("inf"), 1000)])
    async with open_filesystem(cache, index, never, seconds=0.2) as opened:
        with pytest.raises(DeadlineExceeded):
            await opened.read(file_of(SMALL))


async def test_a_read_of_many_blocks_takes_no_longer_than_one(cache: Path, index: Index, store: MemoryStore) -> None:
    # All blocks are asked for at once, and come one after the other.
    slow = FailingStore(store, chain([None], (0.9 * number for number in count(1))))
    async with open_filesystem(cache, index, slow, seconds=1) as opened:
        await opened.names(path_of(SLIDE))
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            # In no order that is known, so nothing is fetched ahead.
            await opened.read(file_of(SLIDE), 7 * BLOCK, 60 * BLOCK)
        # One after the other, they would take nearly a minute.
        assert trio.current_time() - began < 30


async def test_a_read_that_waits_for_the_mirror_holds_no_memory_for_what_came_from_the_disk(
    cache: Path, index: Index
) -> None:
    async with open_filesystem(cache, index, fill_store(MemoryStore(), [SLIDE])) as opened:
        await opened.read(file_of(SLIDE), 9 * BLOCK, BLOCK)
        await opened.kept(1)
    store = GatedStore()
    fill_store(store, [SLIDE])
    async with open_filesystem(cache, index, store) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.read, file_of(SLIDE), 9 * BLOCK, 2 * BLOCK)
        await until_asked(store, 1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE):
            # Who waits for memory has those extents forgotten that are there for nobody, now and later.
            (await opened.arena.take(opened.arena.size)).release()
        store.gate.set()


def move(store: MemoryStore, row: Row, bucket: str) -> None:
    for instance in instances(row):
        key = f"{row.uuid}/{instance.name}"
        store.objects.setdefault(bucket, {})[key] = store.objects[row.bucket].pop(key)


@pytest.mark.parametrize("bucket", ["idc-open-data-two", "idc-open-data-cr"])
async def test_objects_that_have_moved_are_found(cache: Path, index: Index, store: MemoryStore, bucket: str) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await opened.names(path_of(SMALL))
        move(store, SMALL, bucket)
        # Listed before they moved, and after.
        assert await opened.read(file_of(SMALL)) == instances(SMALL)[0].content
        move(store, SLIDE, bucket)
        assert await opened.read(file_of(SLIDE), 0, 99) == SLIDE_BYTES[:99]
        await opened.names(path_of(MANY))
        store.objects["idc-open-data"].clear()
        with pytest.raises(NotFound, match="gone from every bucket"):
            await opened.read(file_of(MANY, FAR))


async def test_an_object_that_moved_and_was_stored_anew_is_found(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await opened.names(path_of(SMALL))
        for instance in instances(SMALL):
            key = f"{SMALL.uuid}/{instance.name}"
            store.objects["idc-open-data"].pop(key)
            store.put("idc-open-data-two", key, bytes(len(instance.content)))
        assert await opened.read(file_of(SMALL)) == bytes(len(instances(SMALL)[0].content))


def change(store: MemoryStore, row: Row, alter: Callable[[bytes], bytes]) -> bytes:
    """Store the first instance of a series anew, and return its bytes."""
    instance = instances(row)[0]
    content = alter(instance.content)
    store.put(row.bucket, f"{row.uuid}/{instance.name}", content)
    return content


async def test_an_object_stored_anew_with_its_size_is_fetched_anew(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await opened.read(file_of(SLIDE), 0, 1)
        assert await opened.read(file_of(SLIDE), 10 * BLOCK, 1) == SLIDE_BYTES[10 * BLOCK : 10 * BLOCK + 1]
        before = len(lists(store, SLIDE))
        new = change(store, SLIDE, lambda data: data[::-1])
        async with trio.open_nursery() as nursery:

            async def read(block: int) -> None:
                at = block * BLOCK
                assert await opened.read(file_of(SLIDE), at, 9) == new[at : at + 9]

            for block in (5, 13, 17):
                nursery.start_soon(read, block)
        assert len(lists(store, SLIDE)) == before + 1, "once for all of them"
        # Not a mixture: what was read before is the new object's too.
        assert await opened.read(file_of(SLIDE)) == new
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SLIDE)) == new
        assert len(lists(store, SLIDE)) == before + 1


async def test_a_listing_that_another_reader_has_refreshed_is_not_asked_again(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        row = next(number for number in range(8) if opened.listings.uuid(number) == SMALL.uuid)
        shown = await opened.listings.get(row)
        change(store, SMALL, lambda data: data[::-1])
        fresh = await opened.listings.refresh(row, shown)
        assert list(fresh.etags) != list(shown.etags)
        assert await opened.listings.refresh(row, shown) is fresh is await opened.listings.get(row)
        assert len(lists(store, SMALL)) == 2


async def test_an_object_that_changed_its_size_is_refused_until_the_next_mount(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        node = await opened.node(file_of(SMALL))
        other = await opened.read(file_of(SMALL, 1))
        new = change(store, SMALL, lambda data: data + b"more")
        for _ in range(3):
            with pytest.raises(ObjectChanged, match="mount again"):
                await opened.read(file_of(SMALL))
        # What the kernel knows stays true.
        assert await opened.node(file_of(SMALL)) == node
        assert await opened.read(file_of(SMALL, 1)) == other
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SMALL)) == new


async def test_blocks_of_an_object_that_had_another_size_are_not_met_again(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        await opened.read(file_of(SLIDE), 12 * BLOCK, 1)
        await opened.kept(1)
        new = change(store, SLIDE, lambda data: data[::-1] + b"more")
        with pytest.raises(ObjectChanged):
            await opened.read(file_of(SLIDE), 3 * BLOCK, 1)
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(SLIDE)) == new


async def test_numbers_mean_the_same_instances_when_a_series_gets_another(
    cache: Path, index: Index, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "REMEMBERED_INSTANCES", 1)
    async with open_filesystem(cache, index, store) as opened:
        names = await opened.names(path_of(SMALL))
        nodes = [await opened.node(file_of(SMALL, number)) for number in range(3)]
        change(store, SMALL, lambda data: data[::-1])
        store.put(SMALL.bucket, f"{SMALL.uuid}/0.dcm", b"a name before all others")
        with pytest.raises(ObjectChanged):
            await opened.read(file_of(SMALL))
        await opened.names(path_of(MANY))
        assert await opened.names(path_of(SMALL)) == names
        assert [await opened.node(file_of(SMALL, number)) for number in range(3)] == nodes
        for number in (1, 2):
            handle = await opened.open(nodes[number].inode)
            assert bytes(await opened.filesystem.files[handle].read(0, 10**6)) == instances(SMALL)[number].content


async def test_an_object_that_is_never_what_its_listing_says(cache: Path, index: Index, store: MemoryStore) -> None:
    changed = ObjectChanged("another ETag")
    failing = FailingStore(store, [None, changed, None, changed])
    async with open_filesystem(cache, index, failing) as opened:
        # It has not changed, so it is the mirror that is wrong.
        with pytest.raises(Untrusted):
            await opened.read(file_of(MANY, FAR))
        assert await opened.read(file_of(MANY, FAR)) == instances(MANY)[FAR].content


async def test_an_object_that_is_stored_anew_whenever_it_is_listed(cache: Path, index: Index) -> None:
    class Restless(MemoryStore):
        async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
            page = await super().list_page(bucket, prefix, token)
            change(self, SMALL, lambda data: bytes([len(self.requests)]) + data[1:])
            return page

    async with open_filesystem(cache, index, fill_store(Restless(), ALL)) as opened:
        with pytest.raises(ObjectChanged):
            await opened.read(file_of(SMALL))


async def test_a_listing_that_cannot_be_asked_again_stays_for_the_next_mount(
    cache: Path, index: Index, store: MemoryStore
) -> None:
    failing = FailingStore(store, [None, ObjectChanged("another ETag"), *repeat(Unreachable("away"), 9)])
    async with open_filesystem(cache, index, failing) as opened:
        with pytest.raises(Unreachable):
            await opened.read(file_of(MANY, FAR))
    async with open_filesystem(cache, index, FailingStore(store, repeat(Unreachable("away")))) as opened:
        assert len(await opened.names(path_of(MANY))) == 200


async def test_aws_and_gcs_share_bytes_but_not_listings(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store, "aws") as opened:
        await opened.read(file_of(SMALL))
        # With the two that are fetched ahead.
        await opened.kept(3)
    listed = MemoryStore()
    # Storage of its own gives ETags of its own.
    listed.put("idc-open-data", "x", b"")
    for instance in instances(SMALL):
        listed.put("idc-open-data", f"{SMALL.uuid}/{instance.name}", bytes(len(instance.content)))
    async with open_filesystem(cache, index, listed, "gcs") as opened:
        assert await opened.read(file_of(SMALL)) == instances(SMALL)[0].content
        assert (len(lists(listed, SMALL)), gets(listed)) == (1, [])


async def test_what_one_folder_holds_is_not_told_of_another(cache: Path, index: Index, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    for _ in range(2):
        for name, alter in (("one", bytes), ("other", lambda data: bytes(reversed(data)))):
            store = MemoryStore()
            for instance in instances(SMALL):
                store.put("idc-open-data", f"{SMALL.uuid}/{instance.name}", alter(instance.content))
            async with open_filesystem(cache, index, store, str(tmp_path / name)) as opened:
                assert await opened.read(file_of(SMALL)) == alter(instances(SMALL)[0].content)
                await opened.kept(1)
    async with open_filesystem(cache, index, MemoryStore(), "aws") as opened:
        with pytest.raises(NotFound):
            await opened.read(file_of(SMALL))


async def test_gcs_has_its_own_names_for_buckets(cache: Path, index: Index) -> None:
    store = MemoryStore()
    for instance in instances(SPACES):
        store.put("idc-open-idc1", f"{SPACES.uuid}/{instance.name}", instance.content)
    async with open_filesystem(cache, index, store, "gcs") as opened:
        assert await opened.read(file_of(SPACES)) == instances(SPACES)[0].content
    assert {request.bucket for request in store.requests if SPACES.uuid in request.key} == {"idc-open-idc1"}


async def test_reading_here_and_there_fetches_nothing_ahead(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        for number in (150, 20, 90, 40, 7):
            await opened.read(file_of(MANY, number))
        for block in (12, 3, 17, 9):
            await opened.read(file_of(SLIDE), block * BLOCK, 100)
        await opened.kept(9)
        assert len(gets(store)) == 9


class PickyStore(MemoryStore):
    """Has one object to give; all others end in one of our errors, and once in a bug."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        errors = [Unreachable("away"), ZeroDivisionError("a bug")]
        self._errors = itertools.chain(errors, itertools.repeat(errors[0]))

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        data = await super().get(wanted, progress)
        if wanted.key != self._key:
            raise next(self._errors)
        return data

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        # A bug in a store is met by a task.
        return False


async def test_what_is_fetched_ahead_in_vain_harms_nobody(
    cache: Path, index: Index, warnings_logged: WarningsLogged
) -> None:
    first = instances(MANY)[0]
    store = PickyStore(f"{MANY.uuid}/{first.name}")
    fill_store(store, [MANY])
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.read(file_of(MANY)) == first.content
        await opened.kept(1)
        await until_asked(store, 1 + 3)
        with pytest.raises((Unreachable, ZeroDivisionError)):
            await opened.read(file_of(MANY, FAR))
        assert await opened.read(file_of(MANY)) == first.content
    assert warnings_logged.take("nobody waits for has failed")


async def test_a_large_series_is_listed_as_any_other(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(LARGE)) == [instance.name for instance in instances(LARGE)]
    prefixes = {request.key for request in lists(store, LARGE)}
    assert prefixes == {f"{LARGE.uuid}/{digit}" for digit in "0123456789abcdef"}
    listed = len(lists(store, LARGE))
    async with open_filesystem(cache, index, store) as opened:
        assert len(await opened.names(path_of(LARGE))) == 2500
        assert await opened.read(file_of(LARGE, 2499)) == instances(LARGE)[2499].content
    assert len(lists(store, LARGE)) == listed


async def test_a_large_series_with_other_names_is_listed_in_one_piece(cache: Path, index: Index) -> None:
    store = MemoryStore()
    names = sorted(f"IM{number:05}.dcm" for number in range(2500))
    for name in names:
        store.put(LARGE.bucket, f"{LARGE.uuid}/{name}", b"abc")
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(LARGE)) == names


async def test_many_listings_of_one_series_are_one_request(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(opened.names, path_of(SMALL))
        assert len(lists(store, SMALL)) == 1


async def test_a_folder_mirror_is_read_like_any_other(cache: Path, index: Index, tmp_path: Path) -> None:
    from idcfs.store.folder import FolderStore

    mirror = write_mirror(tmp_path / "mirror", [row for row in ALL if row is not MISSING])
    async with open_filesystem(cache, index, FolderStore(mirror), str(mirror)) as opened:
        assert await opened.read(file_of(SLIDE)) == SLIDE_BYTES
        assert await opened.names(path_of(LARGE)) == [instance.name for instance in instances(LARGE)]
