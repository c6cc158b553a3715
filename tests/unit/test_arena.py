import gc
import os
import threading
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from idcfs.processes.arena import Arena

SIZE = 1 << 20


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    with Arena(SIZE) as arena:
        yield arena


def place(arena: Arena, buffer: memoryview) -> range:
    """Where a buffer is in its arena."""
    start = arena.start(buffer)
    assert start is not None
    return range(start, start + len(buffer))


def overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, SIZE // 3), st.integers(0, 20))))
async def test_buffers_never_overlap_and_all_is_free_at_the_end(steps: list[tuple[int, int]]) -> None:
    with Arena(SIZE) as arena:
        taken: list[memoryview] = []
        for length, which in steps:
            buffer = arena.take_now(length)
            with trio.move_on_after(0):
                # The one that waits finds what the other finds.
                buffer = buffer or await arena.take(length)
            if buffer is not None:
                where = place(arena, buffer)
                assert len(buffer) == length
                assert 0 <= where.start < where.stop <= SIZE
                assert not any(overlap(where, place(arena, other)) for other in taken)
                taken.append(buffer)
            del buffer
            if which < len(taken):
                taken.pop(which)
        taken.clear()
        gc.collect()
        assert arena.take_now(SIZE) is not None


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20))
async def test_each_buffer_keeps_its_bytes(contents: list[bytes]) -> None:
    with Arena(SIZE) as arena:
        buffers = []
        for content in contents:
            buffer = await arena.take(len(content))
            buffer[:] = content
            buffers.append(buffer)
        assert [bytes(buffer) for buffer in buffers] == contents


async def test_whoever_maps_the_descriptor_sees_the_bytes_where_they_are(arena: Arena) -> None:
    first, second = await arena.take(100), await arena.take(5)
    first[:] = b"x" * 100
    second[:] = b"12345"
    assert os.pread(arena.descriptor, 5, place(arena, second).start) == b"12345"
    assert arena.size == SIZE


async def test_where_buffers_are_that_are_not_of_the_arena_or_are_parts(arena: Arena) -> None:
    buffer = await arena.take(100)
    assert place(arena, buffer[10:20]).start == place(arena, buffer).start + 10
    with Arena(SIZE) as other:
        assert arena.start(await other.take(100)) is None
    assert arena.start(memoryview(b"bytes")) is None
    assert arena.start(memoryview(bytearray(5))) is None


async def test_who_finds_no_room_waits_until_there_is_some(arena: Arena) -> None:
    halves = [await arena.take(SIZE // 2), await arena.take(SIZE // 2)]
    assert arena.take_now(1) is None
    found: list[range] = []

    async def take() -> None:
        found.append(place(arena, await arena.take(SIZE)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        halves.pop()
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        halves.pop()
    assert found == [range(SIZE)]


async def test_all_who_wait_are_served_one_after_the_other(arena: Arena) -> None:
    held = [await arena.take(SIZE)]
    served: list[int] = []

    async def take(number: int) -> None:
        buffer = await arena.take(SIZE - number)
        await trio.testing.wait_all_tasks_blocked()
        served.append(number)
        del buffer

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
            held.clear()
    assert sorted(served) == list(range(10))


@pytest.mark.parametrize("when", ["before", "while somebody waits"])
async def test_who_finds_no_room_takes_what_is_kept_only_because_it_may_be_useful(arena: Arena, when: str) -> None:
    used, kept = [await arena.take(SIZE // 2), await arena.take(SIZE // 2)], list[memoryview]()

    def forget() -> bool:
        return bool(kept and kept.pop())

    arena.reclaim = forget
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            if when == "before":
                kept.append(used.pop())
            nursery.start_soon(arena.take, SIZE // 2)
            await trio.testing.wait_all_tasks_blocked()
            if when != "before":
                kept.append(used.pop())
                arena.reclaimable()
    assert not kept


async def test_what_never_fits_is_refused(arena: Arena) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        await arena.take(SIZE + 1)
    assert arena.take_now(SIZE + 1) is None


async def test_what_is_to_end_before_a_place_leaves_the_rest_to_others(arena: Arena) -> None:
    taken = [await arena.take(300, arena.reserve) for _ in range(arena.reserve // 300)]
    assert arena.take_now(300, arena.reserve) is None
    rest = [arena.take_now(arena.reserve % 300 or 1, arena.reserve), arena.take_now(SIZE - arena.reserve)]
    assert None not in rest
    assert arena.take_now(1) is None
    found: list[range] = []

    async def wait() -> None:
        found.append(place(arena, await arena.take(300, arena.reserve)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        rest.pop()
        await trio.testing.wait_all_tasks_blocked()
        assert not found, "it is not before that place"
        taken.pop(0)
    assert found == [range(300)]
    with pytest.raises(ValueError, match="do not fit"):
        await arena.take(arena.reserve + 1, arena.reserve)


async def test_a_buffer_is_free_when_nobody_refers_to_its_bytes(arena: Arena) -> None:
    buffer = await arena.take(SIZE)
    part = buffer[10:20]
    del buffer
    gc.collect()
    assert arena.take_now(1) is None
    del part
    with trio.fail_after(20):
        assert place(arena, await arena.take(SIZE)) == range(SIZE)


async def test_a_buffer_is_freed_from_another_thread(arena: Arena) -> None:
    buffers = [await arena.take(SIZE // 64) for _ in range(64)]

    def drop() -> None:
        while buffers:
            try:
                buffers.pop()
            except IndexError:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arena.take, SIZE)
        await trio.testing.wait_all_tasks_blocked()
        threads = [threading.Thread(target=drop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
        nursery.cancel_scope.deadline = trio.current_time() + 20
    assert not nursery.cancel_scope.cancelled_caught


async def test_nothing_is_left_open_at_the_end() -> None:
    with Arena(SIZE) as arena:
        descriptor = arena.descriptor
        buffer = await arena.take(5)
        buffer[:] = b"12345"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert bytes(buffer) == b"12345", "who has bytes keeps them"


def test_bytes_that_are_kept_longer_than_the_event_loop_harm_nobody() -> None:
    async def run() -> memoryview:
        with Arena(SIZE) as arena:
            buffer = await arena.take(5)
        buffer[:] = b"12345"
        return buffer

    buffer = trio.run(run)
    assert bytes(buffer) == b"12345"
    del buffer
    gc.collect()
