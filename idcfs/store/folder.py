"""`FolderStore`: an `ObjectStore` over a folder laid out as ``<root>/<bucket>/<key>``.

Each call does its file-system work in a worker thread, of which there is a limited number. A cancelled call abandons
its thread, because a stuck network file system cannot be interrupted. The ETag of an object is made of its size and
modification time, so a rewritten file is a new version.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any, Self

import trio

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, Unreachable, Untrusted
from idcfs.store.base import Finished, ListPage, ObjectInfo, Progress, Range

_PAGE_LENGTH = 1000
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENXIO}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM}


class FolderStore:
    """The objects under *root*; at most *max_threads* calls run at a time, others wait."""

    def __init__(self, root: Path, *, max_threads: int = 16) -> None:
        self._root = root
        limiter = trio.CapacityLimiter(max_threads)
        self._in_thread = partial(trio.to_thread.run_sync, limiter=limiter, abandon_on_cancel=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        pass

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits for the file system. The token is the page's last key."""
        return await self._in_thread(self._list_page, bucket, prefix, token)

    async def get(self, wanted: Range, progress: Progress | None = None) -> bytes:
        """See `ObjectStore.get`; waits for the file system."""
        return await self._in_thread(self._get, wanted)

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """Returns False: reading a file takes a thread."""
        return False

    def _list_page(self, bucket: str, prefix: str, token: str | None) -> ListPage:
        with self._errors_of(f"{bucket}/{prefix}"):
            folder = self._path(bucket)
            os.stat(folder)
            parent, slash, name_start = prefix.rpartition("/")
            found = _keys(self._path(bucket, parent) if slash else folder, parent, name_start)
            # One key more than a page holds shows whether there is another page.
            keys = nsmallest(_PAGE_LENGTH + 1, (key for key in found if token is None or key > token))
            page = keys[:_PAGE_LENGTH]
            objects = [described for key in page if (described := _describe(folder, key)) is not None]
            return ListPage(objects, page[-1] if len(keys) > len(page) else None)

    def _get(self, wanted: Range) -> bytes:
        bucket, key, start, stop, version = wanted
        name = f"{bucket}/{key}"
        with self._errors_of(name):
            with open(self._path(bucket, key), "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise NotFound(f"{name} is not a regular file")
                file.seek(start)
                content = file.read(wanted.length)
                # Checked after reading, so that a write meanwhile is noticed.
                status = os.fstat(file.fileno())
            if _etag(status) != version.etag:
                raise ObjectChanged(f"{name} has changed since it was listed")
            if status.st_size != version.size:
                raise Untrusted(f"{name} has {status.st_size} bytes, not {version.size}")
        if len(content) != wanted.length:
            raise Untrusted(f"{name} has no bytes {start} to {stop}")
        return content

    def _path(self, bucket: str, key: str | None = None) -> Path:
        """The path of *key*, always inside the bucket's folder; raises NotFound for any other key or bucket."""
        if "/" in bucket:
            raise NotFound(f"{bucket!r} is not the name of a bucket")
        parts = [bucket] if key is None else [bucket, *key.split("/")]
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise NotFound(f"{'/'.join(parts)!r} is not the name of an object")
        return self._root.joinpath(*parts)

    @contextmanager
    def _errors_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"{self._root}: {name}: {error.strerror}"
            if error.errno in _NOT_ALLOWED:
                raise AccessDenied(problem) from error
            # If the root is missing, its disk is probably not mounted, and the object may exist.
            if error.errno in _NO_SUCH_FILE and self._root.is_dir():
                raise NotFound(problem) from error
            raise Unreachable(problem) from error
        except UnicodeEncodeError as error:
            raise NotFound(f"{name!r} cannot be the name of a file") from error


def _keys(folder: Path, parent: str, name_start: str) -> Iterator[str]:
    """The keys of the files below *folder*, whose key is *parent*; its own entries must start with *name_start*."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if not entry.name.startswith(name_start) or not _is_text(entry.name):
                continue
            key = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _keys(folder / entry.name, key, "")
            else:
                yield key


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, as keys are; Python shows other bytes as surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _describe(folder: Path, key: str) -> ObjectInfo | None:
    """The object *key*, or None if it is not a regular file or was removed meanwhile."""
    try:
        status = os.stat(folder / key)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime_ns)


def _etag(status: os.stat_result) -> str:
    return f'"{status.st_size}-{status.st_mtime_ns:x}"'


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; without O_NONBLOCK, open() of a FIFO waits for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
