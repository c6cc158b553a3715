"""The client of the caches and their server: what is kept, and what becomes of callers when something fails."""

import contextlib
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

from idcfs.cache.client import FIRST_CAPACITY, UNWRITTEN_PART, Cache, open_caches
from idcfs.cache.entries import Entries
from idcfs.cache.messages import Delete, Folders, GetUsage, Put
from idcfs.cache.server import Server
from idcfs.errors import CacheUnusable
from idcfs.processes.arena import Arena
from idcfs.processes.messages import encode
from idcfs.processes.server import Connection
from tests.conftest import WarningsLogged
from tests.processes import PATIENCE, children_of, is_running, stopped, until_true
from tests.unit.test_entries import value as value_of

LIMIT = 1 << 30
SMALL = b"small"
LARGE = bytes(range(256)) * 400
"""Large enough for a file of its own; smaller values are in the database."""

NAMES = ("objects", "listings")


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    with Arena(8 << 20) as arena:
        yield arena
        assert arena.leased == 0, "after every outcome, all memory is free again"


@contextlib.asynccontextmanager
async def open_in(folder: Path, arena: Arena) -> AsyncIterator[dict[str, Cache]]:
    """The caches of a mount, each in its folder."""
    async with open_caches({name: (folder / name, LIMIT) for name in NAMES}, arena) as caches:
        yield caches


@pytest.fixture
async def caches(tmp_path: Path, arena: Arena) -> AsyncIterator[dict[str, Cache]]:
    async with open_in(tmp_path, arena) as caches:
        yield caches


@pytest.fixture
async def cache(caches: dict[str, Cache]) -> Cache:
    return caches["objects"]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


def servers() -> list[int]:
    return children_of(os.getpid(), "idcfs.cache.server")


def server() -> int:
    """The id of the one server."""
    (found,) = servers()
    return found


def stop(process: int) -> None:
    os.kill(process, signal.SIGSTOP)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Have callers wait for answers for a moment only."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("idcfs.cache.client.ANSWER_SECONDS", 0.3)
        yield


async def value(cache: Cache, key: str, length: int = len(LARGE)) -> bytes | None:
    lease = await cache.get(key, length)
    if lease is None:
        return None
    with lease:
        return bytes(lease.view)


async def kept(cache: Cache, numbers: range) -> list[int]:
    return [number for number in numbers if await value(cache, f"key{number}") == LARGE]


async def part(cache: Cache, key: str, start: int, stop: int, seconds: float = PATIENCE) -> bytes | None:
    """A part, from a file that the question for one has opened."""
    found = cache.get_part(key, start, stop)
    with trio.move_on_after(seconds):
        while found is None:
            await trio.sleep(0.01)
            found = cache.get_part(key, start, stop)
    return None if found is None else bytes(found)


async def noted(cache: Cache, key: str, length: int) -> None:
    """Have a value read whole, whose parts are read later."""
    lease = await cache.get(key, length, in_parts=True)
    assert lease is not None
    lease.release()


async def is_found_again(cache: Cache) -> None:
    """Wait until `LARGE` is found under "key"."""
    with trio.fail_after(PATIENCE):
        while await value(cache, "key") != LARGE:  # noqa: ASYNC110  # a cache calls nobody
            await trio.sleep(0.01)


@pytest.mark.parametrize("content", [b"x", SMALL, LARGE])
async def test_a_value_is_found_when_it_is_written_and_later(tmp_path: Path, arena: Arena, content: bytes) -> None:
    folder = tmp_path / "a" / "b"
    async with open_in(folder, arena) as caches:
        cache = caches["objects"]
        await cache.finish()
        assert await value(cache, "key", len(content)) is None
        await cache.put_bytes("key", content)
        await cache.finish()
        assert await value(cache, "key", len(content)) == content
        assert await value(cache, "other", len(content)) is None
        async with open_in(folder, arena) as others:
            assert await value(others["objects"], "key", len(content)) == content
        assert cache.failure is None
    async with open_in(folder, arena) as caches:
        cache = caches["objects"]
        assert await value(cache, "key", len(content)) == content
        assert await cache.usage() > (1, 0)
        await cache.delete({"key"})
        assert await value(cache, "key", len(content)) is None
        assert await cache.usage() < (1, 0)


@pytest.mark.parametrize("length", [1, 255, FIRST_CAPACITY - 1, FIRST_CAPACITY, FIRST_CAPACITY + 1, 1 << 20])
async def test_a_value_of_unknown_length_is_found(cache: Cache, length: int) -> None:
    content = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    assert await cache.get_bytes("key") is None
    await cache.put_bytes("key", content)
    await cache.finish()
    assert await cache.get_bytes("key") == content
    await cache.delete(["key"])
    assert await cache.get_bytes("key") is None
    assert cache.failure is None


async def test_a_value_of_unknown_length_that_grows_meanwhile_is_found(cache: Cache, arena: Arena) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    larger = await arena.take(3 * len(LARGE))
    larger.view[:] = LARGE * 3
    # Enough for the first try only.
    rest = await arena.take(arena.size - arena.leased - FIRST_CAPACITY)
    found: list[bytes | None] = []

    async def get() -> None:
        found.append(await cache.get_bytes("key"))

    async with trio.open_nursery() as nursery:
        with stopped(server()):
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            assert arena.leased == arena.size
        await until_true(lambda: arena.leased < arena.size)
        with larger:
            cache.put("key", larger)
        await cache.finish()
        assert not found
        rest.release()
    assert found == [LARGE * 3]


async def test_a_value_that_does_not_fit_into_the_arena_is_not_kept_and_holds_nobody_up(
    tmp_path: Path, cache: Cache, arena: Arena
) -> None:
    with trio.fail_after(PATIENCE):
        await cache.put_bytes("key", bytes(arena.size + 1))
        await cache.finish()
    assert await cache.usage() < (1, 0)
    # A mount with more memory may have kept it.
    with contextlib.closing(Entries(cache.folder, LIMIT)) as entries:
        entries.put_many([("key", bytes(arena.size + 1))])
    with trio.fail_after(PATIENCE):
        assert await cache.get_bytes("key") is None


async def test_one_server_keeps_each_cache_by_itself(tmp_path: Path, caches: dict[str, Cache]) -> None:
    objects, listings = caches["objects"], caches["listings"]
    assert (objects.folder, listings.folder) == (tmp_path / "objects", tmp_path / "listings")
    assert len(servers()) == 1
    for number in range(20):
        await objects.put_bytes("key", LARGE)
        await listings.put_bytes(f"key{number}", SMALL)
    await objects.put_bytes("other", LARGE)
    await objects.finish()
    await listings.finish()
    assert await listings.get_bytes("key") is None
    assert await objects.get_bytes("key0") is None
    assert [(await cache.usage()).entries for cache in (objects, listings)] == [2, 20]
    assert await objects.has_any("o")
    assert not await listings.has_any("o")
    await listings.delete(["key", "key0"])
    assert await objects.get_bytes("key") == LARGE
    assert await listings.get_bytes("key0") is None
    assert await listings.get_bytes("key1") == SMALL
    assert len(servers()) == 1


async def test_a_cache_that_fails_does_not_make_the_other_fail(tmp_path: Path, caches: dict[str, Cache]) -> None:
    objects, listings = caches["objects"], caches["listings"]
    shutil.rmtree(tmp_path / "objects")
    (tmp_path / "objects").touch()
    await objects.put_bytes("key", LARGE)
    await listings.put_bytes("key", LARGE)
    await objects.finish()
    await listings.finish()
    assert await objects.get_bytes("key") is None
    assert objects.failure is not None
    assert str(tmp_path / "objects") in objects.failure
    assert await listings.get_bytes("key") == LARGE
    assert listings.failure is None


async def test_parts_of_a_value_that_was_read_are_read_by_themselves(tmp_path: Path, cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.put_bytes("inline", SMALL)
    await cache.finish()
    assert cache.get_part("key", 0, 10) is None, "nobody has read it"
    await noted(cache, "key", len(LARGE))
    await noted(cache, "inline", len(SMALL))
    assert await part(cache, "inline", 0, 1, seconds=1) is None, "it has no file of its own"
    assert await part(cache, "key", 1000, 1300) == LARGE[1000:1300]
    await noted(cache, "key", len(LARGE))
    assert bytes(cache.get_part("key", 1000, 1300) or b"") == LARGE[1000:1300], "its file is still open"
    (file,) = files(tmp_path)
    with file.open("r+b") as damaged:
        damaged.seek(-len(LARGE), os.SEEK_END)
        damaged.write(b"!")
    assert cache.get_part("key", 0, 10) is None
    assert await value(cache, "key") is None, "so it is fetched again"


async def test_a_value_that_is_dropped_has_no_parts(cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    await noted(cache, "key", len(LARGE))
    assert await part(cache, "key", 0, 10) is not None
    await cache.delete({"key"})
    assert await part(cache, "key", 0, 10, seconds=1) is None


def test_values_are_kept_although_nobody_takes_the_answers(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    entries = Entries(tmp_path, LIMIT)
    with theirs, ThreadPoolExecutor(1) as threads:
        ours.sendall(encode(0, GetUsage("objects")))
        connection = Connection(theirs, [Put, GetUsage])
        served = threads.submit(Server({"objects": entries}, memoryview(LARGE), connection).serve)
        select.select([ours], [], [], PATIENCE)
        for number in range(20):
            ours.sendall(encode(number, Put("objects", f"key{number}", len(LARGE), 0)))
        ours.close()
        served.result(PATIENCE)
    assert [value_of(entries, f"key{number}") for number in range(20)] == [LARGE] * 20
    entries.close()


def test_puts_and_deletes_are_done_in_their_order(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    caches = {name: Entries(tmp_path / name, LIMIT) for name in NAMES}
    asked = b"".join(
        encode(number, message)
        for number, message in enumerate(
            message
            for name in (*NAMES, *NAMES)
            for message in (
                Put(name, "kept", len(LARGE), 0),
                Put(name, "dropped", len(LARGE), 0),
                Delete(name, ["kept", "dropped"]),
                Put(name, "kept", len(SMALL), 0),
            )
        )
    )
    # All wait when the server begins, so that it may do several at once.
    ours.sendall(asked)
    ours.shutdown(socket.SHUT_WR)
    with ours, theirs:
        Server(caches, memoryview(LARGE), Connection(theirs, [Put, Delete])).serve()
    for entries in caches.values():
        assert value_of(entries, "kept") == LARGE[: len(SMALL)]
        assert entries.get("dropped") is None
        entries.close()


SWEEPS_OFTEN = """
from idcfs.cache import server, upkeep
server.SWEEP_AFTER, upkeep.ORPHAN_SECONDS = 0, 1.0
server.main()
"""


async def test_a_server_sweeps_its_folders_again_and_again(tmp_path: Path, arena: Arena) -> None:
    folders = [tmp_path / name for name in NAMES]
    for folder in folders:
        with contextlib.closing(Entries(folder, LIMIT)) as entries:
            entries.put_many([("key", LARGE)])
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", SWEEPS_OFTEN, *map(str, (theirs.fileno(), arena.descriptor, arena.size))]
    process = await trio.lowlevel.open_process(command, pass_fds=(theirs.fileno(), arena.descriptor))
    theirs.close()
    ours.sendall(encode(0, Folders([(folder.name, str(folder), LIMIT) for folder in folders])))
    for name in ("0" * 28, "1" * 28):
        left = [files(folder)[0].with_name(f"{name}.val") for folder in folders]
        for file in left:
            file.write_bytes(LARGE)
        await until_true(lambda left=left: not any(file.exists() for file in left))  # type: ignore[misc]
    # At which it ends.
    ours.close()
    await process.wait()
    assert [len(files(folder)) for folder in folders] == [1, 1]


async def test_values_are_kept_as_they_were_when_they_were_put(cache: Cache, arena: Arena) -> None:
    for number in range(100):
        with await arena.take(len(LARGE)) as lease:
            lease.view[:] = LARGE
            cache.put(f"key{number}", lease)
        # Its region must not go to the next before it is written.
        with await arena.take(len(LARGE)) as other:
            other.view[:] = bytes(len(LARGE))
    await cache.finish()
    assert await kept(cache, range(100)) == list(range(100))


async def test_a_value_of_another_length_is_a_miss_and_stays(cache: Cache) -> None:
    for key, content in (("small", SMALL), ("large", LARGE)):
        await cache.put_bytes(key, content)
        await cache.finish()
        for length in (len(content) - 1, len(content) + 1, 1):
            assert await value(cache, key, length) is None
        assert await value(cache, key, len(content)) == content
    assert cache.failure is None


async def test_a_corrupt_entry_is_a_miss_and_dropped(tmp_path: Path, cache: Cache) -> None:
    for key in ("key", "other", "unknown"):
        await cache.put_bytes(key, LARGE)
    await cache.finish()
    for file in files(tmp_path):
        data = bytearray(file.read_bytes())
        data[5000] ^= 4
        file.write_bytes(data)
    assert await value(cache, "key") is None
    assert await value(cache, "other") is None
    assert await cache.get_bytes("unknown") is None
    assert files(tmp_path) == []
    assert await cache.usage() < (1, 0)
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE
    assert cache.failure is None


async def test_keys_are_found_by_their_prefix(cache: Cache) -> None:
    assert not await cache.has_any("a/")
    await cache.put_bytes("a/b", SMALL)
    await cache.finish()
    assert await cache.has_any("a/")
    assert not await cache.has_any("b/")
    with contextlib.closing(sqlite3.connect(cache.folder / "cache.db")) as sql, sql:
        sql.execute("DROP TABLE Cache")
    assert await cache.has_any("b/"), "the answer is not known, so the disk is asked"
    assert not await cache.has_any("b/"), "there is a new database"


async def test_no_more_than_a_part_of_the_arena_waits_to_be_written(cache: Cache, arena: Arena) -> None:
    put: list[int] = []

    async def put_when_there_is_room() -> None:
        await cache.room()
        put.append(len(put))
        await cache.put_bytes(f"key{put[-1]}", LARGE)

    with stopped(server()):
        while cache.has_room():
            await put_when_there_is_room()
            assert arena.leased <= arena.size * UNWRITTEN_PART + len(LARGE), "the rest is for what is being fetched"
        before = list(put)
        assert arena.leased == len(before) * len(LARGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_when_there_is_room)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert put == before
            os.kill(server(), signal.SIGCONT)
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert len(put) == len(before) + 1
    await cache.finish()
    assert cache.has_room()
    assert await kept(cache, range(len(put))) == put


async def test_a_value_that_is_deleted_is_not_written_later(cache: Cache) -> None:
    for number in range(40):
        await cache.put_bytes(f"key{number}", LARGE)
    await cache.delete({f"key{number}" for number in range(0, 40, 2)})
    await cache.put_bytes("key4", LARGE)
    await cache.finish()
    assert await kept(cache, range(40)) == sorted([4, *range(1, 40, 2)])
    await cache.delete({"key1", "key4", "key0"})
    assert await kept(cache, range(5)) == [3]


async def test_a_value_put_anew_takes_the_place_of_the_other(cache: Cache) -> None:
    for number in range(20):
        await cache.put_bytes("key", LARGE[::-1] if number % 2 else LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE[::-1]
    assert (await cache.usage()).entries == 1


async def test_a_cache_that_fails_holds_nobody_up_and_reports_why(cache: Cache) -> None:
    in_the_way = [cache.folder / f"{number:02x}" for number in range(256)]
    for path in in_the_way:
        path.touch()
    with trio.fail_after(PATIENCE):
        for number in range(100):
            await cache.put_bytes(f"key{number}", LARGE)
            await cache.room()
        await cache.finish()
        assert await kept(cache, range(100)) == []
        await cache.delete({"key0"})
    assert cache.failure is not None
    assert "Not a directory" in cache.failure
    assert str(cache.folder) in cache.failure
    for path in in_the_way:
        path.unlink()
    assert await value(cache, "key0") is None
    assert cache.failure is not None, "that reading works proves nothing of writing"
    await cache.put_bytes("key0", LARGE)
    await cache.finish()
    await cache.delete({"key1"})
    assert cache.failure is None
    assert await value(cache, "key0") == LARGE


async def test_a_failure_of_reading_is_reported_until_something_is_read(cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    with contextlib.closing(sqlite3.connect(cache.folder / "cache.db")) as sql, sql:
        sql.execute("DROP TABLE Cache")
    assert await value(cache, "key") is None
    assert cache.failure is not None
    assert str(cache.folder) in cache.failure
    # Into the database that has taken its place.
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    assert cache.failure is not None, "that writing works proves nothing of reading"
    assert await value(cache, "key") == LARGE
    assert cache.failure is None


async def test_a_server_that_is_killed_makes_misses_and_is_replaced(cache: Cache, arena: Arena) -> None:
    await cache.put_bytes("key0", LARGE)
    await cache.finish()
    first = server()
    stop(first)
    # So that these have not been written when it is killed.
    for number in range(1, 10):
        await cache.put_bytes(f"key{number}", LARGE)
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
        assert server() != first
        for number in range(1, 10):
            await cache.put_bytes(f"key{number}", LARGE)
        await cache.finish()
    assert await kept(cache, range(10)) == list(range(10))
    assert cache.failure is None
    assert arena.leased == 0, "those who waited have released the memory"


async def test_a_server_that_does_not_answer_holds_nobody_up_and_is_replaced(
    caches: dict[str, Cache], arena: Arena
) -> None:
    cache, other = caches["objects"], caches["listings"]
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    first = server()
    stop(first)
    with trio.fail_after(PATIENCE):
        with impatient():
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    # More than there is room for.
                    await cache.put_bytes(f"key{number}", LARGE)
                    nursery.start_soon(cache.room)
                    nursery.start_soon(value, cache, "key")
        for one in (cache, other):
            assert one.failure is not None
            assert "no answer" in one.failure
            assert str(one.folder) in one.failure
        assert await value(cache, "key") is None, "nobody is asked before another server has answered"
        assert await other.get_bytes("key") is None
        await other.put_bytes("key", LARGE)
        await is_found_again(cache)
        assert not is_running(first)
        await cache.put_bytes("other", LARGE)
        await cache.finish()
        assert [one.failure for one in (cache, other)] == [None, None]
        assert await other.get_bytes("key") is None
    assert arena.leased == 0, "those who waited have released the memory"


async def test_a_reader_is_not_held_up_by_a_server_that_does_not_answer(cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    with stopped(server()), trio.fail_after(PATIENCE):
        with impatient():
            assert await value(cache, "key") is None
        await is_found_again(cache)
    assert cache.failure is None


async def test_a_writer_is_not_held_up_by_a_server_that_does_not_answer(cache: Cache) -> None:
    first = server()
    with stopped(first), trio.fail_after(PATIENCE):
        while cache.has_room():
            await cache.put_bytes("key", LARGE)
        with impatient():
            await cache.room()
        assert cache.failure is not None
        assert "no answer" in cache.failure
        await until_true(lambda: cache.failure is None)
        assert not is_running(first)
        await cache.put_bytes("key", LARGE)
        await is_found_again(cache)


async def test_callers_are_not_held_up_while_the_disk_answers_no_server(
    cache: Cache, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    first = server()
    monkeypatch.setattr("idcfs.processes.child.END_SECONDS", 0.1)
    with impatient(), monkeypatch.context() as patched, trio.fail_after(PATIENCE):
        patched.setattr("idcfs.cache.client.TRY_SECONDS", 1.0)
        stop(first)
        assert await value(cache, "key") is None
        await until_true(lambda: {*servers()} - {first})
        # Before it can answer; the first one may not be gone yet.
        (second,) = {*servers()} - {first}
        stop(second)
        # The first server has the memory of one request until it is reaped.
        await until_true(lambda: arena.leased == 0)
        for _ in range(100):
            assert await value(cache, "key") is None
            with await arena.take(len(LARGE)) as lease:
                cache.put("other", lease)
            assert arena.leased == 0
        assert cache.failure is not None
        assert "no answer" in cache.failure
        await until_true(lambda: not is_running(second))
    await is_found_again(cache)
    assert server() not in (first, second)
    assert await value(cache, "other") is None
    assert cache.failure is None


async def test_a_disk_that_does_not_answer_at_the_start_holds_nobody_up(
    tmp_path: Path, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_in(tmp_path, arena) as caches:
        await caches["objects"].put_bytes("key", LARGE)
        await caches["objects"].finish()
    with monkeypatch.context() as patched:
        # A server takes longer to start.
        patched.setattr("idcfs.cache.client.TRY_SECONDS", 0.01)
        async with open_in(tmp_path, arena) as caches:
            cache = caches["objects"]
            assert cache.failure is not None
            assert "no answer" in cache.failure
            assert await value(cache, "key") is None
            patched.setattr("idcfs.cache.client.TRY_SECONDS", PATIENCE)
            await is_found_again(cache)
            assert cache.failure is None


async def test_the_server_has_the_memory_of_a_caller_who_gives_up_until_it_answers(cache: Cache, arena: Arena) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    with stopped(server()):
        with trio.move_on_after(0.1):
            await cache.get("key", len(LARGE))
        with trio.move_on_after(0.1):
            await cache.get_bytes("key")
        assert arena.leased == len(LARGE) + FIRST_CAPACITY
        taken = arena.take_now(len(LARGE))
        assert taken is not None
        taken.view[:] = bytes(len(LARGE))
    assert await value(cache, "key") == LARGE
    assert bytes(taken.view) == bytes(len(LARGE))
    taken.release()
    await until_true(lambda: arena.leased == 0)


async def test_a_lease_of_a_killed_server_is_not_free_before_the_server_is_reaped(
    cache: Cache, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    first = server()
    with monkeypatch.context() as patched:
        patched.setattr("idcfs.cache.client.ANSWER_SECONDS", 0.3)
        # As a process that waits for a disk that hangs.
        patched.setattr(subprocess.Popen, "kill", lambda process: None)
        patched.setattr("idcfs.processes.child.END_SECONDS", 0.1)
        stop(first)
        await cache.put_bytes("put", LARGE[::-1])
        with impatient():
            assert await value(cache, "key") is None
        with trio.fail_after(PATIENCE):
            await cache.finish()
        # Another one answers, while the first is there.
        await is_found_again(cache)
        assert is_running(first)
        assert arena.leased == 2 * len(LARGE), "of which it will read one half, and write the other"
        others = []
        while (lease := arena.take_now(16 << 10)) is not None:
            lease.view[:] = bytes(len(lease))
            others.append(lease)
        os.kill(first, signal.SIGCONT)
        await until_true(lambda: len(files(cache.folder)) == 2)
    os.kill(first, signal.SIGKILL)
    await until_true(lambda: arena.leased == sum(map(len, others)))
    assert not is_running(first)
    assert not any(any(lease.view) for lease in others)
    for lease in others:
        lease.release()
    with trio.fail_after(PATIENCE):
        while (found := await value(cache, "put")) is None:  # noqa: ASYNC110  # a cache calls nobody
            await trio.sleep(0.01)
    assert found == LARGE[::-1]


async def test_a_database_that_is_locked_makes_misses_of_writes_only(cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    busy = sqlite3.connect(cache.folder / "cache.db", isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    with trio.fail_after(PATIENCE):
        for number in range(50):
            await cache.put_bytes(f"key{number}", LARGE)
            await cache.finish()
            assert await value(cache, "key") == LARGE
    busy.close()
    assert cache.failure is not None
    assert "locked by another process" in cache.failure


async def test_a_folder_that_is_removed_is_made_anew(cache: Cache) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    shutil.rmtree(cache.folder)
    assert await value(cache, "key") is None
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE
    assert cache.failure is None


async def test_a_folder_that_cannot_be_made_anew_is_reported_and_tried_again(tmp_path: Path, arena: Arena) -> None:
    async with open_in(tmp_path / "a", arena) as caches:
        cache = caches["objects"]
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").touch()
        await cache.put_bytes("key", LARGE)
        await cache.finish()
        assert cache.failure is not None
        assert str(cache.folder) in cache.failure
        assert await value(cache, "key") is None
        (tmp_path / "a").unlink()
        await cache.put_bytes("key", LARGE)
        await cache.finish()
        assert await value(cache, "key") == LARGE
        assert cache.failure is None


async def test_a_server_that_cannot_start_makes_misses(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/no/such/python")
        os.kill(server(), signal.SIGKILL)
        with trio.fail_after(PATIENCE):
            while cache.failure is None or "cannot be started" not in cache.failure:
                assert await value(cache, "key") in {None, LARGE}
            await cache.put_bytes("key", LARGE)
            await cache.finish()
    while warnings_logged.messages:
        warnings_logged.take("cannot be started")
    await is_found_again(cache)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_ignores_the_signals_that_end_a_mount(cache: Cache, signal_number: int) -> None:
    before = server()
    os.kill(before, signal_number)
    await cache.put_bytes("key", LARGE)
    await cache.finish()
    assert await value(cache, "key") == LARGE
    assert server() == before


async def test_values_are_kept_although_the_cache_is_closed_at_once(tmp_path: Path, arena: Arena) -> None:
    async with open_in(tmp_path, arena) as caches:
        process = server()
        for number in range(50):
            await caches["objects"].put_bytes(f"key{number}", LARGE)
        # What was not even sent is lost.
        await trio.testing.wait_all_tasks_blocked()
    assert not is_running(process)
    async with open_in(tmp_path, arena) as caches:
        assert await kept(caches["objects"], range(50)) == list(range(50))


async def test_a_cache_that_is_closed_makes_misses(tmp_path: Path, arena: Arena) -> None:
    async with open_in(tmp_path, arena) as caches:
        cache = caches["objects"]
        await cache.put_bytes("key", LARGE)
        await cache.finish()
    with trio.fail_after(PATIENCE):
        await cache.put_bytes("other", LARGE)
        await cache.finish()
        assert await value(cache, "key") is None
        assert await cache.get_bytes("key") is None
    assert cache.failure is not None
    assert servers() == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_in_place_of_the_folder_is_an_error_of_one_line(
    tmp_path: Path, arena: Arena, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CacheUnusable, match="--cache-dir") as raised:
        async with open_in(tmp_path, arena):
            pass
    assert "\n" not in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert servers() == []


async def test_a_file_that_is_not_a_database_is_renamed_and_logged(
    tmp_path: Path, arena: Arena, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "cache.db").write_bytes(b"garbage" * 1000)
    async with open_in(tmp_path, arena) as caches:
        cache = caches["objects"]
        await cache.put_bytes("key", LARGE)
        await cache.finish()
        assert await value(cache, "key") == LARGE
    assert "its database is damaged" in capfd.readouterr().err
