"""Entries on disk: bytes and listings, each verified before it is used; shared by mounts, kept between them.

A cache is a `diskcache.Cache` that holds `str` keys and `bytes` values only. Its calls block on files and on
SQLite's locks, so they run in threads of their own; from trio's side every method is async and none waits for
the network. A cache that fails makes reads slower, not wrong: `get` then finds nothing and `put` keeps nothing,
and `Cache.failure` says why.
"""

import contextlib
import fcntl
import os
import re
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import trio

from idcfs.errors import CacheUnusable

RESERVE = 512 << 20
"""Bytes that a cache leaves free on its disk whatever its limit is; half a gigabyte is a guess."""

THREADS = 8
"""Threads for one cache's calls: reads wait for the disk, and a few writes at a time are enough."""

USES_AT_ONCE = 512
USES_NOTED_EVERY = 10.0
"""How many reads, or seconds, pass before the database is told what was used; a kill forgets no more."""

_NOTE_TIMEOUT = 0.2
"""Seconds that noting uses waits for a busy database, since a reader may be waiting."""

_SQLITE_TIMEOUT = 5.0
"""Seconds that a call waits for another process' lock on the database."""

_HEADER = struct.Struct("<4sIHI")
_MAGIC = b"IDC1"
_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")

T = TypeVar("T")

Buffer = bytes | memoryview


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

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        """Write a value; a file that cannot be written whole is removed."""
        if type(value) is not bytes or read:
            raise EntryRefused("a value that is not bytes")
        stored = super().store(value, read, key=key)
        self._thread.files.append(stored[2])
        return stored

    def begin(self) -> None:
        """Count the files that this thread writes from now on."""
        self._thread.files = []

    def undo(self) -> None:
        """Remove the files that this thread has written since `begin`."""
        for file in self._thread.files:
            self.remove(file)

    def _write(self, full_path: str, iterator: Any, mode: str, encoding: str | None = None) -> Any:
        try:
            return super()._write(full_path, iterator, mode, encoding)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(full_path)
            raise

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> bytes:
        """Read a value."""
        if mode == diskcache.core.MODE_RAW and isinstance(value, bytes):
            return value
        if mode != diskcache.core.MODE_BINARY or not _is_file_name(filename):
            raise EntryRefused(f"a value of mode {mode} in file {filename!r}")
        with open(os.path.join(self._directory, filename), "rb") as file:
            return file.read()

    def remove(self, file_path: Any) -> None:
        """Remove a value's file."""
        if _is_file_name(file_path):
            super().remove(file_path)


def _is_file_name(name: Any) -> bool:
    """Whether this is a name that diskcache gives files; SQLite's columns hold values of any type."""
    return type(name) is str and _FILE_NAME.fullmatch(name) is not None


class Cache:
    """A cache that is open; `open_cache` makes one.

    Args:
        folder: where it is kept.
        limit: bytes it may take; the least recently used entries go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._failures: dict[str, str] = {}
        self._threads = trio.CapacityLimiter(THREADS)
        self._disk: diskcache.Cache | None = None
        self._used: dict[str, float] = {}
        self._noted = time.monotonic()

    @property
    def failure(self) -> str | None:
        """Why calls fail; a kind of call that fails does so until one of that kind is done."""
        return next(iter(self._failures.values()), None)

    async def get(self, key: str) -> memoryview | None:
        """The value under *key*, or None. An entry that does not verify is dropped."""
        return await self._run(self._get, key)

    async def has_any(self, prefix: str) -> bool:
        """Whether something may be kept under a key that starts with *prefix*."""
        # A question that failed is no answer: what is kept must be found where there is no network.
        return await self._run(self._has_any, prefix) is not False

    async def put(self, key: str, value: Buffer) -> None:
        """Keep *value* under *key*, unless the disk is nearly full."""
        await self.put_many([(key, value)])

    async def put_many(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        """Keep values under keys, all of them or none; in one transaction, which costs little more than one entry."""
        await self._run(self._put, entries)

    async def delete(self, key: str) -> None:
        """Drop the entry under *key*, if there is one."""
        await self._run(self._delete, key)

    async def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes they take on disk."""
        return await self._run(self._usage) or (0, 0)

    async def _run(self, call: Callable[..., T | None], *arguments: Any) -> T | None:
        if self._disk is None:
            return None
        try:
            found = await trio.to_thread.run_sync(call, *arguments, limiter=self._threads)
        except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
            self._failures[call.__name__] = f"{self.folder}: {str(error) or type(error).__name__}"
            return None
        self._failures.pop(call.__name__, None)
        return found

    def _get(self, key: str) -> memoryview | None:
        assert self._disk is not None
        try:
            entry = self._disk.get(key)
        except EntryRefused:
            entry = b""
        if entry is None:
            return None
        value = _unpack(key, entry)
        if value is None:
            self._delete(key)
            return None
        self._used[key] = time.time()
        if len(self._used) >= USES_AT_ONCE or time.monotonic() - self._noted > USES_NOTED_EVERY:
            self._note_uses()
        return value

    def _has_any(self, prefix: str) -> bool:
        # diskcache has no such question; a connection of its own, because its own ones belong to threads.
        with contextlib.closing(sqlite3.connect(self.folder / diskcache.core.DBNAME, _NOTE_TIMEOUT)) as base:
            sql = "SELECT 1 FROM Cache WHERE key >= ? AND key < ? AND raw = 1 LIMIT 1"
            return base.execute(sql, (prefix, prefix + "\U0010ffff")).fetchone() is not None

    def _put(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        assert self._disk is not None
        space = os.statvfs(self.folder)
        if space.f_bavail * space.f_frsize - sum(len(value) for _, value in entries) < RESERVE:
            raise OSError(f"less than {RESERVE >> 20} MB are free on its disk, so nothing more is kept")
        # Before anything is thrown out for the new entries.
        self._note_uses()
        self._disk.disk.begin()
        try:
            with self._disk.transact():
                for key, value in entries:
                    self._disk.set(key, _pack(key, value))
        except (sqlite3.Error, OSError, diskcache.Timeout):
            # The database forgets them, and diskcache leaves the files.
            self._disk.disk.undo()
            raise

    def _delete(self, key: str) -> None:
        assert self._disk is not None
        with contextlib.suppress(EntryRefused):
            self._disk.delete(key)

    def _usage(self) -> tuple[int, int]:
        assert self._disk is not None
        return len(self._disk), self._disk.volume()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._in_use = _open_lock(self.folder)
        with contextlib.suppress(OSError):
            # Shared by all who use the cache; a file system that has no locks goes without.
            fcntl.flock(self._in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._disk = diskcache.Cache(
            str(self.folder),
            timeout=_SQLITE_TIMEOUT,
            disk=SafeDisk,
            size_limit=self.limit,
            # Oldest first: `_note_uses` makes what was used young again.
            eviction_policy="least-recently-stored",
        )

    def _close(self) -> None:
        if self._disk is not None:
            self._note_uses()
            self._disk.close()
            os.close(self._in_use)

    def _note_uses(self) -> None:
        """Tell the database what was read since the last time.

        diskcache's own "least-recently-used" writes to the database at every read, one reader at a time: (m) cold
        reads of 526 kB entries were twice as slow.
        """
        used, self._used = self._used, {}
        self._noted = time.monotonic()
        uses = [(at, key) for key, at in used.items()]
        # Nobody's bytes depend on it: a database that is busy or broken forgets some uses.
        with contextlib.suppress(sqlite3.Error):
            if uses:
                with contextlib.closing(sqlite3.connect(self.folder / diskcache.core.DBNAME, _NOTE_TIMEOUT)) as base:
                    base.executemany("UPDATE Cache SET store_time = ? WHERE key = ? AND raw = 1", uses)
                    base.commit()


def is_in_use(folder: Path) -> bool:
    """Whether a process has the cache in *folder* open."""
    if not folder.is_dir():
        return False
    lock = _open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


def _open_lock(folder: Path) -> int:
    return os.open(folder / "in-use.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


@contextlib.asynccontextmanager
async def open_cache(folder: Path, limit: int) -> AsyncIterator[Cache]:
    """Open the cache in *folder*, created if missing, which may take up to *limit* bytes.

    Raises:
        CacheUnusable: the folder cannot be written, or what is in it is no cache.
    """
    cache = Cache(folder, limit)
    try:
        await trio.to_thread.run_sync(cache._open)
    except OSError as error:
        raise CacheUnusable(
            f"cache folder {folder}: {error.strerror or error}; choose another with --cache-dir"
        ) from error
    except Exception as error:  # As in `_run`.
        raise CacheUnusable(
            f"cache folder {folder}: its database cannot be used ({error}); "
            "'idcfs cache clear' makes a new one, --cache-dir chooses another folder"
        ) from error
    try:
        yield cache
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(cache._close)


def _pack(key: str, value: Buffer) -> bytes:
    name = key.encode()
    check = zlib.crc32(value, zlib.crc32(name))
    return b"".join((_HEADER.pack(_MAGIC, check, len(name), len(value)), name, value))


def _unpack(key: str, entry: bytes) -> memoryview | None:
    """The value in an entry, or None if it is not what was put under *key*."""
    name = key.encode()
    start = _HEADER.size + len(name)
    if len(entry) < start:
        return None
    magic, check, name_length, length = _HEADER.unpack_from(entry)
    value = memoryview(entry)[start:]
    if magic != _MAGIC or name_length != len(name) or length != len(value):
        return None
    if entry[_HEADER.size : start] != name or zlib.crc32(value, zlib.crc32(name)) != check:
        return None
    return value
