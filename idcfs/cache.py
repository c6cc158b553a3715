"""Entries on disk, from trio: each call runs in a thread; shared by mounts, kept between them.

A cache that fails makes reads slower, not wrong: `get` then finds nothing and `put` keeps nothing, and
`Cache.failure` says why. No call waits for the network.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from idcfs.entries import Buffer, Entries

THREADS = 8
"""Threads for one cache's calls: reads wait for the disk, and a few writes at a time are enough."""

T = TypeVar("T")


class Cache:
    """A cache that is open; `open_cache` makes one."""

    def __init__(self, entries: Entries, limit: int) -> None:
        self.folder = entries.folder
        self.limit = limit
        self._entries = entries
        self._failures: dict[str, str] = {}
        self._threads = trio.CapacityLimiter(THREADS)

    @property
    def failure(self) -> str | None:
        """Why calls fail; a kind of call that fails does so until one of that kind is done."""
        return next(iter(self._failures.values()), None)

    async def get(self, key: str) -> memoryview | None:
        """The value under *key*, or None. An entry that does not verify is dropped."""
        return await self._run(self._entries.get, key)

    async def put(self, key: str, value: Buffer) -> None:
        """Keep *value* under *key*, unless the disk is nearly full."""
        await self.put_many([(key, value)])

    async def put_many(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        """Keep values under keys, all of them or none."""
        await self._run(self._entries.put_many, entries)

    async def delete(self, key: str) -> None:
        """Drop the entry under *key*, if there is one."""
        await self._run(self._entries.delete, key)

    async def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes they take on disk."""
        return await self._run(self._entries.usage) or (0, 0)

    async def _run(self, call: Callable[..., T | None], *arguments: Any) -> T | None:
        try:
            found = await trio.to_thread.run_sync(call, *arguments, limiter=self._threads)
        except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
            self._failures[call.__name__] = f"{self.folder}: {str(error) or type(error).__name__}"
            return None
        self._failures.pop(call.__name__, None)
        return found


@contextlib.asynccontextmanager
async def open_cache(folder: Path, limit: int) -> AsyncIterator[Cache]:
    """Open the cache in *folder*, created if missing, which may take up to *limit* bytes.

    Raises:
        CacheUnusable: the folder cannot be written, or what is in it is no cache.
    """
    entries = await trio.to_thread.run_sync(Entries, folder, limit)
    try:
        yield Cache(entries, limit)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(entries.close)
