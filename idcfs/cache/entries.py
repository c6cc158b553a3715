"""Entries of a cache folder: `str` keys and `bytes` values, kept by diskcache and verified before they are used.

Processes share the folder. Every call blocks on files and on SQLite's locks, and may be made from any thread.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from idcfs.cache.database import DatabaseLocked, EntryDatabase
from idcfs.cache.disk import EntryRefused
from idcfs.cache.format import Allocate, Buffer, pack, unpack
from idcfs.cache.tables import ERRORS, open_tables
from idcfs.errors import CacheUnusable

RESERVE = 512 << 20
"""Bytes that a cache leaves free on its disk whatever its limit is; half a gigabyte is a guess."""

USES_AT_ONCE = 512
USES_NOTED_EVERY = 10.0
"""Reads, and seconds, after which the database is updated with what was used; a kill loses no more than that."""

_BUSY_SECONDS = 0.2
"""How long a query beside diskcache waits for a busy database, since a reader may be waiting."""


class Entries:
    """The entries in *folder*, which may take *limit* bytes; the least recently used go first.

    The first call opens the folder, and if that failed, a later one tries again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._uses: dict[str, float] = {}
        self._noted = time.monotonic()
        self._database = EntryDatabase(folder, limit)
        self.replaced = self._database.replaced
        """Set when another database took the place of one that was in use."""

    def open(self) -> None:
        """Open the folder, and return when its disk answers, even if the answer to a write is an error.

        Raises:
            CacheUnusable: the folder cannot be used.
        """
        try:
            # A database that is locked may be free later.
            with contextlib.suppress(DatabaseLocked):
                self._database.opened()
        except Exception as error:  # diskcache raises errors of all kinds where a database is damaged.
            message = f"cache folder {self.folder}: {reason_of(error)}; choose another with --cache-dir"
            raise CacheUnusable(message) from error
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(b"idcfs")
            file.flush()
            # Without this, the answer would come from memory.
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the database."""
        self._note_uses()
        self._database.close()

    def get(self, key: str, allocate: Allocate = bytearray) -> tuple[memoryview, str | None] | None:
        """Return the value under *key*, read into memory from *allocate*, and the entry's file, if it has one.

        An entry that does not verify is dropped. What *allocate* raises is raised, and then the entry stays.
        """
        with self._database.using("get") as cache:
            try:
                file: io.FileIO | io.BytesIO | None = cache.get(key)
            except EntryRefused:
                file = io.BytesIO()
        if file is None:
            return None
        with file:
            value = unpack(key, file, allocate)
        if value is None:
            self.delete(key)
            return None
        self._uses[key] = time.time()
        if len(self._uses) >= USES_AT_ONCE or time.monotonic() - self._noted > USES_NOTED_EVERY:
            self._note_uses()
        return value, None if isinstance(file, io.BytesIO) else str(file.name)

    def has_any(self, prefix: str) -> bool:
        """Return whether there is a key that starts with *prefix*."""
        self._database.reopen_if_replaced()
        with self._database.using("get"), open_tables(self.folder, _BUSY_SECONDS) as tables:
            return tables.has_prefix(prefix)

    def put_many(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        """Keep values under keys, all of them or none, in one transaction, which costs little more than one entry.

        Raises:
            OSError: the disk is full, or nearly.
        """
        self._database.reopen_if_replaced()
        space = os.statvfs(self.folder)
        if space.f_bavail * space.f_frsize - sum(len(value) for _, value in entries) < RESERVE:
            raise OSError(f"less than {RESERVE >> 20} MB are free on its disk, so nothing more is kept")
        with self._database.using("put") as cache:
            # Before entries are thrown out to make room for the new ones.
            self._note_uses()
            files: list[str] = []
            try:
                with cache.transact():
                    for key, value in entries:
                        cache.set(key, (pack(key, value), files))
            except Exception:
                # diskcache leaves the files of a transaction that failed.
                for name in files:
                    cache.disk.remove(name)
                raise

    def delete(self, key: str) -> None:
        """Drop the entry under *key*, if there is one."""
        with self._database.using("put") as cache, contextlib.suppress(EntryRefused):
            cache.delete(key)

    def usage(self) -> tuple[int, int]:
        """Return the number of entries, and the bytes that they take on disk."""
        with self._database.using("get") as cache:
            return len(cache), cache.volume()

    def _note_uses(self) -> None:
        """Update the database with what was used since the last time.

        diskcache's policy "least-recently-used" does so at every read, one reader at a time. Measured: with it, cold
        reads of 526 kB entries were twice as slow.
        """
        uses, self._uses = self._uses, {}
        self._noted = time.monotonic()
        if uses:
            # No value depends on it, so a database that is busy or damaged goes without.
            with contextlib.suppress(*ERRORS), open_tables(self.folder, _BUSY_SECONDS) as tables:
                tables.note_uses(uses)


def reason_of(error: Exception) -> str:
    """Return why a call failed, for people."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
