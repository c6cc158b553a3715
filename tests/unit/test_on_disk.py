"""Extents on disk: each is found under its own key, and what is known of a series is never more than is there."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

from idcfs.reading.on_disk import OnDisk
from idcfs.reading.policy import BLOCK, HEAD, Extent
from tests.memory_store import MemoryStore
from tests.processes import children_of, stopped, until_true
from tests.unit.listed import UUIDS, Listed, open_listed, put

SMALL = Extent(0, 0, 0, 3 * HEAD)
OTHER = Extent(0, 1, 0, 2 * HEAD)
LARGE = Extent(0, 2, 0, 9 * BLOCK)
"""The whole instances of the first series; the other series have the same ones."""


def first_block(extent: Extent) -> Extent:
    return extent._replace(length=BLOCK)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for series in range(len(UUIDS)):
        for whole in (SMALL, OTHER, LARGE):
            put(store, series, f"{whole.instance}.dcm", bytes(whole.length))
    return store


@pytest.fixture
async def listed(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Listed]:
    async with open_listed(tmp_path, store) as listed:
        yield listed


def on_disk(listed: Listed, namespace: str = "aws") -> OnDisk:
    """As a mount has it that begins now."""
    return OnDisk(listed.objects, namespace, listed.listings, listed.nursery, lambda: 30)


@pytest.fixture
def disk(listed: Listed) -> OnDisk:
    return on_disk(listed)


def content_of(extent: Extent, number: int = 0) -> bytes:
    return repr((extent, number)).encode().ljust(extent.length, b"x")


async def keep(listed: Listed, disk: OnDisk, extent: Extent, number: int = 0) -> None:
    with await listed.arena.take(extent.length) as lease:
        lease.view[:] = content_of(extent, number)
        disk.put(extent, await listed.listings.get(extent.series), lease)


async def find(listed: Listed, disk: OnDisk, extent: Extent) -> bytes | None:
    lease = await disk.get(extent, await listed.listings.get(extent.series))
    if lease is None:
        return None
    with lease:
        return bytes(lease.view)


async def test_each_extent_is_found_by_itself(listed: Listed, store: MemoryStore) -> None:
    disks = [on_disk(listed, "aws"), on_disk(listed, "other")]
    extents = [
        SMALL,
        SMALL._replace(length=HEAD),
        OTHER,
        OTHER._replace(length=HEAD),
        first_block(LARGE),
        first_block(LARGE)._replace(offset=BLOCK),
        # As long as the whole of another, and as a head.
        LARGE._replace(offset=8 * BLOCK, length=SMALL.length),
        LARGE._replace(length=HEAD),
        SMALL._replace(series=1),
        first_block(LARGE)._replace(series=1),
    ]
    for number, disk in enumerate(disks):
        for extent in extents:
            await keep(listed, disk, extent, number)
    await listed.objects.finish()
    for number, disk in enumerate(disks):
        for extent in extents:
            assert await find(listed, disk, extent) == content_of(extent, number)
    assert (await listed.objects.usage()).entries == len(extents) * len(disks)


async def test_blocks_of_an_object_of_another_size_are_not_found(
    tmp_path: Path, listed: Listed, disk: OnDisk, store: MemoryStore
) -> None:
    await keep(listed, disk, first_block(LARGE))
    await listed.objects.finish()
    put(store, 0, "2.dcm", bytes(LARGE.length - 1))
    # As the next mount lists it.
    async with open_listed(tmp_path / "other", store) as fresh:
        lease = await on_disk(listed).get(first_block(LARGE), await fresh.listings.get(0))
        assert lease is None
    assert await find(listed, on_disk(listed), first_block(LARGE)) == content_of(first_block(LARGE))


async def test_of_a_series_of_which_nothing_is_kept_nothing_is_asked_for(listed: Listed, disk: OnDisk) -> None:
    assert disk.may_have(SMALL), "nobody has asked yet"
    assert await find(listed, disk, SMALL) is None
    assert not disk.may_have(SMALL)
    await keep(listed, disk, SMALL)
    assert disk.may_have(SMALL), "before it is written"
    assert not disk.may_have(OTHER)
    assert not disk.may_have(SMALL._replace(length=HEAD))
    await listed.objects.finish()
    assert await find(listed, disk, SMALL) == content_of(SMALL)
    assert await find(listed, disk, OTHER) is None
    # Kept by another mount.
    await keep(listed, on_disk(listed), OTHER)
    await listed.objects.finish()
    assert await find(listed, disk, OTHER) is None
    assert await find(listed, on_disk(listed), OTHER) == content_of(OTHER)


async def test_of_a_series_of_which_something_is_kept_anything_may_be(listed: Listed, disk: OnDisk) -> None:
    await keep(listed, disk, SMALL)
    await listed.objects.finish()
    later = on_disk(listed)
    later.expect(0)
    later.expect(0)
    later.expect(1)
    await until_true(lambda: not later.may_have(SMALL._replace(series=1)))
    await until_true(lambda: not len(later._learning))
    assert later.may_have(SMALL)
    assert later.may_have(OTHER)
    (server,) = children_of(os.getpid(), "idcfs.cache.server")
    with stopped(server):
        later.expect(0)
        await trio.testing.wait_all_tasks_blocked()
        assert not len(later._learning), "it is known"


async def test_a_failed_cache_may_have_anything(listed: Listed, disk: OnDisk) -> None:
    (listed.objects.folder / "cache.db").unlink()
    (listed.objects.folder / "cache.db").mkdir()
    assert await find(listed, disk, SMALL) is None
    assert listed.objects.failure is not None
    assert disk.may_have(SMALL), "so that it is found where there is no network"


async def test_no_more_than_a_bound_of_series_is_remembered_and_all_are_found_again(
    listed: Listed, disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.reading.on_disk._SERIES_REMEMBERED", 2)
    extents = [SMALL._replace(series=series) for series in range(len(UUIDS))]
    for extent in extents:
        assert await find(listed, disk, extent) is None
        assert not disk.may_have(extent)
        await keep(listed, disk, extent)
    await listed.objects.finish()
    assert len(disk._kept) <= 2
    for extent in extents:
        assert disk.may_have(extent)
        assert await find(listed, disk, extent) == content_of(extent)


async def test_no_more_than_a_bound_of_extents_is_remembered_and_all_are_found_again(
    listed: Listed, disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.reading.on_disk._EXTENTS_REMEMBERED", 5)
    blocks = [LARGE._replace(offset=number * BLOCK, length=BLOCK) for number in range(9)]
    assert await find(listed, disk, SMALL) is None
    for block in blocks:
        await keep(listed, disk, block)
    assert disk.may_have(SMALL), "it is not known any more"
    await listed.objects.finish()
    for block in blocks:
        assert disk.may_have(block)
        assert await find(listed, disk, block) == content_of(block)


async def test_what_is_dropped_is_not_found(listed: Listed, disk: OnDisk) -> None:
    for extent in (SMALL, OTHER, first_block(LARGE)):
        await keep(listed, disk, extent)
    # Also what waits to be written.
    await disk.drop([SMALL, SMALL._replace(length=HEAD), first_block(LARGE)], await listed.listings.get(0))
    await listed.objects.finish()
    assert await find(listed, disk, SMALL) is None
    assert await find(listed, disk, first_block(LARGE)) is None
    assert await find(listed, disk, OTHER) == content_of(OTHER)


async def test_parts_are_read_of_blocks_that_were_read_before(listed: Listed, disk: OnDisk) -> None:
    listing = await listed.listings.get(0)
    block = first_block(LARGE)
    for extent in (SMALL, block):
        await keep(listed, disk, extent)
    await listed.objects.finish()
    assert disk.get_part(block, listing, 10, 20) is None, "nobody has read it"
    for extent in (SMALL, block):
        assert await find(listed, disk, extent) == content_of(extent)
    # Their files are opened one after the other.
    disk.get_part(SMALL, listing, 10, 20)
    await until_true(lambda: disk.get_part(block, listing, 10, 20) is not None)
    assert disk.get_part(SMALL, listing, 10, 20) is None, "of a small object, all is read at once"
    assert bytes(disk.get_part(block, listing, 10, 20) or b"") == content_of(block)[10:20]
    assert disk.get_part(block._replace(offset=BLOCK), listing, 10, 20) is None
