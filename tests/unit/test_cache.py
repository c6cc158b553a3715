import contextlib
import os
import pickle
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from idcfs.cache import entries as on_disk
from idcfs.cache.database import DatabaseLocked, is_damage, is_in_use
from idcfs.cache.disk import EntryRefused
from idcfs.cache.entries import Entries
from idcfs.cache.format import PackedEntry
from idcfs.cache.listing_cache import Cache, open_cache
from idcfs.errors import CacheUnusable
from tests.conftest import WarningsLogged

PATIENCE = 20

LIMIT = 1 << 28
LARGE = bytes(range(256)) * 400
"""Large enough for a file of its own; smaller values are in the database."""

SMALL = b"small"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


async def value(cache: Cache, key: str) -> bytes | None:
    found = await cache.get(key)
    return None if found is None else bytes(found)


@contextlib.contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        yield connection


@pytest.mark.parametrize("content", [b"", SMALL, LARGE])
async def test_what_is_put_is_found_by_all_and_later(tmp_path: Path, content: bytes) -> None:
    async with open_cache(tmp_path / "a" / "b", LIMIT) as cache, open_cache(tmp_path / "a" / "b", LIMIT) as other:
        assert await value(cache, "key") is None
        await cache.put("key", content)
        assert await value(cache, "key") == content
        assert await value(other, "key") == content
        assert await value(other, "other") is None
        assert cache.failure is None
    async with open_cache(tmp_path / "a" / "b", LIMIT) as cache:
        assert await value(cache, "key") == content
        assert (await cache.usage())[0] == 1
        await cache.put("key", b"another")
        assert await value(cache, "key") == b"another"
        await cache.delete("key")
        await cache.delete("key")
        assert await value(cache, "key") is None
    assert files(tmp_path) == []


async def test_many_entries_are_put_at_once(tmp_path: Path) -> None:
    entries = [(f"key{number}", SMALL if number % 2 else LARGE) for number in range(50)]
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put_many([])
        await cache.put_many(entries)
        assert (await cache.usage())[0] == 50
        for key, content in entries:
            assert await value(cache, key) == content
    assert len(files(tmp_path)) == 25


async def test_of_many_entries_all_are_kept_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("before", LARGE)
        (file,) = files(tmp_path)
        write = PackedEntry.write
        written: list[int] = []

        def fail_at_the_third(entry: PackedEntry, descriptor: int) -> None:
            written.append(descriptor)
            if len(written) == 3:
                raise OSError("no more")
            write(entry, descriptor)

        monkeypatch.setattr(PackedEntry, "write", fail_at_the_third)
        await cache.put_many([(f"key{number}", LARGE) for number in range(5)])
        assert len(written) == 3
        assert cache.failure is not None
        assert "no more" in cache.failure
        assert files(tmp_path) == [file]
        assert (await cache.usage())[0] == 1
        assert await value(cache, "before") == LARGE
        assert [await value(cache, f"key{number}") for number in range(5)] == [None] * 5
        await cache.put_many([(f"key{number}", LARGE) for number in range(5)])
        assert [await value(cache, f"key{number}") for number in range(5)] == [LARGE] * 5
        assert cache.failure is None


@contextlib.contextmanager
def entries_in(folder: Path) -> Iterator[Entries]:
    entries = Entries(folder, LIMIT)
    entries.open()
    try:
        yield entries
    finally:
        entries.close()


def test_whether_anything_has_a_prefix(tmp_path: Path) -> None:
    with entries_in(tmp_path) as entries:
        assert not entries.has_any("a/")
        entries.put_many([(key, SMALL) for key in ("a/b", "a0", "b/\U0001f480", "c")])
        assert [entries.has_any(prefix) for prefix in ("a/", "a", "b/", "c", "")] == [True] * 5
        assert [entries.has_any(prefix) for prefix in ("a/c", "a/ ", "c/", "d", "A")] == [False] * 5
        entries.delete("a/b")
        assert not entries.has_any("a/")


@pytest.mark.parametrize("content", [b"", SMALL, LARGE])
def test_a_value_is_read_into_the_place_that_is_given(tmp_path: Path, content: bytes) -> None:
    place = bytearray(len(content) + 2)

    def inside(length: int) -> memoryview:
        assert length == len(content)
        return memoryview(place)[1 : 1 + length]

    with entries_in(tmp_path) as entries:
        entries.put_many([("key", memoryview(content))])
        found = entries.get("key", inside)
        assert found is not None
        assert bytes(found) == content
        assert bytes(place) == b"\0" + content + b"\0"


def test_a_value_for_which_there_is_no_place_stays(tmp_path: Path) -> None:
    def refuse(length: int) -> memoryview:
        raise ValueError(f"{length} bytes are too many")

    with entries_in(tmp_path) as entries:
        entries.put_many([("key", LARGE)])
        with pytest.raises(ValueError, match="too many"):
            entries.get("key", refuse)
        assert bytes(entries.get("key") or b"") == LARGE


def test_to_ask_what_is_wrong_with_a_database_that_is_open_takes_no_lock_from_it(tmp_path: Path) -> None:
    def locks() -> list[str]:
        own = f" {os.getpid()} "
        inode = f":{os.stat(tmp_path / 'cache.db').st_ino} "
        held = Path("/proc/locks").read_text().splitlines()
        return [line.split(":", 1)[1] for line in held if own in line and inode in line]

    with entries_in(tmp_path) as entries:
        entries.put_many([("key", LARGE)])
        before = locks()
        assert before
        for error in (DatabaseLocked("by another"), sqlite3.OperationalError("disk I/O error")):
            is_damage(error, tmp_path)
        assert locks() == before


def test_whether_a_cache_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert not is_in_use(folder)
    with entries_in(folder), entries_in(folder):
        assert is_in_use(folder)
    assert not is_in_use(folder)


def test_values_of_a_thread_share_folders_and_none_is_lost_when_one_is_removed(tmp_path: Path) -> None:
    with entries_in(tmp_path) as entries:
        for number in range(20):
            entries.put_many([(f"key{number}", LARGE)])
            if number % 5 == 4:
                # diskcache removes a folder with its last file.
                for earlier in range(number + 1):
                    entries.delete(f"key{earlier}")
        assert files(tmp_path) == []
        entries.put_many([("key", LARGE)])
        assert bytes(entries.get("key") or b"") == LARGE


async def test_a_busy_database_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.cache.database.SQLITE_TIMEOUT", 0.1)
    monkeypatch.setattr("idcfs.cache.database.LOCKED_PAUSE", 0)
    monkeypatch.setattr("idcfs.cache.entries.USES_AT_ONCE", 1)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("a", LARGE)
        busy = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
        busy.execute("BEGIN IMMEDIATE")
        assert await value(cache, "a") == LARGE, "noting the use must not lose the value"
        await cache.put("b", LARGE)
        assert cache.failure is not None
        busy.execute("ROLLBACK")
        busy.close()
        assert await value(cache, "a") == LARGE
        assert await value(cache, "b") is None
        await cache.put("b", LARGE)
        assert await value(cache, "b") == LARGE
        assert cache.failure is None


async def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    async with open_cache(tmp_path / "cache", LIMIT):
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    limit = 40 * len(LARGE)
    async with open_cache(tmp_path, limit) as cache:
        for number in range(100):
            await cache.put(f"key{number}", LARGE)
            assert await value(cache, "key0") == LARGE, "used all the time"
            assert sum(path.stat().st_size for path in files(tmp_path)) <= limit + 2 * len(LARGE)
        assert await value(cache, "key99") == LARGE
        assert await value(cache, "key1") is None
        entries, used = await cache.usage()
        assert 20 < entries < 42
        assert used <= limit + 2 * len(LARGE)


def flip(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [*map(flip, [0, 5, 8, 12, 16, 20, 5000, -1]), cut, lengthen, empty, Path.unlink])
async def test_a_damaged_entry_is_a_miss(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("key", LARGE)
        (file,) = files(tmp_path)
        damage(file)
        assert await value(cache, "key") is None
        assert files(tmp_path) == []
        await cache.put("key", LARGE)
        assert await value(cache, "key") == LARGE


async def test_entries_in_each_others_place_are_misses(tmp_path: Path) -> None:
    async with open_cache(tmp_path, LIMIT) as cache:
        for number in range(4):
            await cache.put(f"large{number}", LARGE)
            await cache.put(f"small{number}", SMALL)
    one, other, *_ = files(tmp_path)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with database(tmp_path) as sql:
        sql.execute("UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = 'small1') WHERE key = 'small0'")
    async with open_cache(tmp_path, LIMIT) as cache:
        found = [await value(cache, f"large{number}") for number in range(4)]
        assert sorted(map(bool, found)) == [False, False, True, True]
        assert await value(cache, "small0") is None
        assert await value(cache, "small1") == SMALL


class Evil:
    """Whoever unpickles one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4, 9, "text", None])
@pytest.mark.parametrize(
    "filename", [None, "../../outside", "ab/../../outside", "/outside", 7, b"../outside", "", "ab/cd/ef.val"]
)
async def test_a_planted_value_is_refused_and_nothing_outside_is_touched(
    tmp_path: Path, mode: object, filename: object
) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "x" / "cache"
    async with open_cache(folder, LIMIT) as cache:
        await cache.put("key", SMALL)
        pickled = pickle.dumps(Evil(tmp_path / "unpickled"))
        with database(folder) as sql:
            sql.execute("UPDATE Cache SET mode = ?, filename = ?, value = ?", (mode, filename, pickled))
        assert await value(cache, "key") is None
        await cache.put("key", SMALL)
        assert await value(cache, "key") == SMALL
        with database(folder) as sql:
            sql.execute("UPDATE Cache SET mode = ?, filename = ?, value = ?", (mode, filename, pickled))
        await cache.delete("key")
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "unpickled").exists()


async def test_planted_keys_are_not_unpickled_and_eviction_removes_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "cache"
    async with open_cache(folder, 30 * len(LARGE)) as cache:
        await cache.put("key", SMALL)
        pickled = pickle.dumps(Evil(tmp_path / "unpickled"))
        with database(folder) as sql:
            for number, filename in enumerate(["../outside", 7, b"../outside", None]):
                sql.execute(
                    "INSERT INTO Cache(key, raw, access_time, mode, filename, value) VALUES (?, 0, ?, 4, ?, ?)",
                    (pickled + bytes([number]), number, filename, pickled),
                )
        for number in range(60):
            await cache.put(f"key{number}", LARGE)
        assert cache.failure is None
        assert await value(cache, "key59") == LARGE
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "unpickled").exists()


async def test_nothing_that_the_database_says_is_a_key_is_unpickled(tmp_path: Path) -> None:
    async with open_cache(tmp_path / "cache", LIMIT) as cache:
        await cache.put("key", SMALL)
        with database(tmp_path / "cache") as sql:
            sql.execute("UPDATE Cache SET key = ?, raw = 0", (pickle.dumps(Evil(tmp_path / "unpickled")),))
        with pytest.raises(EntryRefused):
            list(cache._entries._database.opened())
    assert not (tmp_path / "unpickled").exists()


async def test_a_folder_that_goes_away_is_made_anew(tmp_path: Path) -> None:
    async with open_cache(tmp_path / "cache", LIMIT) as cache:
        await cache.put("key", LARGE)
        shutil.rmtree(tmp_path / "cache")
        assert await value(cache, "key") is None
        await cache.put("other", LARGE)
        assert await value(cache, "other") == LARGE
        assert cache.failure is None
        assert is_in_use(tmp_path / "cache")
    async with open_cache(tmp_path / "cache", LIMIT) as cache:
        assert await value(cache, "other") == LARGE


async def test_a_folder_that_cannot_be_made_anew_is_said_and_tried_again(tmp_path: Path) -> None:
    async with open_cache(tmp_path / "a" / "cache", LIMIT) as cache:
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").touch()
        await cache.put("key", LARGE)
        assert cache.failure is not None
        assert str(tmp_path / "a" / "cache") in cache.failure
        assert await value(cache, "key") is None
        (tmp_path / "a").unlink()
        await cache.put("key", LARGE)
        assert await value(cache, "key") == LARGE
        assert cache.failure is None


def test_a_folder_that_cannot_be_opened_again_costs_nobody_a_file(tmp_path: Path) -> None:
    with entries_in(tmp_path / "cache") as entries:
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache" / "in-use.lock").mkdir(parents=True)
        with pytest.raises(IsADirectoryError):
            entries.put_many([("key", SMALL)])
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        with pytest.raises(IsADirectoryError):
            entries.put_many([("key", SMALL)])
    for other in others:
        os.close(other)


def drop_table(folder: Path) -> None:
    with database(folder) as sql:
        sql.execute("DROP TABLE Cache")


def overwrite_pages(folder: Path) -> None:
    with database(folder) as sql:
        sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((folder / "cache.db").read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    (folder / "cache.db").write_bytes(data)


@pytest.mark.parametrize("damage", [drop_table, overwrite_pages])
async def test_a_database_that_breaks_is_set_aside_and_made_anew_for_all(
    tmp_path: Path, damage: Callable[[Path], None], warnings_logged: WarningsLogged
) -> None:
    async with open_cache(tmp_path, LIMIT) as cache, open_cache(tmp_path, LIMIT) as other:
        await cache.put_many([(f"key{number}", SMALL) for number in range(200)])
        assert await value(other, "key0") == SMALL
        damage(tmp_path)
        for _ in range(2):
            assert await value(cache, "key7") is None
        await cache.put("key7", LARGE)
        assert await value(cache, "key7") == LARGE
        # One that has not noticed looks at the damaged one until it writes.
        await other.put("key8", LARGE)
        await other.put("key9", LARGE)
        assert [await value(some, "key9") for some in (cache, other)] == [LARGE, LARGE]
        assert await value(other, "key7") == LARGE
        assert cache.failure is None
        assert other.failure is None
    warnings_logged.take("damaged")
    assert (tmp_path / "damaged.db").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE Cache SET filename = CAST(x'ff61' AS TEXT)",
        "UPDATE Cache SET size = NULL",
        "UPDATE Settings SET value = NULL",
        "UPDATE Settings SET value = 'text' WHERE key = 'size'",
        "DELETE FROM Settings WHERE key = 'size'",
        "ALTER TABLE Cache RENAME COLUMN access_count TO other",
    ],
)
async def test_whatever_diskcache_stumbles_over_a_cache_comes_back(
    tmp_path: Path, damage: str, warnings_logged: WarningsLogged
) -> None:
    async with open_cache(tmp_path, 40 * len(LARGE)) as cache:
        # With a full cache a put looks at what else there is.
        for number in range(38):
            await cache.put(f"key{number}", LARGE)
        with database(tmp_path) as sql:
            sql.execute(damage)
        for number in range(20):
            await value(cache, "key5")
            await cache.put(f"other{number}", LARGE)
        assert await value(cache, "other19") == LARGE
        assert await cache.usage() > (0, 0)
        assert cache.failure is None
    warnings_logged.messages.clear()


async def test_an_error_that_says_nothing_of_the_database_leaves_it(
    tmp_path: Path, warnings_logged: WarningsLogged
) -> None:
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("key", LARGE)
        await cache.put("\udcff", LARGE)
        assert cache.failure is not None
        assert await value(cache, "key") == LARGE


async def test_a_cache_whose_database_is_locked_when_it_is_opened_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.cache.database.SQLITE_TIMEOUT", 0.1)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("key", LARGE)
    busy = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    busy.execute("PRAGMA locking_mode = EXCLUSIVE")
    busy.execute("BEGIN EXCLUSIVE")
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await value(cache, "key") is None
        await cache.put("key", LARGE)
        assert cache.failure is not None
        assert "locked by another process" in cache.failure
        busy.execute("ROLLBACK")
        busy.close()
        assert await value(cache, "key") is None, "it is left alone for a while"
        monkeypatch.setattr("idcfs.cache.database.time.monotonic", lambda now=time.monotonic: now() + 60)
        assert await value(cache, "key") == LARGE
        await cache.put("key", LARGE)
        assert cache.failure is None


async def test_a_disk_that_hangs_holds_nobody_up_and_the_cache_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = threading.Event()
    get = Entries.get

    def hang(entries: Entries, *arguments: Any) -> Any:
        works.wait()
        return get(entries, *arguments)

    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("key", LARGE)
        monkeypatch.setattr("idcfs.cache.listing_cache.ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(Entries, "get", hang)
        monkeypatch.setattr(Entries, "try_disk", lambda entries: works.wait())
        try:
            with trio.fail_after(PATIENCE):
                for _ in range(100):
                    assert await value(cache, "key") is None
                await cache.put("other", LARGE)
            assert cache.failure is not None
            assert "no answer" in cache.failure
        finally:
            works.set()
        monkeypatch.setattr("idcfs.cache.listing_cache.ANSWER_SECONDS", PATIENCE)
        with trio.fail_after(PATIENCE):
            while cache.failure:  # noqa: ASYNC110  # a cache calls nobody
                await trio.sleep(0.01)
            assert await value(cache, "key") == LARGE


async def test_a_reserve_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("before", LARGE)
        monkeypatch.setattr(on_disk, "RESERVE", 1 << 60)
        await cache.put("key", LARGE)
        assert await value(cache, "key") is None
        assert await value(cache, "before") == LARGE
        assert cache.failure is not None
        assert "are free" in cache.failure
        monkeypatch.setattr(on_disk, "RESERVE", 0)
        await cache.put("key", LARGE)
        assert await value(cache, "key") == LARGE
        assert cache.failure is None


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root, and not in every container, can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_leaves_no_part_of_a_file(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "RESERVE", -(1 << 40))
    async with open_cache(tiny_disk, LIMIT) as cache:
        await cache.put("kept", LARGE)
        await cache.put("too large", bytes(3 << 20))
        assert cache.failure is not None
        assert "No space left" in cache.failure
        assert len(files(tiny_disk)) == 1
        assert await value(cache, "too large") is None
        assert await value(cache, "kept") == LARGE
        await cache.put("fits", LARGE)
        assert await value(cache, "fits") == LARGE
        assert cache.failure is None


def no_database(folder: Path) -> None:
    folder.mkdir()
    (folder / "cache.db").write_bytes(b"garbage" * 1000)


def planted_setting(folder: Path) -> None:
    folder.mkdir()
    with database(folder) as sql:
        sql.execute("CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value)")
        sql.execute("INSERT INTO Settings VALUES ('disk_nothing', 1)")


async def test_what_is_no_folder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheUnusable, match="--cache-dir") as raised:
        async with open_cache(tmp_path / "cache", LIMIT):
            pass
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "cache") in str(raised.value)


@pytest.mark.parametrize("spoil", [no_database, planted_setting])
async def test_what_is_no_database_is_set_aside(
    tmp_path: Path, spoil: Callable[[Path], None], warnings_logged: WarningsLogged
) -> None:
    spoil(tmp_path / "cache")
    async with open_cache(tmp_path / "cache", LIMIT) as cache:
        await cache.put("key", LARGE)
        assert await value(cache, "key") == LARGE
    warnings_logged.take("damaged")
