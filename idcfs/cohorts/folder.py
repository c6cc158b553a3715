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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from idcfs.errors import AlreadyThere, CohortsUnusable, NameRefused, NameTooLong, NoSpace, NotThereNow

SUFFIX = ".sql"

MAX_NAME_BYTES = 255 - len(SUFFIX)
"""A file's name has 255 bytes on Linux (NAME_MAX)."""

MAX_COHORTS = 10_000
"""A guess at more than anyone keeps; listing that many takes some 20 ms."""

_LAST_GOOD = ".last-good"
_LOCK = ".lock"
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
                if name != entry.name and _is_name(name) and entry.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = _stamp(entry.stat())
        return dict(sorted(found.items()))

    def stamp(self, name: str) -> Stamp:
        """The state of a cohort's file.

        Raises:
            NotThereNow: there is none.
        """
        with self._telling():
            return _stamp(os.stat(self._file(name)))

    def read(self, name: str) -> tuple[bytes, Stamp]:
        """A cohort's text, and the state of the file it was in.

        Raises:
            NotThereNow: there is none.
        """
        with self._telling(), self._file(name).open("rb") as file:
            return file.read(), _stamp(os.fstat(file.fileno()))

    def create(self, name: str) -> Stamp:
        """Make a cohort with an empty text.

        Raises:
            AlreadyThere: there is one.
            NoSpace: there are `MAX_COHORTS`.
        """
        if len(self.names()) >= MAX_COHORTS:
            raise NoSpace(f"there are {MAX_COHORTS:,} cohorts in {self.path}; remove one first")
        with self._locked(), self._telling(), self._file(name).open("xb") as file:
            return _stamp(os.fstat(file.fileno()))

    def write(self, name: str, text: bytes) -> Stamp:
        """Put *text* in the place of a cohort's text."""
        with self._locked(), self._telling():
            return self._replace(self._file(name), text)

    def append(self, name: str, text: bytes) -> tuple[bytes, Stamp]:
        """Add *text* to what a cohort's file holds by now; returns all of it.

        Raises:
            NotThereNow: there is none.
        """
        with self._locked(), self._telling():
            whole = self._file(name).read_bytes() + text
            return whole, self._replace(self._file(name), whole)

    def rename(self, old: str, new: str) -> None:
        """Give a cohort another name.

        Raises:
            NotThereNow: there is none of the old name.
            AlreadyThere: there is one of the new name.
        """
        with self._locked(), self._telling():
            # By a link, which unlike a rename never replaces.
            os.link(self._file(old), self._file(new))
            self._file(old).unlink()
            with contextlib.suppress(FileNotFoundError):
                self._last_good(old).replace(self._last_good(new))

    def delete(self, name: str) -> None:
        """Remove a cohort.

        Raises:
            NotThereNow: there is none.
        """
        with self._locked(), self._telling():
            self._file(name).unlink()
            self._last_good(name).unlink(missing_ok=True)

    def read_last_good(self, name: str) -> bytes | None:
        """The text that worked before the present one, if it was kept."""
        with self._telling():
            try:
                return self._last_good(name).read_bytes()
            except FileNotFoundError:
                return None

    def keep_last_good(self, name: str, text: bytes | None) -> None:
        """Keep the text that worked before the present one; None if the present one works."""
        if text is None and not self._last_good(name).exists():
            return
        with self._locked(), self._telling():
            if text is None:
                self._last_good(name).unlink(missing_ok=True)
            else:
                self._last_good(name).parent.mkdir(exist_ok=True)
                self._replace(self._last_good(name), text)

    def _file(self, name: str) -> Path:
        return self.path / (name + SUFFIX)

    def _last_good(self, name: str) -> Path:
        return self.path / _LAST_GOOD / (name + SUFFIX)

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
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

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


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
