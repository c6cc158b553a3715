"""Entries on disk, whatever happens to their files and their database."""

import contextlib
import io
import os
import pickle
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from idcfs.cache import entries as on_disk
from idcfs.cache.database import DatabaseLocked, is_damage, is_in_use
from idcfs.cache.disk import EntryRefused
from idcfs.cache.entries import Entries
from idcfs.cache.format import Buffer, PackedEntry
from idcfs.errors import CacheUnusable
from tests.conftest import WarningsLogged

LIMIT = 1 << 28
LARGE = bytes(range(256)) * 400
"""Large enough for a file of its own; smaller values are in the database."""

SMALL = b"small"


@contextlib.contextmanager
def entries_in(folder: Path, limit: int = LIMIT) -> Iterator[Entries]:
    entries = Entries(folder, limit)
    entries.open()
    try:
        yield entries
    finally:
        entries.close()


@pytest.fixture
def entries(tmp_path: Path) -> Iterator[Entries]:
    with entries_in(tmp_path) as entries:
        yield entries


def put(entries: Entries, key: str, content: Buffer) -> None:
    entries.put_many([(key, content)])


def value(entries: Entries, key: str) -> bytes | None:
    found = entries.get(key)
    return None if found is None else bytes(found[0])


def put_or_fail(entries: Entries, key: str, content: Buffer) -> None:
    with contextlib.suppress(Exception):
        put(entries, key, content)


def value_or_none(entries: Entries, key: str) -> bytes | None:
    """Return the value, or None also if the call fails, as for a mount."""
    with contextlib.suppress(Exception):
        return value(entries, key)
    return None


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


@contextlib.contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        yield connection


@contextlib.contextmanager
def locked_by_another(folder: Path, *statements: str) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("content", [b"", SMALL, LARGE])
def test_a_value_is_found_by_all_who_use_the_folder_and_later(tmp_path: Path, content: bytes) -> None:
    with entries_in(tmp_path / "a" / "b") as entries, entries_in(tmp_path / "a" / "b") as other:
        assert value(entries, "key") is None
        put(entries, "key", content)
        assert value(entries, "key") == content
        assert value(other, "key") == content
        assert value(other, "other") is None
    with entries_in(tmp_path / "a" / "b") as entries:
        assert value(entries, "key") == content
        assert entries.usage()[0] == 1
        put(entries, "key", b"another")
        assert value(entries, "key") == b"another"
        entries.delete("key")
        entries.delete("key")
        assert value(entries, "key") is None
    assert files(tmp_path) == []


def test_many_values_are_put_at_once(entries: Entries, tmp_path: Path) -> None:
    values = [(f"key{number}", SMALL if number % 2 else LARGE) for number in range(50)]
    entries.put_many([])
    entries.put_many(values)
    assert entries.usage()[0] == 50
    for key, content in values:
        assert value(entries, key) == content
    assert len(files(tmp_path)) == 25


def test_of_many_values_all_are_kept_or_none(entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(entries, "before", LARGE)
    (file,) = files(tmp_path)
    write = PackedEntry.write
    written: list[str] = []

    def fail_at_the_third(entry: PackedEntry, file: io.BufferedWriter) -> None:
        written.append(file.name)
        if len(written) == 3:
            raise OSError("no more")
        write(entry, file)

    monkeypatch.setattr(PackedEntry, "write", fail_at_the_third)
    values = [(f"key{number}", LARGE) for number in range(5)]
    with pytest.raises(OSError, match="no more"):
        entries.put_many(values)
    assert len(written) == 3
    assert files(tmp_path) == [file]
    assert entries.usage()[0] == 1
    assert value(entries, "before") == LARGE
    assert [value(entries, key) for key, _ in values] == [None] * 5
    entries.put_many(values)
    assert [value(entries, key) for key, _ in values] == [LARGE] * 5


def test_a_key_is_found_by_its_prefix(entries: Entries) -> None:
    assert not entries.has_any("a/")
    entries.put_many([(key, SMALL) for key in ("a/b", "a0", "b/\U0001f480", "c")])
    assert [entries.has_any(prefix) for prefix in ("a/", "a", "b/", "c", "")] == [True] * 5
    assert [entries.has_any(prefix) for prefix in ("a/c", "a/ ", "c/", "d", "A")] == [False] * 5
    entries.delete("a/b")
    assert not entries.has_any("a/")


@pytest.mark.parametrize("content", [b"", SMALL, LARGE])
def test_a_value_is_read_into_the_memory_that_is_allocated(entries: Entries, content: bytes) -> None:
    memory = bytearray(len(content) + 2)

    def allocate(length: int) -> memoryview:
        assert length == len(content)
        return memoryview(memory)[1 : 1 + length]

    put(entries, "key", memoryview(content))
    found = entries.get("key", allocate)
    assert found is not None
    assert bytes(found[0]) == content
    assert bytes(memory) == b"\0" + content + b"\0"


def test_an_entry_stays_if_no_memory_is_allocated_for_its_value(entries: Entries) -> None:
    def refuse(length: int) -> memoryview:
        raise ValueError(f"{length} bytes are too many")

    put(entries, "key", LARGE)
    with pytest.raises(ValueError, match="too many"):
        entries.get("key", refuse)
    assert value(entries, "key") == LARGE


def test_looking_for_damage_drops_no_lock_of_an_open_database(entries: Entries, tmp_path: Path) -> None:
    def locks() -> list[str]:
        own = f" {os.getpid()} "
        inode = f":{os.stat(tmp_path / 'cache.db').st_ino} "
        held = Path("/proc/locks").read_text().splitlines()
        return [line.split(":", 1)[1] for line in held if own in line and inode in line]

    put(entries, "key", LARGE)
    before = locks()
    assert before
    is_damage(DatabaseLocked("by another"), tmp_path)
    assert locks() == before
    descriptors = os.listdir("/proc/self/fd")
    for error in (DatabaseLocked("by another"), sqlite3.OperationalError("disk I/O error")):
        is_damage(error, tmp_path)
        assert locks() == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_cache_is_in_use_while_anybody_has_it_open(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert not is_in_use(folder)
    with entries_in(folder):
        with entries_in(folder):
            assert is_in_use(folder)
        assert is_in_use(folder)
    assert not is_in_use(folder)


def test_files_share_folders(entries: Entries, tmp_path: Path) -> None:
    entries.put_many([(f"key{number}", LARGE) for number in range(50)])
    assert len({file.parent for file in files(tmp_path)}) <= 2


def test_no_value_is_lost_when_the_folder_of_files_is_removed(entries: Entries, tmp_path: Path) -> None:
    for number in range(20):
        put(entries, f"key{number}", LARGE)
        if number % 5 == 4:
            # diskcache removes a folder with its last file.
            for earlier in range(number + 1):
                entries.delete(f"key{earlier}")
    assert files(tmp_path) == []
    put(entries, "key", LARGE)
    assert value(entries, "key") == LARGE


def test_a_locked_database_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.cache.database.SQLITE_TIMEOUT", 0.1)
    monkeypatch.setattr("idcfs.cache.database.LOCKED_PAUSE", 0)
    monkeypatch.setattr("idcfs.cache.entries.USES_AT_ONCE", 1)
    with entries_in(tmp_path) as entries:
        put(entries, "a", LARGE)
        with locked_by_another(tmp_path, "BEGIN IMMEDIATE"):
            assert value(entries, "a") == LARGE, "it is found although its use cannot be noted"
            with pytest.raises(DatabaseLocked):
                put(entries, "b", LARGE)
            assert len(files(tmp_path)) == 1
        assert value(entries, "a") == LARGE
        assert value(entries, "b") is None
        put(entries, "b", LARGE)
        assert value(entries, "b") == LARGE


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    with entries_in(tmp_path / "cache"):
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    limit = 40 * len(LARGE)
    with entries_in(tmp_path, limit) as entries:
        for number in range(100):
            put(entries, f"key{number}", LARGE)
            assert value(entries, "key0") == LARGE, "it was used all the time"
            assert sum(path.stat().st_size for path in files(tmp_path)) <= limit + 2 * len(LARGE)
        assert value(entries, "key99") == LARGE
        assert value(entries, "key1") is None
        count, used = entries.usage()
        assert 20 < count < 42
        assert used <= limit + 2 * len(LARGE)


def test_the_limit_holds_whatever_settings_are_planted(tmp_path: Path) -> None:
    with entries_in(tmp_path):
        pass
    with database(tmp_path) as sql:
        sql.execute("UPDATE Settings SET value = 0 WHERE key = 'cull_limit'")
    with entries_in(tmp_path, 10 * len(LARGE)) as entries:
        for number in range(30):
            put(entries, f"key{number}", LARGE)
        assert len(files(tmp_path)) < 12


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
def test_a_damaged_entry_is_a_miss_and_dropped(
    entries: Entries, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    put(entries, "key", LARGE)
    (file,) = files(tmp_path)
    damage(file)
    assert value(entries, "key") is None
    assert files(tmp_path) == []
    put(entries, "key", LARGE)
    assert value(entries, "key") == LARGE


def test_entries_in_the_place_of_others_are_misses(tmp_path: Path) -> None:
    with entries_in(tmp_path) as entries:
        for number in range(4):
            put(entries, f"large{number}", LARGE)
            put(entries, f"small{number}", SMALL)
    one, other, *_ = files(tmp_path)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with database(tmp_path) as sql:
        sql.execute("UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = 'small1') WHERE key = 'small0'")
    with entries_in(tmp_path) as entries:
        found = [value(entries, f"large{number}") for number in range(4)]
        assert sorted(map(bool, found)) == [False, False, True, True]
        assert value(entries, "small0") is None
        assert value(entries, "small1") == SMALL


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4, 9, "text", None])
@pytest.mark.parametrize(
    "filename", [None, "../../outside", "ab/../../outside", "/outside", 7, b"../outside", "", "ab/cd/ef.val"]
)
def test_a_planted_value_is_refused_and_nothing_outside_the_folder_is_touched(
    tmp_path: Path, mode: object, filename: object
) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "x" / "cache"
    pickled = pickle.dumps(Evil(tmp_path / "unpickled"))

    def plant() -> None:
        with database(folder) as sql:
            sql.execute("UPDATE Cache SET mode = ?, filename = ?, value = ?", (mode, filename, pickled))

    with entries_in(folder) as entries:
        put(entries, "key", SMALL)
        plant()
        assert value(entries, "key") is None
        put(entries, "key", SMALL)
        assert value(entries, "key") == SMALL
        plant()
        entries.delete("key")
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "unpickled").exists()


def test_planted_keys_are_not_unpickled_and_eviction_removes_nothing_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "cache"
    with entries_in(folder, 30 * len(LARGE)) as entries:
        put(entries, "key", SMALL)
        pickled = pickle.dumps(Evil(tmp_path / "unpickled"))
        with database(folder) as sql:
            for number, filename in enumerate(["../outside", 7, b"../outside", None]):
                sql.execute(
                    "INSERT INTO Cache(key, raw, access_time, mode, filename, value) VALUES (?, 0, ?, 4, ?, ?)",
                    (pickled + bytes([number]), number, filename, pickled),
                )
        for number in range(60):
            put(entries, f"key{number}", LARGE)
        assert value(entries, "key59") == LARGE
        with database(folder) as sql:
            assert sql.execute("SELECT count(*) FROM Cache WHERE raw = 0").fetchone() == (0,), "they were evicted"
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "unpickled").exists()


def test_no_key_is_unpickled(entries: Entries, tmp_path: Path) -> None:
    put(entries, "key", SMALL)
    with database(tmp_path) as sql:
        sql.execute("UPDATE Cache SET key = ?, raw = 0", (pickle.dumps(Evil(tmp_path / "unpickled")),))
    with pytest.raises(EntryRefused):
        list(entries._database.opened())
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    with entries_in(tmp_path / "cache") as entries:
        put(entries, "key", LARGE)
        shutil.rmtree(tmp_path / "cache")
        assert value_or_none(entries, "key") is None
        put(entries, "other", LARGE)
        assert value(entries, "other") == LARGE
        assert entries.replaced.is_set()
        assert is_in_use(tmp_path / "cache")
    with entries_in(tmp_path / "cache") as entries:
        assert value(entries, "other") == LARGE


def test_a_folder_that_cannot_be_made_anew_is_an_error_and_tried_again(tmp_path: Path) -> None:
    with entries_in(tmp_path / "a" / "cache") as entries:
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").touch()
        with pytest.raises(NotADirectoryError, match=str(tmp_path / "a" / "cache")):
            put(entries, "key", LARGE)
        assert value(entries, "key") is None
        (tmp_path / "a").unlink()
        put(entries, "key", LARGE)
        assert value(entries, "key") == LARGE


def test_a_folder_that_cannot_be_opened_again_closes_no_file_of_others(tmp_path: Path) -> None:
    with entries_in(tmp_path / "cache") as entries:
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache" / "in-use.lock").mkdir(parents=True)
        with pytest.raises(IsADirectoryError):
            put(entries, "key", SMALL)
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        with pytest.raises(IsADirectoryError):
            put(entries, "key", SMALL)
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
def test_a_database_that_is_damaged_is_renamed_and_made_anew_for_all(
    tmp_path: Path, damage: Callable[[Path], None], warnings_logged: WarningsLogged
) -> None:
    with entries_in(tmp_path) as entries, entries_in(tmp_path) as other:
        entries.put_many([(f"key{number}", SMALL) for number in range(200)])
        assert value(other, "key0") == SMALL
        damage(tmp_path)
        for _ in range(2):
            assert value_or_none(entries, "key7") is None
        put(entries, "key7", LARGE)
        assert value(entries, "key7") == LARGE
        # The other one uses the damaged database until it writes.
        put_or_fail(other, "key8", LARGE)
        put(other, "key9", LARGE)
        assert [value(some, "key9") for some in (entries, other)] == [LARGE, LARGE]
        assert value(other, "key7") == LARGE
    warnings_logged.take("damaged")
    assert (tmp_path / "damaged.db").exists()


def test_a_database_whose_rows_have_no_numbers_is_renamed(tmp_path: Path, warnings_logged: WarningsLogged) -> None:
    with entries_in(tmp_path) as entries:
        put(entries, "key", LARGE)
    with database(tmp_path) as sql:
        sql.execute("ALTER TABLE Cache RENAME TO Old")
        (columns,) = sql.execute("SELECT group_concat(name) FROM pragma_table_info('Old')").fetchone()
        sql.execute(f"CREATE TABLE Cache ({columns})")
    with entries_in(tmp_path) as entries:
        put(entries, "key", LARGE)
        entries.delete("key")
        assert value(entries, "key") is None
    warnings_logged.take("its rows have no numbers")


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
def test_after_damage_that_diskcache_fails_at_entries_are_kept_again(
    tmp_path: Path, damage: str, warnings_logged: WarningsLogged
) -> None:
    with entries_in(tmp_path, 40 * len(LARGE)) as entries:
        # When the cache is full, a put also reads which other entries there are.
        for number in range(38):
            put(entries, f"key{number}", LARGE)
        with database(tmp_path) as sql:
            sql.execute(damage)
        for number in range(20):
            value_or_none(entries, "key5")
            put_or_fail(entries, f"other{number}", LARGE)
        assert value(entries, "other19") == LARGE
        assert entries.usage() > (0, 0)
    warnings_logged.messages.clear()


def test_a_key_that_cannot_be_encoded_is_no_damage(entries: Entries) -> None:
    put(entries, "key", LARGE)
    with pytest.raises(UnicodeEncodeError):
        put(entries, "\udcff", LARGE)
    assert value(entries, "key") == LARGE


def test_a_database_that_is_locked_when_it_is_opened_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.cache.database.SQLITE_TIMEOUT", 0.1)
    with entries_in(tmp_path) as entries:
        put(entries, "key", LARGE)
    with locked_by_another(tmp_path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        entries = Entries(tmp_path, LIMIT)
        entries.open()
        with pytest.raises(DatabaseLocked, match="locked by another process"):
            value(entries, "key")
        with pytest.raises(DatabaseLocked, match="locked by another process"):
            put(entries, "key", LARGE)
    with pytest.raises(DatabaseLocked):
        value(entries, "key")
    monkeypatch.setattr("idcfs.cache.database.time.monotonic", lambda now=time.monotonic: now() + 60)
    assert value(entries, "key") == LARGE
    put(entries, "key", LARGE)
    entries.close()


def test_a_part_of_the_disk_stays_free(entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    put(entries, "before", LARGE)
    monkeypatch.setattr(on_disk, "RESERVE", 1 << 60)
    with pytest.raises(OSError, match="are free"):
        put(entries, "key", LARGE)
    assert value(entries, "key") is None
    assert value(entries, "before") == LARGE
    monkeypatch.setattr(on_disk, "RESERVE", 0)
    put(entries, "key", LARGE)
    assert value(entries, "key") == LARGE


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


def test_on_a_full_disk_no_part_of_a_file_is_left(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "RESERVE", -(1 << 40))
    with entries_in(tiny_disk) as entries:
        put(entries, "kept", LARGE)
        with pytest.raises(OSError, match="No space left"):
            put(entries, "too large", bytes(3 << 20))
        assert len(files(tiny_disk)) == 1
        assert value(entries, "too large") is None
        assert value(entries, "kept") == LARGE
        put(entries, "fits", LARGE)
        assert value(entries, "fits") == LARGE


def garbage(folder: Path) -> None:
    folder.mkdir()
    (folder / "cache.db").write_bytes(b"garbage" * 1000)


def planted_setting(folder: Path) -> None:
    folder.mkdir()
    with database(folder) as sql:
        sql.execute("CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value)")
        sql.execute("INSERT INTO Settings VALUES ('disk_nothing', 1)")


@pytest.mark.parametrize("spoil", [garbage, planted_setting])
def test_a_file_that_is_not_the_database_of_a_cache_is_renamed(
    tmp_path: Path, spoil: Callable[[Path], None], warnings_logged: WarningsLogged
) -> None:
    spoil(tmp_path / "cache")
    with entries_in(tmp_path / "cache") as entries:
        put(entries, "key", LARGE)
        assert value(entries, "key") == LARGE
    warnings_logged.take("damaged")


def test_a_file_in_place_of_the_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheUnusable, match="--cache-dir") as raised:
        Entries(tmp_path / "cache", LIMIT).open()
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "cache") in str(raised.value)
