import gc
import os
import threading

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from idcfs.store.arena import Arena, Region

SIZE = 1 << 20


def arena_of(size: int) -> Arena:
    """An arena that no other process will map."""
    arena = Arena(size)
    os.close(arena.descriptor)
    return arena


def all_is_free(arena: Arena) -> bool:
    return arena._free == [Region(0, arena.size)]


def overlap(one: Region, other: Region) -> bool:
    return one.start < other.stop and other.start < one.stop


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, SIZE // 3), st.integers(0, 20))))
async def test_regions_never_overlap_and_all_is_free_at_the_end(steps: list[tuple[int, int]]) -> None:
    arena = arena_of(SIZE)
    taken: list[Region] = []
    for length, which in steps:
        with trio.move_on_after(0):
            region = await arena.take(length)
            assert region.stop - region.start == length
            assert 0 <= region.start < region.stop <= SIZE
            assert not any(overlap(region, other) for other in taken)
            taken.append(region)
        if which < len(taken):
            arena.give_back(taken.pop(which))
    for region in taken:
        arena.give_back(region)
    assert all_is_free(arena)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20))
async def test_each_buffer_keeps_its_bytes(contents: list[bytes]) -> None:
    arena = arena_of(SIZE)
    buffers = []
    for content in contents:
        buffer = arena.buffer(await arena.take(len(content)))
        buffer[:] = content
        buffers.append(buffer)
    assert [bytes(buffer) for buffer in buffers] == contents


async def test_who_finds_no_room_waits_until_there_is_some() -> None:
    arena = arena_of(SIZE)
    first, second = await arena.take(SIZE // 2), await arena.take(SIZE // 2)
    found: list[Region] = []

    async def take() -> None:
        found.append(await arena.take(SIZE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        arena.give_back(first)
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        arena.give_back(second)
    assert found == [Region(0, SIZE)]


async def test_what_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        await arena_of(SIZE).take(SIZE + 1)


async def test_a_region_is_free_when_nobody_refers_to_its_bytes() -> None:
    arena = arena_of(SIZE)
    buffer = arena.buffer(await arena.take(SIZE))
    part = buffer[10:20]
    del buffer
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert not all_is_free(arena)
    del part
    with trio.fail_after(5):
        assert await arena.take(SIZE) == Region(0, SIZE)


async def test_a_region_is_given_back_from_another_thread() -> None:
    arena = arena_of(SIZE)
    buffers = [arena.buffer(await arena.take(SIZE // 64)) for _ in range(64)]

    def drop() -> None:
        while buffers:
            try:
                buffers.pop()
            except IndexError:
                return

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    with trio.fail_after(5):
        await arena.take(SIZE)


def test_bytes_that_are_kept_longer_than_the_event_loop_harm_nobody() -> None:
    async def run() -> memoryview:
        arena = arena_of(SIZE)
        buffer = arena.buffer(await arena.take(5))
        buffer[:] = b"12345"
        return buffer

    buffer = trio.run(run)
    assert bytes(buffer) == b"12345"
    del buffer
    gc.collect()
