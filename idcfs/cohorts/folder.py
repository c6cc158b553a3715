"""The folder of cohorts: a text file for each, fit for version control; synchronous, may wait for the disk.

    <folder>/NAME.sql             the cohort's text, as it was written
    <folder>/.last-good/NAME.sql  the last text that worked, kept while the one above does not work

Files are written under another name and renamed, under a lock that every idcfs takes, so that two mounts that write at
the same time lose nothing. Files may be added, changed and removed by hand at any time.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from idcfs.cohorts.text import MAX_TEXT
from idcfs.errors import (
    AlreadyThere,
    CohortsUnusable,
    IdcfsError,
    NameRefused,
    NameTooLong,
    NoSpace,
    NotThereNow,
    QueryTooLong,
)

SUFFIX = ".sql"

MAX_NAME_BYTES = 255 - len(SUFFIX)
"""The name of a file has at most 255 bytes on Linux (NAME_MAX)."""

MAX_COHORTS = 10_000
"""A guess at more than anyone keeps; listing so many takes about 20 ms."""

LOCK_SECONDS = 5.0
"""Seconds to wait for the lock. Others hold it for milliseconds, but one that hangs must not block everybody."""

_LOCK_POLL = 0.005
_LAST_GOOD = ".last-good"
_LOCK = ".lock"
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_CONTROL = re.compile(r"[\x00-\x1f\x7f/]")


class Stamp(NamedTuple):
    """The state of a file, which changes with its content; the time is in nanoseconds since the epoch."""

    modified_ns: int
    size: int
    inode: int


def check_name(name: bytes) -> str:
    """Return a cohort's name from the bytes of a file name.

    Raises:
        NameRefused, NameTooLong: a cohort cannot have this name.
    """
    if len(name) > MAX_NAME_BYTES:
        raise NameTooLong(f"a cohort's name has at most {MAX_NAME_BYTES} bytes")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise NameRefused(f"cohort name {name!r} is not UTF-8") from error
    if not text or text.startswith(".") or _CONTROL.search(text):
        raise NameRefused(f"cohort name {text!r}: a name has no slash or control character, and does not start with .")
    return text


class CohortTexts:
    """The files of a folder of cohorts; the folder is made when the first is written.

    Raises:
        CohortsUnusable, NoSpace: the disk fails, or is full; from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> dict[str, Stamp]:
        """Return the stamps of all cohorts by name, sorted; files with other names are ignored."""
        found = {}
        with self._translated_errors(), contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                name = entry.name.removesuffix(SUFFIX)
                if name == entry.name:
                    continue
                # The file may be gone, or a link to nowhere; the others are shown nevertheless.
                with contextlib.suppress(OSError, NameRefused, NameTooLong):
                    found[check_name(os.fsencode(name))] = _stamp(_require_regular(entry.stat(), entry.path))
        return dict(sorted(found.items()))

    def stamp(self, name: str) -> Stamp:
        """Return the state of a cohort's file.

        Raises:
            NotThereNow: there is no such cohort.
        """
        with self._translated_errors():
            return _stamp(_require_regular(os.stat(self._file(name)), str(self._file(name))))

    def read(self, name: str) -> tuple[bytes, Stamp]:
        """Return a cohort's text and the state of its file.

        Raises:
            NotThereNow: there is no such cohort.
        """
        with self._translated_errors(), open(self._file(name), "rb", opener=_open_regular) as file:
            # A longer text cannot be used, and a file that was put here by hand can have any size.
            return file.read(MAX_TEXT + 1), _stamp(os.fstat(file.fileno()))

    def create(self, name: str) -> Stamp:
        """Make a cohort with an empty text.

        Raises:
            AlreadyThere: there is a cohort of this name.
            NoSpace: there are `MAX_COHORTS`.
        """
        if len(self.names()) >= MAX_COHORTS:
            raise NoSpace(f"there are {MAX_COHORTS:,} cohorts in {self.path}; remove one first")
        with self._locked(), self._file(name).open("xb") as file:
            # A cohort of this name may have been removed by hand.
            self._forget_last_good(name)
            return _stamp(os.fstat(file.fileno()))

    def write(self, name: str, text: bytes) -> Stamp:
        """Replace a cohort's text."""
        with self._locked():
            return self._replace(self._file(name), text)

    def append(self, name: str, text: bytes) -> tuple[bytes, Stamp]:
        """Add *text* to the end of a cohort's file; returns the whole text and the state of the file.

        Raises:
            NotThereNow: there is no such cohort.
            QueryTooLong: the whole text would be longer than `MAX_TEXT`; the file is unchanged.
        """
        with self._locked():
            whole = self.read(name)[0] + text
            if len(whole) > MAX_TEXT:
                raise QueryTooLong(f"a query has at most {MAX_TEXT:,} bytes")
            return whole, self._replace(self._file(name), whole)

    def rename(self, old: str, new: str) -> None:
        """Rename a cohort.

        Raises:
            NotThereNow: there is no cohort *old*.
            AlreadyThere: there is a cohort *new*.
        """
        with self._locked():
            os.stat(self._file(old))
            if os.path.lexists(self._file(new)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._file(new)))
            self._file(old).rename(self._file(new))
            self._forget_last_good(new)
            with contextlib.suppress(OSError):
                self._last_good(old).replace(self._last_good(new))

    def delete(self, name: str) -> None:
        """Remove a cohort.

        Raises:
            NotThereNow: there is no such cohort.
        """
        with self._locked():
            self._file(name).unlink()
            self._forget_last_good(name)

    def read_last_good(self, name: str) -> bytes | None:
        """Return the last text that worked, or None if it was not kept."""
        with self._translated_errors(), contextlib.suppress(FileNotFoundError):
            return self._last_good(name).read_bytes()
        return None

    def keep_last_good(self, name: str, text: bytes | None) -> None:
        """Keep the last text that worked; None removes it, because the present text works."""
        with self._translated_errors():
            if text is None and not self._last_good(name).exists():
                return
        with self._locked():
            if text is None:
                self._last_good(name).unlink(missing_ok=True)
            else:
                _make_folder(self.path / _LAST_GOOD)
                self._replace(self._last_good(name), text)

    def remove_leftovers(self) -> None:
        """Remove what killed writers have left. If it cannot be removed it stays, and does no harm."""
        with contextlib.suppress(IdcfsError), self._translated_errors():
            if any(self._partial()):
                # Writers hold the lock, so no partial file is in use now.
                with self._locked():
                    for file in self._partial():
                        file.unlink(missing_ok=True)

    def _partial(self) -> Iterator[Path]:
        for folder in (self.path, self.path / _LAST_GOOD):
            yield from (file for file in folder.glob(".*.partial") if _PARTIAL.fullmatch(file.name))

    def _file(self, name: str) -> Path:
        return self.path / (name + SUFFIX)

    def _last_good(self, name: str) -> Path:
        return self.path / _LAST_GOOD / (name + SUFFIX)

    def _forget_last_good(self, name: str) -> None:
        # A failure is ignored: a text that stays is used only while a later text of this name does not work.
        with contextlib.suppress(OSError):
            self._last_good(name).unlink()

    def _replace(self, file: Path, text: bytes) -> Stamp:
        temporary = file.parent / f".{secrets.token_hex(8)}.partial"
        try:
            with temporary.open("xb") as partial:
                partial.write(text)
                partial.flush()
                os.fsync(partial.fileno())
                stamp = _stamp(os.fstat(partial.fileno()))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        return stamp

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, and raise the system's errors as errors of idcfs."""
        with self._translated_errors():
            _make_folder(self.path)
            descriptor = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                self._wait_for_lock(descriptor)
                yield
            finally:
                os.close(descriptor)

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EAGAIN, "another program holds its lock") from None
                time.sleep(_LOCK_POLL)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise the system's errors as errors of idcfs."""
        try:
            yield
        except FileNotFoundError as error:
            raise NotThereNow(f"no cohort file {error.filename}") from error
        except FileExistsError as error:
            raise AlreadyThere(f"there is a cohort file {error.filename2 or error.filename} already") from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoSpace(f"cohort folder {self.path}: {error.strerror}") from error
            raise CohortsUnusable(
                f"cohort folder {self.path}: {error.strerror}; choose another with --cohort-dir"
            ) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:
        # These errors would be reported as those of a cohort's file.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: str) -> os.stat_result:
    """Return *status* if it is a regular file's; anything else is no cohort, whatever its name."""
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return status


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
