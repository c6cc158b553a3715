import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing
from idcfs.cache.listing_cache import open_cache

from idcfs.cache.client import ExtentCache, open_extent_cache
from idcfs.cache.entries import Entries
from idcfs.cache.server import CacheWorker
from idcfs.errors import CacheUnusable
from idcfs.processes.arena import Arena
from tests.conftest import WarningsLogged
from tests.processes import children_of, is_running, stopped

LIMIT = 1 << 30
SMALL = b"small"
LARGE = bytes(range(256)) * 400
"""Large enough for a file of its own; smaller values are in the database."""

PATIENCE = 20


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    with Arena(8 << 20) as arena:
        yield arena


@pytest.fixture
async def cache(tmp_path: Path, arena: Arena) -> AsyncIterator[ExtentCache]:
    async with open_extent_cache(tmp_path, LIMIT, arena) as cache:
        yield cache


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


def worker() -> int:
    """The id of the one worker process."""
    (found,) = children_of(os.getpid(), "idcfs.cache.server")
    return found


async def value(cache: ExtentCache, key: str, length: int = len(LARGE)) -> bytes | None:
    found = await cache.get(key, length)
    return None if found is None else bytes(found)


async def kept(cache: ExtentCache, numbers: range) -> list[int]:
    return [number for number in numbers if await value(cache, f"key{number}") == LARGE]


async def part(cache: ExtentCache, key: str, start: int, stop: int, seconds: float = PATIENCE) -> bytes | None:
    """A part, from a file that the question for one has opened."""
    found = cache.get_part(key, start, stop)
    with trio.move_on_after(seconds):
        while found is None:
            await trio.sleep(0.01)
            found = cache.get_part(key, start, stop)
    return None if found is None else bytes(found)


async def test_parts_of_what_was_read_are_read_by_themselves(tmp_path: Path, cache: ExtentCache) -> None:
    cache.put("key", LARGE)
    cache.put("inline", SMALL)
    await cache.finish()
    assert cache.get_part("key", 0, 10) is None, "nobody has read it"
    assert await cache.get("key", len(LARGE), in_parts=True) is not None
    assert await cache.get("inline", len(SMALL), in_parts=True) is not None
    assert await part(cache, "inline", 0, 1, seconds=1) is None, "it has no file of its own"
    assert await part(cache, "key", 1000, 1300) == LARGE[1000:1300]
    assert await cache.get("key", len(LARGE), in_parts=True) is not None
    assert cache.get_part("key", 1000, 1300) == LARGE[1000:1300], "its file is still open"
    (file,) = files(tmp_path)
    with file.open("r+b") as damaged:
        damaged.seek(-len(LARGE), os.SEEK_END)
        damaged.write(b"!")
    assert cache.get_part("key", 0, 10) is None
    assert await value(cache, "key") is None, "so it is fetched again"


def test_what_was_to_be_kept_is_kept_when_nobody_takes_the_answers(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    entries = Entries(tmp_path, LIMIT)

    def ask(**request: object) -> None:
        ours.sendall(json.dumps(request).encode() + b"\n")

    with theirs, ThreadPoolExecutor(1) as threads:
        ask(id=0, do="usage")
        served = threads.submit(CacheWorker(entries, memoryview(LARGE), theirs).serve)
        select.select([ours], [], [], PATIENCE)
        for number in range(20):
            ask(id=number, do="put", key=f"key{number}", length=len(LARGE), at=0)
        ours.close()
        served.result(PATIENCE)
    assert [bytes(entries.get(f"key{number}") or b"") == LARGE for number in range(20)] == [True] * 20
    entries.close()


SWEEPS_OFTEN = """
from idcfs.cache import server as cache_worker
from idcfs.cache import upkeep
cache_worker.SWEEP_AFTER, upkeep.ORPHAN_SECONDS = 0, 1.0
cache_worker.main()
"""


async def test_a_worker_sweeps_again_and_again(tmp_path: Path, arena: Arena) -> None:
    with contextlib.closing(Entries(tmp_path, LIMIT)) as entries:
        entries.put_many([("key", LARGE)])
    ours, theirs = socket.socketpair()
    options = {"folder": str(tmp_path), "limit": LIMIT, "swept": [str(tmp_path)], "socket": theirs.fileno()}
    command = [sys.executable, "-c", SWEEPS_OFTEN]
    command.append(json.dumps({**options, "arena": arena.descriptor, "arena_size": arena.size}))
    process = await trio.lowlevel.open_process(command, pass_fds=(theirs.fileno(), arena.descriptor))
    theirs.close()
    for name in ("0" * 28, "1" * 28):
        left = files(tmp_path)[0].with_name(f"{name}.val")
        left.write_bytes(LARGE)
        with trio.fail_after(PATIENCE):
            while left.exists():  # noqa: ASYNC110  # a worker tells nobody
                await trio.sleep(0.01)
    # At which it ends.
    ours.close()
    await process.wait()
    assert len(files(tmp_path)) == 1


async def test_what_is_dropped_has_no_parts(cache: ExtentCache) -> None:
    cache.put("key", LARGE)
    await cache.finish()
    assert await cache.get("key", len(LARGE), in_parts=True) is not None
    assert await part(cache, "key", 0, 10) is not None
    await cache.delete({"key"})
    assert await part(cache, "key", 0, 10, seconds=1) is None


@pytest.mark.parametrize("content", [b"x", SMALL, LARGE])
async def test_what_is_put_is_found_when_it_is_written_and_later(tmp_path: Path, arena: Arena, content: bytes) -> None:
    async with open_extent_cache(tmp_path / "a" / "b", LIMIT, arena) as cache:
        await cache.finish()
        assert await value(cache, "key", len(content)) is None
        cache.put("key", content)
        await cache.finish()
        assert await value(cache, "key", len(content)) == content
        assert await value(cache, "other", len(content)) is None
        async with open_extent_cache(tmp_path / "a" / "b", LIMIT, arena) as other:
            assert await value(other, "key", len(content)) == content
        assert cache.failure is None
    async with open_extent_cache(tmp_path / "a" / "b", LIMIT, arena) as cache:
        assert await value(cache, "key", len(content)) == content
        assert (await cache.usage())[0] == 1
        await cache.delete({"key"})
        assert await value(cache, "key", len(content)) is None
        assert (await cache.usage())[0] == 0


async def test_it_is_one_cache_with_that_of_threads(tmp_path: Path, cache: ExtentCache) -> None:
    cache.put("key", LARGE)
    await cache.finish()
    async with open_cache(tmp_path, LIMIT) as other:
        assert bytes(await other.get("key") or b"") == LARGE
        await other.put("other", SMALL)
    assert await value(cache, "other", len(SMALL)) == SMALL


async def test_values_of_the_arena_and_others_are_kept_as_they_were_when_they_were_put(
    cache: ExtentCache, arena: Arena
) -> None:
    for number in range(50):
        buffer = await arena.take(len(LARGE))
        buffer[:] = LARGE
        cache.put(f"key{number}", buffer)
        # Who puts it does not hold it; its place must not go to the next before it is written.
        del buffer
        other = await arena.take(len(LARGE))
        other[:] = bytes(len(LARGE))
        del other
        passing = bytearray(LARGE)
        cache.put(f"key{number + 50}", memoryview(passing))
        passing[:] = bytes(len(LARGE))
    await cache.finish()
    assert await kept(cache, range(100)) == list(range(100))


async def test_a_value_that_does_not_fit_into_the_arena_is_not_kept_and_holds_nobody_up(
    cache: ExtentCache, arena: Arena
) -> None:
    cache.put("key", bytes(arena.size + 1))
    with trio.fail_after(PATIENCE):
        await cache.finish()
    assert (await cache.usage())[0] == 0


async def test_a_value_of_another_length_is_a_miss_and_stays(cache: ExtentCache) -> None:
    for key, content in (("small", SMALL), ("large", LARGE)):
        cache.put(key, content)
        await cache.finish()
        for length in (len(content) - 1, len(content) + 1, 1):
            assert await value(cache, key, length) is None
        assert await value(cache, key, len(content)) == content
    assert cache.failure is None


async def test_a_corrupt_entry_is_a_miss_and_dropped(tmp_path: Path, cache: ExtentCache) -> None:
    cache.put("key", LARGE)
    cache.put("other", LARGE)
    await cache.finish()
    for file in files(tmp_path):
        data = bytearray(file.read_bytes())
        data[5000] ^= 4
        file.write_bytes(data)
    assert await value(cache, "key") is None
    assert await value(cache, "other") is None
    assert files(tmp_path) == []
    assert (await cache.usage())[0] == 0
    cache.put("key", LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE
    assert cache.failure is None


async def test_whether_anything_has_a_prefix(tmp_path: Path, cache: ExtentCache) -> None:
    assert not await cache.has_any("a/")
    cache.put("a/b", SMALL)
    await cache.finish()
    assert await cache.has_any("a/")
    assert not await cache.has_any("b/")
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as sql, sql:
        sql.execute("DROP TABLE Cache")
    assert await cache.has_any("b/"), "nobody can tell, so it is worth a look"
    assert not await cache.has_any("b/"), "there is a new database"


async def test_no_more_than_a_bound_waits_to_be_written(cache: ExtentCache, arena: Arena) -> None:
    put: list[int] = []

    async def put_when_there_is_room() -> None:
        await cache.room()
        put.append(len(put))
        cache.put(f"key{put[-1]}", LARGE)

    with stopped(worker()):
        while cache.has_room():
            await put_when_there_is_room()
            assert len(put) * len(LARGE) < arena.size / 2, "the rest is for what is being fetched"
        before = list(put)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_when_there_is_room)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert put == before
            os.kill(worker(), signal.SIGCONT)
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert len(put) == len(before) + 1
    await cache.finish()
    assert cache.has_room()
    assert await kept(cache, range(len(put))) == put


async def test_what_is_deleted_is_not_written_later(cache: ExtentCache) -> None:
    for number in range(40):
        cache.put(f"key{number}", LARGE)
    await cache.delete({f"key{number}" for number in range(0, 40, 2)})
    cache.put("key4", LARGE)
    await cache.finish()
    assert await kept(cache, range(40)) == sorted([4, *range(1, 40, 2)])
    await cache.delete({"key1", "key4", "key0"})
    assert await kept(cache, range(5)) == [3]


async def test_a_value_put_anew_takes_the_place_of_the_other(cache: ExtentCache) -> None:
    for number in range(20):
        cache.put("key", LARGE[::-1] if number % 2 else LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE[::-1]
    assert (await cache.usage())[0] == 1


async def test_a_cache_that_fails_holds_nobody_up_and_says_why(tmp_path: Path, cache: ExtentCache) -> None:
    in_the_way = [tmp_path / f"{number:02x}" for number in range(256)]
    for path in in_the_way:
        path.touch()
    with trio.fail_after(PATIENCE):
        for number in range(100):
            cache.put(f"key{number}", LARGE)
            await cache.room()
        await cache.finish()
        assert await kept(cache, range(100)) == []
        await cache.delete({"key0"})
    assert cache.failure is not None
    assert "Not a directory" in cache.failure
    assert str(tmp_path) in cache.failure
    for path in in_the_way:
        path.unlink()
    assert await value(cache, "key0") is None
    assert cache.failure is not None, "that reading works says nothing of writing"
    cache.put("key0", LARGE)
    await cache.finish()
    await cache.delete({"key1"})
    assert cache.failure is None
    assert await value(cache, "key0") == LARGE


async def test_a_worker_that_is_killed_makes_misses_and_is_replaced(cache: ExtentCache, arena: Arena) -> None:
    cache.put("key0", LARGE)
    await cache.finish()
    first = worker()
    os.kill(first, signal.SIGSTOP)
    # So that these have not been written when it is killed.
    for number in range(1, 10):
        cache.put(f"key{number}", LARGE)
    found: list[bytes | None] = []

    async def look() -> None:
        found.append(await value(cache, "key0"))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(first, signal.SIGKILL)
        await cache.finish()
        assert found == [None] * 3
        assert cache.failure is not None
        assert "ended" in cache.failure
        assert await value(cache, "key0") == LARGE
        assert worker() != first
        for number in range(1, 10):
            cache.put(f"key{number}", LARGE)
        await cache.finish()
    assert await kept(cache, range(10)) == list(range(10))
    assert cache.failure is None
    assert arena.take_now(arena.size) is not None, "whoever was waiting has let go of the memory"


async def test_a_worker_that_does_not_answer_holds_nobody_up_and_is_replaced(
    cache: ExtentCache, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.cache.client.ANSWER_SECONDS", 0.3)
    cache.put("key", LARGE)
    await cache.finish()
    first = worker()
    os.kill(first, signal.SIGSTOP)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                # More than there is room for.
                cache.put(f"key{number}", LARGE)
                nursery.start_soon(cache.room)
                nursery.start_soon(cache.get, "key", len(LARGE))
        assert cache.failure is not None
        assert "no answer" in cache.failure
        assert await value(cache, "key") is None, "nobody is asked before another worker has answered"
        while await value(cache, "key") != LARGE:  # noqa: ASYNC110  # a cache calls nobody
            await trio.sleep(0.01)
        assert not is_running(first)
        cache.put("other", LARGE)
        await cache.finish()
        assert cache.failure is None
    assert arena.take_now(arena.size - 2 * len(LARGE)) is not None, "those who waited have let go of the memory"


async def test_who_only_reads_from_a_worker_that_does_not_answer_is_not_held_up(
    cache: ExtentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.cache.client.ANSWER_SECONDS", 0.3)
    cache.put("key", LARGE)
    await cache.finish()
    with stopped(worker()), trio.fail_after(PATIENCE):
        assert await value(cache, "key") is None
        while await value(cache, "key") != LARGE:  # noqa: ASYNC110  # a cache calls nobody
            await trio.sleep(0.01)
    assert cache.failure is None


async def test_a_caller_who_gives_up_leaves_the_memory_to_the_worker_until_it_answers(
    cache: ExtentCache, arena: Arena
) -> None:
    cache.put("key", LARGE)
    await cache.finish()
    with stopped(worker()):
        with trio.move_on_after(0.1):
            await cache.get("key", len(LARGE))
        taken = arena.take_now(len(LARGE))
        assert taken is not None
        taken[:] = bytes(len(LARGE))
    assert await value(cache, "key") == LARGE
    assert bytes(taken) == bytes(len(LARGE))


async def test_a_database_that_is_locked_makes_misses_of_writes_only(tmp_path: Path, cache: ExtentCache) -> None:
    cache.put("key", LARGE)
    await cache.finish()
    busy = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    with trio.fail_after(PATIENCE):
        for number in range(50):
            cache.put(f"key{number}", LARGE)
            await cache.finish()
            assert await value(cache, "key") == LARGE
    busy.close()
    assert cache.failure is not None
    assert "locked by another process" in cache.failure


async def test_a_folder_that_is_removed_is_made_anew(tmp_path: Path, arena: Arena) -> None:
    async with open_extent_cache(tmp_path / "cache", LIMIT, arena) as cache:
        cache.put("key", LARGE)
        await cache.finish()
        shutil.rmtree(tmp_path / "cache")
        assert await value(cache, "key") is None
        cache.put("key", LARGE)
        await cache.finish()
        assert await value(cache, "key") == LARGE
        assert cache.failure is None


async def test_a_worker_that_cannot_start_makes_misses(
    cache: ExtentCache, monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    cache.put("key", LARGE)
    await cache.finish()
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/no/such/python")
        os.kill(worker(), signal.SIGKILL)
        with trio.fail_after(PATIENCE):
            while cache.failure is None or "cannot be started" not in cache.failure:
                assert await value(cache, "key") in {None, LARGE}
            cache.put("key", LARGE)
            await cache.finish()
    while warnings_logged.messages:
        warnings_logged.take("cannot be started")
    with trio.fail_after(PATIENCE):
        while await value(cache, "key") != LARGE:
            await cache.finish()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_a_worker_ignores_what_is_for_the_mount(cache: ExtentCache, signal_number: int) -> None:
    before = worker()
    os.kill(before, signal_number)
    cache.put("key", LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE
    assert worker() == before


async def test_what_was_put_is_kept_although_its_owner_closes_at_once(tmp_path: Path, arena: Arena) -> None:
    async with open_extent_cache(tmp_path, LIMIT, arena) as cache:
        process = worker()
        for number in range(50):
            cache.put(f"key{number}", LARGE)
        # What was not even sent is lost.
        await trio.testing.wait_all_tasks_blocked()
    assert not is_running(process)
    async with open_extent_cache(tmp_path, LIMIT, arena) as cache:
        assert await kept(cache, range(50)) == list(range(50))


async def test_a_cache_that_is_closed_makes_misses(tmp_path: Path, arena: Arena) -> None:
    async with open_extent_cache(tmp_path, LIMIT, arena) as cache:
        cache.put("key", LARGE)
        await cache.finish()
    with trio.fail_after(PATIENCE):
        cache.put("other", LARGE)
        await cache.finish()
        assert await value(cache, "key") is None
    assert cache.failure is not None
    assert children_of(os.getpid(), "idcfs.cache.server") == []


async def test_what_is_no_folder_is_said_in_one_line(
    tmp_path: Path, arena: Arena, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheUnusable, match="--cache-dir") as raised:
        async with open_extent_cache(tmp_path / "cache", LIMIT, arena):
            pass
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "cache") in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert children_of(os.getpid(), "idcfs.cache.server") == []


async def test_what_is_no_database_is_set_aside_and_said_in_the_log(
    tmp_path: Path, arena: Arena, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache.db").write_bytes(b"garbage" * 1000)
    async with open_extent_cache(tmp_path, LIMIT, arena) as cache:
        cache.put("key", LARGE)
        await cache.finish()
        assert await value(cache, "key") == LARGE
    assert "its database is damaged" in capfd.readouterr().err
