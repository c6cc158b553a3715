"""Upkeep of a cache folder while others use it: finds damage, and files that belong to no entry; calls block.

A few rows, or one value, are in memory at a time. Whatever is found is looked at again before it is reported or
removed, because entries come and go meanwhile.
"""

import contextlib
import io
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from idcfs.cache.database import identity, is_damage, is_in_use, rename_damaged
from idcfs.cache.disk import FILE_MODE, INLINE_MODE, EntryDisk, is_file_name
from idcfs.cache.format import unpack
from idcfs.cache.tables import ERRORS, NAME, Row, open_tables

ORPHAN_SECONDS = 3600.0
"""Age from which a file that the database does not know is abandoned although others use the cache. To write one takes
some milliseconds."""

_LOCK_SECONDS = 10.0
"""Seconds to wait for others who write."""

_LARGEST_BYTES = 64 << 20
"""More than any entry has: the largest listing takes a fifth of it."""


class Finding(NamedTuple):
    """Something that is wrong. *what* may hold any text, as a database that somebody else wrote may."""

    what: str
    why: str


def count(folder: Path) -> int:
    """Return how many entries the database has; 0 if there is no database, or it cannot be read."""
    with contextlib.suppress(*ERRORS), open_tables(folder, _LOCK_SECONDS) as tables:
        return tables.count()
    return 0


def abandoned_before(folder: Path) -> float:
    """Return the time before which a file of *folder* is abandoned if the database does not know it.

    Whoever writes a file adds it to the database a moment later. So the time is now if nobody has the cache open, which
    the calling process must not have open either, and `ORPHAN_SECONDS` ago if somebody has.
    """
    with contextlib.suppress(OSError):
        # The clock is that of the disk, which another machine may serve.
        with tempfile.TemporaryFile(dir=folder) as file:
            now = os.fstat(file.fileno()).st_mtime
        if not is_in_use(folder, if_unknown=True):
            return now
    return time.time() - ORPHAN_SECONDS


def check(folder: Path, repair: bool, progress: Callable[[int], None] = lambda rows: None) -> Iterator[Finding]:
    """Look at all entries of the cache in *folder*, which may be in use; with *repair*, remove what is found.

    *progress* is called with the number of entries that were looked at since the last call.
    """
    # This comes before the database is read, so that files which others add after that are younger.
    before = abandoned_before(folder)
    if not (folder / NAME).exists():
        yield from _orphans(folder, (), before, repair)
        return
    checked = identity(folder)
    try:
        with open_tables(folder, _LOCK_SECONDS) as tables:
            if defect := tables.defect(indexes=False):
                raise sqlite3.DatabaseError(defect)
            if defect := tables.defect(indexes=True):
                yield Finding(NAME, f"an index does not match its table ({defect})")
                if repair:
                    tables.rebuild_indexes()
            for rows in tables.batches():
                for row in rows:
                    why = _defect(folder, row)
                    # A row that others have deleted or replaced meanwhile is not reported.
                    if why is None or not tables.has(row):
                        continue
                    yield Finding(str(row.key), why)
                    if repair and tables.delete(row):
                        EntryDisk(str(folder)).remove(row.file_name)
                progress(len(rows))
            if not tables.totals_are_right():
                yield Finding(NAME, "its count or size is not that of its entries")
                if repair:
                    tables.correct_totals()
            yield from _orphans(folder, tables.file_names(), before, repair)
    except ERRORS as error:
        if not is_damage(error, folder):
            raise
        yield Finding(NAME, f"the database is damaged ({error}); its entries are lost")
        if repair:
            rename_damaged(folder, checked, error)
            for _ in _orphans(folder, (), before, repair):
                pass


def sweep(folder: Path, before: float, pause: Callable[[], None] = lambda: None) -> int:
    """Remove abandoned files and correct the totals; return how many files were removed. The folder may be in use.

    Files that were written before the time *before* are abandoned if the database does not know them. *pause* is called
    after each folder of files, so that others can use the disk.
    """
    if not (folder / NAME).exists():
        return 0
    with open_tables(folder, _LOCK_SECONDS) as tables:
        if not tables.totals_are_right():
            tables.correct_totals()
        return sum(1 for _ in _orphans(folder, tables.file_names(), before, True, pause))


def _defect(folder: Path, row: Row) -> str | None:
    """Return what is wrong with an entry, if anything is."""
    if type(row.key) is not str or row.raw != 1:
        return "its key is not text"
    if row.file_name is not None and not is_file_name(row.file_name):
        return "its file name is not one that idcfs gives"
    try:
        with io.BytesIO(row.value or b"") if row.file_name is None else io.FileIO(folder / row.file_name) as file:
            size = file.seek(0, os.SEEK_END)
            if size > _LARGEST_BYTES or unpack(row.key, file, bytearray) is None:
                return "it does not match its checksum"
    except FileNotFoundError:
        return "its file is missing"
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    mode_and_size = (INLINE_MODE, 0) if row.file_name is None else (FILE_MODE, size)
    is_right = (row.mode, row.size) == mode_and_size and row.rest_is_empty
    return None if is_right else "its row in the database is wrong"


def _orphans(
    folder: Path, known: Iterable[str], before: float, repair: bool, pause: Callable[[], None] = lambda: None
) -> Iterator[Finding]:
    """Yield the files from *before* that are not among the *known* ones, which are sorted as files are walked."""
    disk = EntryDisk(str(folder))
    names = iter(known)
    name = next(names, None)
    for file in _files(folder, pause):
        while name is not None and name < file:
            name = next(names, None)
        if name != file and _modified(folder / file) < before:
            yield Finding(file, "the database does not know this file")
            if repair:
                disk.remove(file)


def _files(folder: Path, pause: Callable[[], None]) -> Iterator[str]:
    def ignore_if_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for path, folders, names in os.walk(folder, onerror=ignore_if_gone):
        folders.sort()
        within = os.path.relpath(path, folder)
        yield from filter(is_file_name, (f"{within}/{name}" for name in sorted(names)))
        if names:
            pause()


def _modified(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_mtime
    return math.inf
