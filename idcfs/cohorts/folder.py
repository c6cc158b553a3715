"""Cohorts on disk: a folder with one text file each, made for version control; synchronous, may block on the disk.

    <folder>/NAME.sql             the cohort's text, as it was written
    <folder>/.last-good/NAME.sql  the text before it, kept while the one above does not work

Files change as a whole: written under another name and renamed, under a lock that every idcfs takes, so that two
mounts that write at once lose nothing. Files may be added, changed and removed by hand at any time.
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
"""A file's name has 255 bytes on Linux (NAME_MAX)."""

MAX_COHORTS = 10_000
"""A guess at more than anyone keeps; listing that many takes some 20 ms."""

LOCK_SECONDS = 5.0
"""Others hold the lock for milliseconds; one that is stuck must not hold up everybody."""

_LOCK_POLL = 0.005
_LAST_GOOD = ".last-good"
_LOCK = ".lock"
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_CONTROL = re.compile(r"[\x00-\x1f\x7f/]")


class Stamp(NamedTuple):
    """What tells one state of a file from another; the time is in nanoseconds since the epoch."""

    modified_ns: int
    size: int
    inode: int


def check_name(name: bytes) -> str:
    """A cohort's name from the bytes of a file name.

    Raises:
        NameRefused, NameTooLong: a cohort cannot be called so.
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


class CohortFolder:
    """The files of a folder of cohorts; the folder is made when the first is written.

    Raises:
        CohortsUnusable, NoSpace: from every method, when the disk says no.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> dict[str, Stamp]:
        """The cohorts there are, sorted; files with other names are somebody else's."""
        found = {}
        with self._telling(), contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                name = entry.name.removesuffix(SUFFIX)
                if name == entry.name or not _is_name(name):
                    continue
                # It may have gone, or be a link to nowhere: that is no reason to show none of the others.
                with contextlib.suppress(OSError):
                    found[name] = _stamp(_regular(entry.stat(), entry.path))
        return dict(sorted(found.items()))

    def stamp(self, name: str) -> Stamp:
        """The state of a cohort's file.

        Raises:
            NotThereNow: there is none.
        """
        with self._telling():
            return _stamp(_regular(os.stat(self._file(name)), str(self._file(name))))

    def read(self, name: str) -> tuple[bytes, Stamp]:
        """A cohort's text, and the state of the file it was in.

        Raises:
            NotThereNow: there is none.
        """
        with self._telling(), open(self._file(name), "rb", opener=_open_regular) as file:
            # No longer text is of use, and a file that was put here can have any size.
            return file.read(MAX_TEXT + 1), _stamp(os.fstat(file.fileno()))

    def create(self, name: str) -> Stamp:
        """Make a cohort with an empty text.

        Raises:
            AlreadyThere: there is one.
            NoSpace: there are `MAX_COHORTS`.
        """
        if len(self.names()) >= MAX_COHORTS:
            raise NoSpace(f"there are {MAX_COHORTS:,} cohorts in {self.path}; remove one first")
        with self._locked(), self._telling(), self._file(name).open("xb") as file:
            # One of this name may have been removed by hand.
            self._forget_last_good(name)
            return _stamp(os.fstat(file.fileno()))

    def write(self, name: str, text: bytes) -> Stamp:
        """Put *text* in the place of a cohort's text."""
        with self._locked(), self._telling():
            return self._replace(self._file(name), text)

    def append(self, name: str, text: bytes) -> tuple[bytes, Stamp]:
        """Add *text* to what a cohort's file holds by now; returns all of it.

        Raises:
            NotThereNow: there is none.
            QueryTooLong: there would be more than a cohort may have; the file is as it was.
        """
        with self._locked(), self._telling():
            whole = self.read(name)[0] + text
            if len(whole) > MAX_TEXT:
                raise QueryTooLong(f"a query has at most {MAX_TEXT:,} bytes")
            return whole, self._replace(self._file(name), whole)

    def rename(self, old: str, new: str) -> None:
        """Give a cohort another name.

        Raises:
            NotThereNow: there is none of the old name.
            AlreadyThere: there is one of the new name.
        """
        with self._locked(), self._telling():
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
            NotThereNow: there is none.
        """
        with self._locked(), self._telling():
            self._file(name).unlink()
            self._forget_last_good(name)

    def read_last_good(self, name: str) -> bytes | None:
        """The text that worked before the present one, if it was kept."""
        with self._telling():
            try:
                return self._last_good(name).read_bytes()
            except FileNotFoundError:
                return None

    def keep_last_good(self, name: str, text: bytes | None) -> None:
        """Keep the text that worked before the present one; None if the present one works."""
        with self._telling():
            if text is None and not self._last_good(name).exists():
                return
        with self._locked(), self._telling():
            if text is None:
                self._last_good(name).unlink(missing_ok=True)
            else:
                _make_folder(self._last_good(name).parent)
                self._replace(self._last_good(name), text)

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed have left. Where that cannot be done it stays, and does no harm."""
        with contextlib.suppress(IdcfsError), self._telling():
            if any(self._partial()):
                # Whoever writes one has the lock.
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
        # Not worth failing for: what is left counts only while a later text of this name does not work.
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
        with self._telling():
            _make_folder(self.path)
            descriptor = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            with self._telling():
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
    def _telling(self) -> Iterator[None]:
        """Turn the system's errors into ours."""
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


def _is_name(name: str) -> bool:
    try:
        check_name(os.fsencode(name))
    except (NameRefused, NameTooLong):
        return False
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:
        # What is told of a cohort's file would be wrong of the folder.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _open_regular(path: str, flags: int) -> int:
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _regular(status: os.stat_result, path: str) -> os.stat_result:
    """The status of what is a file; other things are no cohorts, whatever their names."""
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return status


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
