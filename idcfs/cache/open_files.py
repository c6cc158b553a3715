"""The files of entries that were read last, kept open so that parts of their values are read without the server.

Viewers of slides read small parts of large objects: to read and verify a whole block for each would take longer than
its part. Belongs to one trio run; `read` waits for nothing.
"""

import contextlib
from collections import OrderedDict

import trio

from idcfs.cache.format import EntryFile

MOST_FILES = 2000
"""Files that stay open: of blocks that were evicted, they hold no more than the disk is left free (`RESERVE`)."""


class OpenFiles:
    """Files by key; each is opened when a part of it is first asked for, in time for the next part."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._files: dict[str, EntryFile] = {}
        self._opening: set[str] = set()
        # A disk that hangs holds one thread.
        self._threads = trio.CapacityLimiter(1)

    def note(self, key: str, path: str) -> None:
        """The entry of *key* is in the file *path*."""
        if self._paths.get(key) != path:
            self.forget(key)
        self._paths[key] = path
        self._paths.move_to_end(key)
        if len(self._paths) > MOST_FILES:
            self.forget(next(iter(self._paths)))

    def read(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes *start* to *stop* of the value under *key*, verified, if that takes no waiting."""
        if key not in self._paths:
            return None
        file = self._files.get(key)
        if file is None:
            if key not in self._opening:
                self._opening.add(key)
                self._nursery.start_soon(self._open, key, self._paths[key])
            return None
        data = file.read(start, stop)
        if data is None:
            self.forget(key)
        else:
            self._paths.move_to_end(key)
        return data

    async def _open(self, key: str, path: str) -> None:
        file = None
        with contextlib.suppress(OSError, ValueError):
            file = await trio.to_thread.run_sync(EntryFile, path, key, limiter=self._threads, abandon_on_cancel=True)
        self._opening.discard(key)
        if self._paths.get(key) != path:
            # Another file holds the entry by now.
            if file is not None:
                file.close()
        elif file is None:
            self.forget(key)
        else:
            self._files[key] = file

    def forget(self, key: str) -> None:
        """Close the file of *key*."""
        self._paths.pop(key, None)
        file = self._files.pop(key, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close all files."""
        for key in list(self._paths):
            self.forget(key)
