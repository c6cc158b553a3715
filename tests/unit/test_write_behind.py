from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from idcfs import write_behind
from idcfs.cache import Cache, open_cache
from idcfs.write_behind import WriteBehind

VALUE = bytes(100_000)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    async with open_cache(tmp_path, 1 << 30) as cache:
        yield cache


async def kept(cache: Cache, numbers: range) -> list[int]:
    return [number for number in numbers if await cache.get(f"key{number}") is not None]


async def test_what_is_put_is_kept_when_writing_is_finished(cache: Cache, nursery: trio.Nursery) -> None:
    behind = WriteBehind(cache, nursery)
    await behind.finish()
    for number in range(300):
        await behind.put(f"key{number}", b"%d" % number)
    assert (await cache.usage())[0] < 300, "it is behind"
    await behind.finish()
    assert [bytes(await cache.get(f"key{number}") or b"") for number in range(300)] == [
        b"%d" % number for number in range(300)
    ]


async def test_no_more_than_a_bound_waits(cache: Cache, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "UNWRITTEN_BYTES", 3 * len(VALUE))
    monkeypatch.setattr(write_behind, "BATCH_BYTES", len(VALUE))
    behind = WriteBehind(cache, nursery)
    async with trio.open_nursery() as putting:
        for number in range(3):
            await behind.put(f"key{number}", VALUE)
        for number in range(3, 20):
            putting.start_soon(behind.put, f"key{number}", VALUE)
    assert behind._unwritten <= 3 * len(VALUE)
    await behind.finish()
    assert await kept(cache, range(20)) == list(range(20))


async def test_a_cache_that_fails_holds_nobody_up(
    cache: Cache, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.cache.RESERVE", 1 << 60)
    monkeypatch.setattr(write_behind, "UNWRITTEN_BYTES", len(VALUE))
    behind = WriteBehind(cache, nursery)
    with trio.fail_after(20):
        for number in range(20):
            await behind.put(f"key{number}", VALUE)
        await behind.finish()
    assert await kept(cache, range(20)) == []
    assert cache.failure is not None


async def test_what_is_deleted_is_not_written_later(cache: Cache, nursery: trio.Nursery) -> None:
    behind = WriteBehind(cache, nursery)
    for number in range(5):
        await behind.put(f"key{number}", VALUE)
    await trio.lowlevel.checkpoint()
    # These are being written now, and those wait.
    for number in range(5, 10):
        await behind.put(f"key{number}", VALUE)
    await behind.delete({f"key{number}" for number in range(0, 10, 2)})
    await behind.finish()
    assert await kept(cache, range(10)) == [1, 3, 5, 7, 9]
    await behind.delete({"key1"})
    assert await kept(cache, range(10)) == [3, 5, 7, 9]


async def test_deleting_all_that_waits_leaves_nobody_waiting(cache: Cache, nursery: trio.Nursery) -> None:
    behind = WriteBehind(cache, nursery)
    await behind.put("key0", VALUE)
    await behind.delete({"key0"})
    with trio.fail_after(20):
        await behind.finish()
        await behind.put("key1", VALUE)
        await behind.finish()
    assert await kept(cache, range(2)) == [1]
