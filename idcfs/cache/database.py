"""The database of a cache folder: opened, renamed when it is damaged, made anew when it is gone; calls block.

Processes share it, and any thread may use it. A call that finds the database damaged fails, and the next call finds a
new database. A database that another process keeps locked is left alone for some seconds, because every call would
wait for it.
"""

import contextlib
import fcntl
import functools
import io
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import diskcache

from idcfs.cache.disk import EntryDisk
from idcfs.cache.tables import NAME, open_tables

log = logging.getLogger(__name__)

SQLITE_TIMEOUT = 1.0
"""Seconds that a call waits for another process' lock; processes of idcfs hold it for some 10 ms."""

LOCKED_PAUSE = 5.0
"""Seconds for which a database that was locked is left alone."""

_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
    }
)  # fmt: skip
"""SQLite's result codes that are about the disk, or about others who use the database."""

_SHARE_TRIES = 20
_SHARE_PAUSE = 0.005
"""`is_in_use` locks the cache for a moment. That moment is waited for, and any longer lock is not."""

_FORMAT_VERSIONS = frozenset({b"", b"\1\1", b"\2\2"})
"""Bytes 18 and 19 of a database (https://sqlite.org/fileformat.html): an empty one, one without a WAL, one with it. If
they are damaged, SQLite reports that the database is read-only, or locked."""

Identity = tuple[int, int]
"""Device and inode of a file, which stay when it is renamed."""


class DatabaseLocked(Exception):
    """Another process keeps the database locked."""


class EntryDatabase:
    """The database in *folder*, whose entries may take *limit* bytes.

    `replaced` is set when another database took the place of one that was in use.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.replaced = threading.Event()
        self._folder = folder
        self._limit = limit
        self._opening = threading.Lock()
        self._cache: diskcache.Cache | None = None
        self._use_lock: io.FileIO | None = None
        self._identity: Identity | None = None
        self._locked_until: dict[str, float] = {}

    def opened(self) -> diskcache.Cache:
        """Return the database, which is opened if it is not open.

        Raises:
            DatabaseLocked: another process has locked it.
            OSError, sqlite3.Error: the folder cannot be used.
        """
        cache = self._cache
        if cache is None:
            with self._opening, self._locks_reported("open"):
                cache = self._cache = self._cache or self._open()
        return cache

    @contextlib.contextmanager
    def using(self, kind: str) -> Iterator[diskcache.Cache]:
        """Open the database for one call; calls of one *kind* wait for the same locks.

        Raises:
            DatabaseLocked: another process has locked it, now or a moment ago.
            Exception: as `opened`, and what the call raises.
        """
        cache = self.opened()
        try:
            with self._locks_reported(kind):
                yield cache
        except Exception as error:
            if is_damage(error, self._folder):
                self._replace(cache, error)
            raise

    def reopen_if_replaced(self) -> None:
        """Open the database in the folder if it is not the one that is open, which may have been removed."""
        cache = self.opened()
        if identity(self._folder) != self._identity:
            self._replace(cache)

    def close(self) -> None:
        """Close the database."""
        for opened in (self._cache, self._use_lock):
            if opened is not None:
                opened.close()

    def _replace(self, cache: diskcache.Cache, error: Exception | None = None) -> None:
        with self._opening:
            if self._cache is cache:
                if error is not None:
                    rename_damaged(self._folder, self._identity, error)
                self._cache = None
                self.replaced.set()
        self.opened()

    def _open(self) -> diskcache.Cache:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._use_lock is not None:
            self._use_lock.close()
        self._use_lock = _open_lock(self._folder)
        _lock_shared(self._use_lock)
        before = identity(self._folder)
        try:
            cache = self._open_cache()
        except Exception as error:
            if not is_damage(error, self._folder):
                raise
            rename_damaged(self._folder, before, error)
            cache = self._open_cache()
        self._identity = identity(self._folder)
        return cache

    def _open_cache(self) -> diskcache.Cache:
        with open_tables(self._folder, SQLITE_TIMEOUT, create=True) as tables:
            # diskcache would wait a minute for a lock.
            tables.lock()
        settings = {
            # All of them, because the database's own settings hold where none is given.
            **diskcache.DEFAULT_SETTINGS,
            "size_limit": self._limit,
            # The oldest entries go first, and `Entries` gives those that are used a new time.
            "eviction_policy": "least-recently-stored",
        }
        return diskcache.Cache(str(self._folder), timeout=SQLITE_TIMEOUT, disk=EntryDisk, **settings)

    @contextlib.contextmanager
    def _locks_reported(self, kind: str) -> Iterator[None]:
        """Raise `DatabaseLocked` if the block waits for a lock in vain, and at once for some seconds after that."""
        message = "its database is locked by another process"
        if time.monotonic() < self._locked_until.get(kind, 0):
            raise DatabaseLocked(message)
        try:
            yield
        except (diskcache.Timeout, sqlite3.OperationalError) as error:
            if isinstance(error, sqlite3.Error) and _primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
            self._locked_until[kind] = time.monotonic() + LOCKED_PAUSE
            raise DatabaseLocked(message) from error


def rename_damaged(folder: Path, damaged: Identity | None, error: Exception) -> None:
    """Give the *damaged* database another name, unless another process has done so.

    Processes that use it notice that, and open a new one.
    """
    if damaged is None or damaged != identity(folder):
        return
    log.warning("cache folder %s: its database is damaged (%s); a new one takes its place", folder, error)
    os.replace(folder / NAME, folder / "damaged.db")
    for name in (f"{NAME}-wal", f"{NAME}-shm"):
        (folder / name).unlink(missing_ok=True)


def is_damage(error: Exception, folder: Path) -> bool:
    """Return whether an error means that the database in *folder* is damaged, or is not the database of a cache."""
    if isinstance(error, sqlite3.Error) and _primary_code(error) not in _NOT_DAMAGE:
        # After another error, SQLite may have ended the transaction that diskcache then ends again.
        return "transaction" not in str(error)
    if isinstance(error, sqlite3.Error | DatabaseLocked):
        return _format_versions(folder) not in _FORMAT_VERSIONS
    # diskcache fails at values of another type than it stores, and Python at damaged text in SQLite's messages.
    return isinstance(error, AttributeError | TypeError | ValueError) and not isinstance(error, UnicodeEncodeError)


def is_in_use(folder: Path, if_unknown: bool = False) -> bool:
    """Return whether a process has the cache in *folder* open; *if_unknown* where the file system has no locks."""
    if not folder.is_dir():
        return False
    with _open_lock(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return if_unknown
    return False


def _open_lock(folder: Path) -> io.FileIO:
    """Open the file on which each process that uses the cache in *folder* has a shared lock."""
    return io.FileIO(os.open(folder / "in-use.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _lock_shared(lock: io.FileIO) -> None:
    """Take the shared lock; where the file system has no locks, go without."""
    for _ in range(_SHARE_TRIES):
        try:
            return fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SHARE_PAUSE)
        except OSError:
            return


def identity(folder: Path) -> Identity | None:
    """Return which file the database of a cache folder is, or None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(folder / NAME)
        return found.st_dev, found.st_ino
    return None


def _format_versions(folder: Path) -> bytes:
    with contextlib.suppress(OSError):
        if found := identity(folder):
            return os.pread(_header_descriptor(folder / NAME, found), 2, 18)
    return b""


@functools.cache
def _header_descriptor(path: Path, _identity: Identity) -> int:
    # Never closed: that would drop all locks that the process has on the file, SQLite's too
    # (https://sqlite.org/howtocorrupt.html, 2.2).
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code (https://sqlite.org/rescode.html); 255, which is none, if there is none."""
    return int(getattr(error, "sqlite_errorcode", -1)) & 0xFF
