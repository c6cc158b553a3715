"""Checks, repairs and sweeps of a cache folder."""

import contextlib
import errno
import fcntl
import os
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idcfs.cache import upkeep
from idcfs.cache.entries import Entries
from tests.conftest import WarningsLogged
from tests.unit.test_entries import entries_in
from tests.unit.test_entries import value as value_of

SMALL = b"small"
LARGE = bytes(range(256)) * 400
OLD = time.time() - 10 * upkeep.ORPHAN_SECONDS
YOUNG = time.time() - upkeep.ORPHAN_SECONDS / 10


@pytest.fixture
def entries(tmp_path: Path) -> Iterator[Entries]:
    with entries_in(tmp_path) as entries:
        entries.put_many([(f"key{number}", LARGE if number % 2 else SMALL) for number in range(200)])
        yield entries


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


def change(folder: Path, sql: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as base, base:
        base.execute(sql, values)


def check(folder: Path, repair: bool = False) -> list[upkeep.Finding]:
    return list(upkeep.check(folder, repair))


def orphan(folder: Path, content: bytes = LARGE, changed: float = OLD) -> Path:
    file = folder / "ab" / "cd" / f"{len(files(folder)):028x}.val"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (changed, changed))
    return file


def flip(folder: Path) -> None:
    data = bytearray(files(folder)[0].read_bytes())
    data[5000] ^= 1
    files(folder)[0].write_bytes(data)


def flip_inside(folder: Path) -> None:
    change(folder, "UPDATE Cache SET value = x'00' WHERE key = 'key4'")


def lose_file(folder: Path) -> None:
    files(folder)[0].unlink()


def plant_key(folder: Path) -> None:
    change(folder, "UPDATE Cache SET key = ?, raw = 0 WHERE key = 'key3'", pickle.dumps("key"))


def plant_name(folder: Path) -> None:
    # The file that lost its name here is found as well once it is old.
    change(folder, "UPDATE Cache SET filename = '../../outside' WHERE key = 'key3'")


def plant_long_values(folder: Path) -> None:
    change(folder, "UPDATE Cache SET value = zeroblob(100000000) WHERE key = 'key4'")


def plant_long_name(folder: Path) -> None:
    change(folder, "UPDATE Cache SET filename = replace(hex(zeroblob(1000)), '00', '../') WHERE key = 'key4'")


DAMAGES = [flip, flip_inside, lose_file, plant_key, plant_name, plant_long_values, plant_long_name]


def test_nothing_is_found_in_a_sound_cache(entries: Entries, tmp_path: Path) -> None:
    progress: list[int] = []
    orphan(tmp_path, changed=YOUNG)
    assert list(upkeep.check(tmp_path, True, progress.append)) == []
    assert sum(progress) == upkeep.count(tmp_path) == 200
    assert upkeep.sweep(tmp_path, upkeep.abandoned_before(tmp_path)) == 0
    assert len(files(tmp_path)) == 101, "a young file may be one that is being written"
    assert all(entries.get(f"key{number}") is not None for number in range(200))


def test_nothing_is_found_or_made_where_there_is_no_cache(tmp_path: Path) -> None:
    assert check(tmp_path / "none", True) == []
    assert upkeep.count(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    assert upkeep.count(tmp_path) == 0
    assert check(tmp_path, True) == []
    assert not (tmp_path / "cache.db").exists()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_only_the_damaged_entry_is_dropped(
    entries: Entries, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    outside = tmp_path.parent.parent / "outside"
    damage(tmp_path)
    (found,) = check(tmp_path)
    assert check(tmp_path) == [found], "a check without repair changes nothing"
    assert check(tmp_path, repair=True) == [found]
    assert check(tmp_path) == []
    values = [entries.get(f"key{number}") for number in range(200)]
    assert sum(value is not None for value in values) == 199
    assert entries.usage()[0] == 199
    assert not outside.exists()
    entries.put_many([("key3", SMALL)])
    assert check(tmp_path) == []


def test_an_entry_that_is_replaced_during_a_check_is_neither_reported_nor_removed(
    entries: Entries, tmp_path: Path
) -> None:
    for key in ("key2", "key4"):
        change(tmp_path, "UPDATE Cache SET value = x'00' WHERE key = ?", key)
    findings = upkeep.check(tmp_path, True)
    assert next(findings).what == "key2"
    entries.put_many([("key2", SMALL), ("key4", SMALL)])
    assert list(findings) == []
    assert [value_of(entries, key) for key in ("key2", "key4")] == [SMALL, SMALL]


COLUMNS = ["key", "raw", "store_time", "expire_time", "access_count", "tag", "size", "mode", "filename", "value"]
VALUES = ["NULL", "1.5", "4611686018427387904", "-5", "x'ff61'", "'text'", "CAST(x'ff61' AS TEXT)"]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_planted_value_in_any_column_costs_one_entry_at_most(entries: Entries, tmp_path: Path, column: str) -> None:
    for value in VALUES:
        for key in ("key3", "key4"):
            change(tmp_path, f"UPDATE Cache SET {column} = {value} WHERE key = ?", key)
            check(tmp_path)
            check(tmp_path, repair=True)
            assert check(tmp_path) == [], value
        assert upkeep.sweep(tmp_path, upkeep.abandoned_before(tmp_path)) == 0
        assert sum(entries.get(f"key{number}") is not None for number in range(200)) >= 198, value
        entries.put_many([("key3", LARGE), ("key4", SMALL)])
        assert value_of(entries, "key3") == LARGE, value


def test_a_planted_size_is_found_and_not_counted(entries: Entries, tmp_path: Path) -> None:
    for number, value in enumerate(VALUES):
        change(tmp_path, f"UPDATE Cache SET size = {value} WHERE key = ?", f"key{number}")
        assert len(check(tmp_path)) in {1, 2}, value
        check(tmp_path, repair=True)
        assert check(tmp_path) == []
        known = sum(file.stat().st_size for file in files(tmp_path))
        with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as base:
            assert base.execute("SELECT value FROM Settings WHERE key = 'size'").fetchone() == (known,)


def test_an_unknown_file_is_removed_with_its_empty_folders(entries: Entries, tmp_path: Path) -> None:
    lost = orphan(tmp_path)
    beside = files(tmp_path)[-1].with_name("f" * 28 + ".val")
    beside.write_bytes(b"half of")
    os.utime(beside, (OLD, OLD))
    (tmp_path / "ab" / "cd" / "notes.txt").touch()
    assert [found.what for found in check(tmp_path)] == [
        str(file.relative_to(tmp_path)) for file in sorted([lost, beside])
    ]
    assert upkeep.sweep(tmp_path, upkeep.abandoned_before(tmp_path)) == 2
    assert len(files(tmp_path)) == 100
    assert [path.name for path in (tmp_path / "ab" / "cd").iterdir()] == ["notes.txt"]
    assert check(tmp_path) == []


def test_a_folder_that_cannot_be_listed_is_an_error(
    entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        check(tmp_path)


def test_the_age_of_files_is_measured_by_the_clock_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: ahead)
    before = upkeep.abandoned_before(tmp_path)
    (tmp_path / "later").touch()
    assert before <= (tmp_path / "later").stat().st_mtime


def test_young_files_stay_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(lock: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert upkeep.abandoned_before(tmp_path) <= time.time() - upkeep.ORPHAN_SECONDS


def test_young_files_are_removed_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    with entries_in(tmp_path) as entries:
        entries.put_many([("key", LARGE)])
        orphan(tmp_path, changed=YOUNG)
        assert check(tmp_path) == []
    assert len(check(tmp_path)) == 1
    before = upkeep.abandoned_before(tmp_path)
    orphan(tmp_path, changed=time.time() + 1)
    with entries_in(tmp_path) as entries:
        # As if it were written in a transaction that goes on during the sweep.
        later = orphan(tmp_path, changed=time.time() + 1)
        assert upkeep.sweep(tmp_path, before) == 1
        assert later.exists()
        assert value_of(entries, "key") == LARGE
    assert upkeep.sweep(tmp_path, time.time() + 10) == 2


def test_wrong_totals_are_corrected(entries: Entries, tmp_path: Path) -> None:
    for wrong in ("value = value + 10", "value = 'x'"):
        for key in ("count", "size"):
            change(tmp_path, f"UPDATE Settings SET {wrong} WHERE key = '{key}'")
            assert len(check(tmp_path, repair=True)) == 1
            assert check(tmp_path) == []
            change(tmp_path, f"UPDATE Settings SET {wrong} WHERE key = '{key}'")
            upkeep.sweep(tmp_path, upkeep.abandoned_before(tmp_path))
            assert check(tmp_path) == []
    assert entries.usage()[0] == 200
    change(tmp_path, "DELETE FROM Settings WHERE key IN ('count', 'size')")
    assert len(check(tmp_path, repair=True)) == 1
    assert check(tmp_path) == []
    assert entries.usage()[0] == 200


def test_a_damaged_index_is_built_again(entries: Entries, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sql = "SELECT pageno FROM dbstat WHERE name = 'Cache_key_raw' AND pagetype = 'leaf' LIMIT 1"
        try:
            (page,) = base.execute(sql).fetchone()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat, which lists the pages of an index")
    data = bytearray((tmp_path / "cache.db").read_bytes())
    data[data.index(b"key1", 4096 * (page - 1))] ^= 1
    (tmp_path / "cache.db").write_bytes(data)
    (found,) = check(tmp_path)
    assert "index" in found.why
    assert check(tmp_path, repair=True) == [found]
    assert check(tmp_path) == []
    assert all(entries.get(f"key{number}") is not None for number in range(200))


def test_a_damaged_database_is_renamed_while_it_is_in_use(
    entries: Entries, tmp_path: Path, warnings_logged: WarningsLogged
) -> None:
    change(tmp_path, "PRAGMA user_version = 1")
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((tmp_path / "cache.db").read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    (tmp_path / "cache.db").write_bytes(data)
    (found,) = check(tmp_path)
    assert "damaged" in found.why
    check(tmp_path, repair=True)
    warnings_logged.take("damaged")
    entries.put_many([("new", LARGE)])
    assert value_of(entries, "new") == LARGE
    for file in files(tmp_path):
        os.utime(file, (OLD, OLD))
    # The files of the damaged database are found.
    assert len(check(tmp_path, repair=True)) == 100
    assert value_of(entries, "new") == LARGE
    assert check(tmp_path) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=st.sets(st.integers(0, 300)), there=st.sets(st.integers(0, 300)))
def test_a_sweep_removes_exactly_the_old_files_that_the_database_does_not_know(
    tmp_path_factory: pytest.TempPathFactory, known: set[int], there: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with entries_in(folder):
        pass

    def name(number: int) -> str:
        return f"{number % 3:02x}/{number % 5:02x}/{number:028x}.val"

    for number in known:
        change(folder, "INSERT INTO Cache (key, raw, filename) VALUES (?, 1, ?)", str(number), name(number))
    for number in there:
        (folder / name(number)).parent.mkdir(parents=True, exist_ok=True)
        (folder / name(number)).touch()
        os.utime(folder / name(number), (OLD, OLD))
    assert upkeep.sweep(folder, upkeep.abandoned_before(folder)) == len(there - known)
    assert {int(file.stem, 16) for file in files(folder)} == there & known
