"""The database of a cache folder: opened, set aside when it is damaged, made anew when it is gone; blocks.

Shared by processes, and used from any thread. A call that finds the database damaged fails, and the next one finds a
new database. One that another process keeps locked is left alone for a while, because every call would wait for it.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import diskcache

log = logging.getLogger(__name__)

NAME: str = diskcache.core.DBNAME
DAMAGED_NAME = "damaged.db"

SQLITE_TIMEOUT = 1.0
"""Seconds that a call waits for another process' lock; those of idcfs hold it for some 10 ms."""

LOCKED_PAUSE = 5.0
"""Seconds for which a database that was locked is left alone."""

_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
    }
)  # fmt: skip
"""What SQLite says of the disk, or of others who use the database."""

_SHARE_TRIES = 20
_SHARE_PAUSE = 0.005
"""Who asks whether anybody uses the cache has the lock alone for a moment; who has it for longer is not waited for."""

_FORMATS = frozenset({b"", b"\1\1", b"\2\2"})
"""What a header has from byte 18 on (https://sqlite.org/fileformat.html): nothing yet, without a WAL, with one. With
other numbers SQLite says that the database is read-only, or locked."""

Identity = tuple[int, int]
"""Device and inode: which file a name means."""

_LOOKED_AT: dict[Identity, int] = {}
"""Descriptors of databases, never closed: to close one would drop SQLite's locks, as all that a process has on a file
are dropped when it closes any descriptor of it (https://sqlite.org/howtocorrupt.html, 2.2)."""


class DatabaseLocked(Exception):
    """Another process does not let go of the database."""


class EntryDatabase:
    """The database in *folder*, with *disk* for diskcache's way of storing, and *limit* bytes for its size limit.

    `replaced` is set when another database took the place of one that was in use.
    """

    def __init__(self, folder: Path, limit: int, disk: type[diskcache.Disk]) -> None:
        self.replaced = threading.Event()
        self._folder = folder
        self._limit = limit
        self._disk = disk
        self._opening = threading.Lock()
        self._in_use: int | None = None
        self._cache: diskcache.Cache | None = None
        self._identity: Identity | None = None
        self._locked_until: dict[str, float] = {}

    def opened(self) -> diskcache.Cache:
        """The database, opened if it is not.

        Raises:
            DatabaseLocked: another process has locked it.
            OSError, sqlite3.Error: the folder cannot be used.
        """
        cache = self._cache
        if cache is None:
            with self._opening, self._unless_locked("open"):
                cache = self._cache = self._cache or self._open()
        return cache

    @contextlib.contextmanager
    def using(self, kind: str) -> Iterator[diskcache.Cache]:
        """The database for one call.

        Args:
            kind: of calls that wait for the same locks.

        Raises:
            DatabaseLocked: another process has locked it, now or a moment ago.
            Exception: as `opened`, and what the call raises.
        """
        cache = self.opened()
        try:
            with self._unless_locked(kind):
                yield cache
        except Exception as error:
            if is_damage(error, self._folder):
                self._replace(cache, error)
            raise

    def check_place(self) -> None:
        """Open another database if the one that is open was removed, or replaced by another process."""
        cache = self.opened()
        if identity(self._folder) != self._identity:
            self._replace(cache)

    def close(self) -> None:
        """Close it."""
        if self._cache is not None:
            self._cache.close()
        self._let_go()

    def _replace(self, cache: diskcache.Cache, error: Exception | None = None) -> None:
        with self._opening:
            if self._cache is cache:
                if error is not None:
                    set_aside(self._folder, self._identity, error)
                self._cache = None
                self.replaced.set()
        self.opened()

    def _open(self) -> diskcache.Cache:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._let_go()
        self._in_use = open_lock(self._folder)
        _share(self._in_use)
        before = identity(self._folder)
        try:
            cache = self._open_database()
        except Exception as error:
            if not is_damage(error, self._folder):
                raise
            set_aside(self._folder, before, error)
            cache = self._open_database()
        self._identity = identity(self._folder)
        return cache

    def _let_go(self) -> None:
        # Once it is closed, its number may be that of another file.
        in_use, self._in_use = self._in_use, None
        if in_use is not None:
            os.close(in_use)

    def _open_database(self) -> diskcache.Cache:
        # diskcache would wait a minute for a lock.
        with contextlib.closing(sqlite3.connect(self._folder / NAME, SQLITE_TIMEOUT)) as base:
            base.execute("BEGIN IMMEDIATE")
            check_tables(base)
        settings = {
            # All of them, or those that the database says would count.
            **diskcache.DEFAULT_SETTINGS,
            "size_limit": self._limit,
            # Oldest first: `Entries` makes what was used young again.
            "eviction_policy": "least-recently-stored",
        }
        return diskcache.Cache(str(self._folder), timeout=SQLITE_TIMEOUT, disk=self._disk, **settings)

    @contextlib.contextmanager
    def _unless_locked(self, kind: str) -> Iterator[None]:
        """Do what may wait for others' locks, unless that was in vain a moment ago."""
        message = "its database is locked by another process"
        if time.monotonic() < self._locked_until.get(kind, 0):
            raise DatabaseLocked(message)
        try:
            yield
        except (diskcache.Timeout, sqlite3.OperationalError) as error:
            if isinstance(error, sqlite3.Error) and _code(error) != sqlite3.SQLITE_BUSY:
                raise
            self._locked_until[kind] = time.monotonic() + LOCKED_PAUSE
            raise DatabaseLocked(message) from error


def set_aside(folder: Path, damaged: Identity | None, error: Exception) -> None:
    """Give the *damaged* database another name, unless another process has done so; who uses it notices."""
    if damaged is None or damaged != identity(folder):
        return
    log.warning("cache folder %s: its database is damaged (%s); a new one takes its place", folder, error)
    os.replace(folder / NAME, folder / DAMAGED_NAME)
    for name in (f"{NAME}-wal", f"{NAME}-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / name)


def is_damage(error: Exception, folder: Path) -> bool:
    """Whether an error says that the database in *folder* is damaged, or not one of a cache."""
    if isinstance(error, sqlite3.Error) and _code(error) not in _NOT_DAMAGE:
        # One that SQLite has rolled back already, after another error.
        return "transaction" not in str(error)
    if isinstance(error, sqlite3.Error | DatabaseLocked):
        return _versions(folder) not in _FORMATS
    # diskcache stumbles over values that are not of the kind it puts, and Python over damaged text that SQLite quotes.
    return isinstance(error, AttributeError | TypeError | ValueError) and not isinstance(error, UnicodeEncodeError)


def check_tables(base: sqlite3.Connection) -> None:
    """Make sure that rows have numbers by which they can be changed: else diskcache changes none, and says nothing.

    Raises:
        sqlite3.DatabaseError: they have not.
    """
    if base.execute("SELECT 1 FROM pragma_table_info('Cache') WHERE name = 'rowid' AND NOT pk").fetchone():
        raise sqlite3.DatabaseError("its rows have no numbers")


def open_lock(folder: Path) -> int:
    """A descriptor of the file that whoever uses the cache in *folder* has locked."""
    return os.open(folder / "in-use.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _share(lock: int) -> None:
    """Take a lock that all who use the cache share; a file system that has no locks goes without."""
    for _ in range(_SHARE_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SHARE_PAUSE)
        except OSError:
            return
        else:
            return


def identity(folder: Path) -> Identity | None:
    """Which file the database of a cache folder is; None if there is none."""
    try:
        found = os.stat(folder / NAME)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _versions(folder: Path) -> bytes:
    with contextlib.suppress(OSError):
        found = identity(folder)
        if found is not None:
            if found not in _LOOKED_AT:
                _LOOKED_AT[found] = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(_LOOKED_AT[found], 2, 18)
    return b""


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code (https://sqlite.org/rescode.html)."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
