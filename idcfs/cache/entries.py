"""Entries of a cache folder: `str` keys and `bytes` values in diskcache, each verified before it is used.

Shared by processes. Every call blocks on files and on SQLite's locks, and may be made from any thread.
"""

import contextlib
import fcntl
import io
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import diskcache

from idcfs.cache import database as entry_database
from idcfs.cache import format as entry_form
from idcfs.cache.database import DatabaseLocked, EntryDatabase
from idcfs.cache.format import Buffer, Entry, Place
from idcfs.errors import CacheUnusable

RESERVE = 512 << 20
"""Bytes that a cache leaves free on its disk whatever its limit is; half a gigabyte is a guess."""

USES_AT_ONCE = 512
USES_NOTED_EVERY = 10.0
"""How many reads, or seconds, pass before the database is told what was used; a kill forgets no more."""

_NOTE_TIMEOUT = 0.2
"""Seconds that noting uses waits for a busy database, since a reader may be waiting."""

INLINE_BYTES = 32 << 10
"""Values below this are in the database, others in files: diskcache's own bound, with the header counted."""

INLINE_MODE: int = diskcache.core.MODE_RAW
FILE_MODE: int = diskcache.core.MODE_BINARY
"""What the database says of where a value is."""

LARGEST_BYTES = 64 << 20
"""More than any value: the largest listing takes a fifth of it."""

_FILES_IN_FOLDER = 256
"""Files that a thread puts into a folder before it takes another."""

_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")


class EntryRefused(Exception):
    """An entry of the database that this project cannot have written."""


class SafeDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Stores text keys and byte values, and refuses all else: nothing is unpickled, no path leaves the folder."""

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._thread = threading.local()

    def put(self, key: Any) -> tuple[str, bool]:
        """The form of a key in the database."""
        if type(key) is not str:
            raise EntryRefused("a key that is not text")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        """The key from its form in the database."""
        if type(key) is not str or not raw:
            raise EntryRefused("a key that is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> tuple[int, int, str | None, bytes | None]:
        """Write an `Entry`; a file that cannot be written whole is removed."""
        if type(value) is not Entry or read:
            raise EntryRefused("a value that is no entry")
        size = len(value.header) + len(value.value)
        if size < INLINE_BYTES:
            return 0, INLINE_MODE, None, b"".join(value)
        name = self._write_file(value)
        self._thread.files.append(name)
        return size, FILE_MODE, name, None

    def begin(self) -> None:
        """Count the files that this thread writes from now on."""
        self._thread.files = []

    def undo(self) -> None:
        """Remove the files that this thread has written since `begin`."""
        for file in self._thread.files:
            self.remove(file)

    def _write_file(self, entry: Entry) -> str:
        name = self._new_name()
        path = os.path.join(self._directory, name)
        descriptor = self._create(path)
        try:
            entry_form.write(descriptor, entry)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return name

    def _new_name(self) -> str:
        """A name that no file has; many files of a thread share a folder, since making one takes as long as a file."""
        folder, name = os.path.split(self.filename()[0])
        left: int = getattr(self._thread, "left", 0)
        if not left:
            self._thread.folder, left = folder, _FILES_IN_FOLDER
        self._thread.left = left - 1
        path: str = os.path.join(self._thread.folder, name)
        return path

    def _create(self, path: str) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        while True:
            try:
                return os.open(path, flags, 0o600)
            except FileNotFoundError:
                # Whoever removes the last file of a folder removes that too, perhaps again.
                os.makedirs(os.path.dirname(path), exist_ok=True)

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> bytes | BinaryIO:
        """A value, or the file that it is in."""
        if mode == INLINE_MODE and isinstance(value, bytes):
            return value
        if mode != FILE_MODE or not is_file_name(filename):
            raise EntryRefused(f"a value of mode {mode} in file {filename!r}")
        return open(os.path.join(self._directory, filename), "rb", buffering=0)  # the caller's

    def remove(self, file_path: Any) -> None:
        """Remove a value's file."""
        if is_file_name(file_path):
            super().remove(file_path)


def is_file_name(name: Any) -> bool:
    """Whether this is a name that diskcache gives files; SQLite's columns hold values of any type."""
    return type(name) is str and _FILE_NAME.fullmatch(name) is not None


class Entries:
    """The entries in *folder*, which may take *limit* bytes; the least recently used go first.

    Opened by the first call, and again by a later one if that failed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._used: dict[str, float] = {}
        self._noted = time.monotonic()
        self._database = EntryDatabase(folder, limit, SafeDisk)
        self.replaced = self._database.replaced
        """Set when another database took the place of one that was in use."""

    def open(self) -> None:
        """Open the folder, so that the user is told if it cannot be used.

        Raises:
            CacheUnusable: the folder cannot be written.
        """
        try:
            self._database.opened()
        except DatabaseLocked:
            # It may be free later.
            return
        except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
            raise CacheUnusable(
                f"cache folder {self.folder}: {reason_of(error)}; choose another with --cache-dir"
            ) from error

    def close(self) -> None:
        """Close the database."""
        self._note_uses()
        self._database.close()

    def get(self, key: str, place: Place = bytearray) -> memoryview | None:
        """The value under *key*, read into what *place* gives, or None. An entry that does not verify is dropped."""
        found = self.get_with_file(key, place)
        return None if found is None else found[0]

    def get_with_file(self, key: str, place: Place) -> tuple[memoryview, str | None] | None:
        """As `get`, and the path of the file that holds the entry, if it has one of its own."""
        with self._database.using("get") as cache:
            try:
                entry = cache.get(key)
            except EntryRefused:
                entry = b""
        if entry is None:
            return None
        path = None
        if isinstance(entry, bytes):
            value = entry_form.unpack(key, io.BytesIO(entry), len(entry), place)
        else:
            with entry:
                path = entry.name
                value = entry_form.unpack(key, entry, os.fstat(entry.fileno()).st_size, place)
        if value is None:
            self.delete(key)
            return None
        self._used[key] = time.time()
        if len(self._used) >= USES_AT_ONCE or time.monotonic() - self._noted > USES_NOTED_EVERY:
            self._note_uses()
        return value, path

    def has_any(self, prefix: str) -> bool:
        """Whether there is a key that starts with *prefix*."""
        self._database.check_place()
        # diskcache has no such question; a connection of its own, because its own ones belong to threads.
        with self._database.using("get"), self._connect() as base:
            sql = "SELECT 1 FROM Cache WHERE key >= ? AND key < ? AND raw = 1 LIMIT 1"
            return base.execute(sql, (prefix, prefix + "\U0010ffff")).fetchone() is not None

    def put_many(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        """Keep values under keys, all of them or none; in one transaction, which costs little more than one entry.

        Raises:
            OSError: the disk is full, or nearly.
        """
        self._database.check_place()
        space = os.statvfs(self.folder)
        if space.f_bavail * space.f_frsize - sum(len(value) for _, value in entries) < RESERVE:
            raise OSError(f"less than {RESERVE >> 20} MB are free on its disk, so nothing more is kept")
        with self._database.using("put") as cache:
            # Before anything is thrown out for the new entries.
            self._note_uses()
            cache.disk.begin()
            try:
                with cache.transact():
                    for key, value in entries:
                        cache.set(key, entry_form.pack(key, value))
            except (sqlite3.Error, OSError, diskcache.Timeout):
                # The database forgets them, and diskcache leaves the files.
                cache.disk.undo()
                raise

    def delete(self, key: str) -> None:
        """Drop the entry under *key*, if there is one."""
        with self._database.using("put") as cache, contextlib.suppress(EntryRefused):
            cache.delete(key)

    def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes they take on disk."""
        with self._database.using("get") as cache:
            return len(cache), cache.volume()

    def try_disk(self) -> None:
        """Return when the disk answers, be it that it cannot be written."""
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(entry_form.MAGIC)
            file.flush()
            # Else it would be memory that answers.
            os.fsync(file.fileno())

    def _connect(self) -> "contextlib.closing[sqlite3.Connection]":
        return contextlib.closing(sqlite3.connect(self.folder / entry_database.NAME, _NOTE_TIMEOUT))

    def _note_uses(self) -> None:
        """Tell the database what was read since the last time.

        diskcache's own "least-recently-used" writes to the database at every read, one reader at a time: (m) cold
        reads of 526 kB entries were twice as slow.
        """
        used, self._used = self._used, {}
        self._noted = time.monotonic()
        uses = [(at, key) for key, at in used.items()]
        # Nobody's bytes depend on it: a database that is busy or broken forgets some uses.
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            if uses:
                with self._connect() as base:
                    base.executemany("UPDATE Cache SET store_time = ? WHERE key = ? AND raw = 1", uses)
                    base.commit()


def reason_of(error: Exception) -> str:
    """Why a call failed, for people."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_sound(key: str, entry: BinaryIO, size: int) -> bool:
    """Whether an entry of *size* bytes is what was put under *key*."""
    return size <= LARGEST_BYTES and entry_form.unpack(key, entry, size, bytearray) is not None


def is_in_use(folder: Path, if_unknown: bool = False) -> bool:
    """Whether a process has the cache in *folder* open; *if_unknown* where the file system has no locks."""
    if not folder.is_dir():
        return False
    lock = entry_database.open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return if_unknown
    finally:
        os.close(lock)
    return False
