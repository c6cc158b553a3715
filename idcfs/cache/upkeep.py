"""Looking after a cache folder beside those who use it: what is damaged, and what nobody knows; blocks.

A few rows, or one value, are in memory at a time. Whatever is found is looked at again before it is told or removed,
because entries come and go meanwhile.
"""

import contextlib
import io
import math
import os
import re
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from idcfs.cache import database as entry_database
from idcfs.cache.entries import FILE_MODE, INLINE_BYTES, INLINE_MODE, is_file_name, is_in_use, is_sound

ORPHAN_SECONDS = 3600.0
"""Age from which a file that the database does not know belongs to nobody, although others use the cache: one is
written in some milliseconds."""

_ROWS_AT_ONCE = 64

_LOCK_SECONDS = 10.0
"""Seconds to wait for those who write."""

_COLUMNS = (
    # What is planted could be of any length.
    "rowid, CASE WHEN length(key) < 4096 THEN key END, raw, "
    "CASE WHEN length(filename) > 64 THEN '' ELSE filename END, "
    f"CASE WHEN typeof(value) = 'blob' AND length(value) < {INLINE_BYTES} THEN value END, mode, size, "
    "tag IS NULL AND expire_time IS NULL AND (filename IS NULL OR value IS NULL)"
)
_COUNTS_ARE_RIGHT = (
    "SELECT (SELECT value FROM Settings WHERE key = 'count') IS (SELECT count(*) FROM Cache)"
    " AND (SELECT value FROM Settings WHERE key = 'size') IS (SELECT total(size) FROM Cache)"
)
_COUNT_AGAIN = (
    "REPLACE INTO Settings VALUES ('count', (SELECT count(*) FROM Cache))",
    "REPLACE INTO Settings VALUES ('size', (SELECT CAST(total(size) AS INTEGER) FROM Cache))",
)
_FOLDER_NAME = re.compile("[0-9a-f]{2}")


class Finding(NamedTuple):
    """Something that is wrong; *what* may hold anything that a planted database does."""

    what: str
    why: str


class Row(NamedTuple):
    """An entry as the database has it; columns hold values of any type."""

    number: int
    key: Any
    raw: Any
    file_name: Any
    value: Any
    mode: Any
    size: Any
    rest_is_empty: int


def count(folder: Path) -> int:
    """How many entries the database knows; 0 if there is none, or it cannot be read."""
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError), _connect(folder) as base:
        return int(base.execute("SELECT count(*) FROM Cache").fetchone()[0])
    return 0


def abandoned_before(folder: Path) -> float:
    """The time before which nobody who may still tell the database of it has written a file of the cache in *folder*.

    To be asked by a process that does not have the cache open itself.
    """
    with contextlib.suppress(OSError):
        # By the clock of the disk, which may be another machine's.
        with tempfile.TemporaryFile(dir=folder) as file:
            now = os.fstat(file.fileno()).st_mtime
        if not is_in_use(folder, if_unknown=True):
            return now
    return time.time() - ORPHAN_SECONDS


def check(folder: Path, repair: bool, checked: Callable[[int], None] = lambda rows: None) -> Iterator[Finding]:
    """Look at all entries of the cache in *folder*.

    Args:
        folder: which may be in use.
        repair: drop what is found.
        checked: told how many more entries were looked at.
    """
    # Before the database is read: what comes later is younger.
    before = abandoned_before(folder)
    if not (folder / entry_database.NAME).exists():
        yield from _unknown(folder, (), before, repair)
        return
    identity = entry_database.identity(folder)
    try:
        with _connect(folder) as base:
            entry_database.check_tables(base)
            if said := _says(base, "PRAGMA quick_check(1)"):
                raise sqlite3.DatabaseError(said)
            if said := _says(base, "PRAGMA integrity_check(1)"):
                yield Finding(entry_database.NAME, f"an index does not match its table ({said})")
                if repair:
                    base.execute("REINDEX")
            yield from _damaged(folder, base, repair, checked)
            if not base.execute(_COUNTS_ARE_RIGHT).fetchone()[0]:
                yield Finding(entry_database.NAME, "its count or size is not that of its entries")
                if repair:
                    _count_again(base)
            yield from _unknown(folder, _known(base), before, repair)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if not entry_database.is_damage(error, folder):
            raise
        yield Finding(entry_database.NAME, f"the database is damaged ({error}); its entries are lost")
        if repair:
            entry_database.set_aside(folder, identity, error)
            deque(_unknown(folder, (), before, repair), maxlen=0)


def sweep(folder: Path, before: float, pause: Callable[[], None] = lambda: None) -> int:
    """Remove the files that the database does not know, and count its entries again; how many files there were.

    Args:
        folder: which may be in use.
        before: time up to which files can be abandoned; in the past.
        pause: called after each folder of files, so that others get their turn.
    """
    if not (folder / entry_database.NAME).exists():
        return 0
    with _connect(folder) as base:
        if not base.execute(_COUNTS_ARE_RIGHT).fetchone()[0]:
            _count_again(base)
        return sum(1 for _ in _unknown(folder, _known(base), before, True, pause))


def _connect(folder: Path) -> "contextlib.closing[sqlite3.Connection]":
    # Not to make one.
    uri = f"{(folder / entry_database.NAME).absolute().as_uri()}?mode=rw"
    base = sqlite3.connect(uri, _LOCK_SECONDS, isolation_level=None, uri=True)
    # Damaged text is to be dropped, and not to stop who looks for damage.
    base.text_factory = lambda text: text.decode(errors="replace")
    return contextlib.closing(base)


def _says(base: sqlite3.Connection, check: str) -> str | None:
    """What one of SQLite's checks finds wrong, if anything."""
    (said,) = base.execute(check).fetchone()
    return None if said == "ok" else said.splitlines()[-1]


def _count_again(base: sqlite3.Connection) -> None:
    for statement in ("BEGIN IMMEDIATE", *_COUNT_AGAIN, "COMMIT"):
        base.execute(statement)


def _damaged(folder: Path, base: sqlite3.Connection, repair: bool, checked: Callable[[int], None]) -> Iterator[Finding]:
    last = -(1 << 63)
    while rows := _rows(base, "rowid > ? ORDER BY rowid LIMIT ?", last, _ROWS_AT_ONCE):
        for row in rows:
            last = row.number
            why = _wrong(folder, row)
            # Unless it was dropped, or replaced, meanwhile.
            if why is None or _rows(base, "rowid = ?", row.number) != [row]:
                continue
            yield Finding(str(row.key), why)
            if repair:
                _drop(folder, base, row)
        checked(len(rows))


def _drop(folder: Path, base: sqlite3.Connection, row: Row) -> None:
    base.execute("BEGIN IMMEDIATE")
    is_there = _rows(base, "rowid = ?", row.number) == [row]
    if is_there:
        base.execute("DELETE FROM Cache WHERE rowid = ?", (row.number,))
    base.execute("COMMIT")
    if is_there:
        _remove(folder, row.file_name)


def _rows(base: sqlite3.Connection, condition: str, *values: int) -> list[Row]:
    return [Row(*found) for found in base.execute(f"SELECT {_COLUMNS} FROM Cache WHERE {condition}", values)]


def _wrong(folder: Path, row: Row) -> str | None:
    """What is wrong with an entry, if anything is."""
    if type(row.key) is not str or row.raw != 1:
        return "its key is no text"
    if row.file_name is None:
        if not isinstance(row.value, bytes) or not is_sound(row.key, io.BytesIO(row.value), len(row.value)):
            return "it does not match its checksum"
        return _misdescribed(row, INLINE_MODE, 0)
    if not is_file_name(row.file_name):
        return "its file would be elsewhere"
    try:
        with open(folder / row.file_name, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if is_sound(row.key, file, size):
                return _misdescribed(row, FILE_MODE, size)
    except FileNotFoundError:
        return "its file is missing"
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    return "it does not match its checksum"


def _misdescribed(row: Row, mode: int, size: int) -> str | None:
    """What is wrong with what the database says of a sound entry."""
    is_right = (row.mode, row.size) == (mode, size) and row.rest_is_empty
    return None if is_right else "the database says something wrong of it"


def _known(base: sqlite3.Connection) -> Iterator[str]:
    """The names of the files that the database knows, in order; SQLite sorts them on disk if they are many."""
    sql = "SELECT filename FROM Cache WHERE typeof(filename) = 'text' ORDER BY filename"
    return (name for (name,) in base.execute(sql))


def _unknown(
    folder: Path,
    known: Iterator[str] | tuple[()],
    before: float,
    repair: bool,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Finding]:
    """The files from *before* that are not among the *known* ones, which are in order as the files are."""
    names = iter(known)
    name = next(names, None)
    for file in _files(folder, pause):
        while name is not None and name < file:
            name = next(names, None)
        if name != file and _written(folder / file) < before:
            yield Finding(file, "the database does not know this file")
            if repair:
                _remove(folder, file)


def _files(folder: Path, pause: Callable[[], None]) -> Iterator[str]:
    for upper in _listed(folder):
        for lower in _listed(folder / upper) if _FOLDER_NAME.fullmatch(upper) else ():
            yield from filter(is_file_name, (f"{upper}/{lower}/{name}" for name in _listed(folder / upper / lower)))
            pause()


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def _remove(folder: Path, name: Any) -> None:
    if is_file_name(name):
        with contextlib.suppress(OSError):
            os.unlink(folder / name)
            # As diskcache does; others may have put more into it.
            os.rmdir((folder / name).parent)
            os.rmdir((folder / name).parent.parent)
