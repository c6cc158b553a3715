"""Entries on disk, from trio: each call runs in a thread; shared by mounts, kept between them.

A cache that fails makes reads slower, not wrong: `get` then finds nothing and `put` keeps nothing, and
`Cache.failure` says why. No call waits for the network, or longer than `ANSWER_SECONDS` for the disk.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from idcfs.cache.entries import Entries, reason_of
from idcfs.cache.format import Buffer
from idcfs.cache.health import ANSWER_SECONDS, CacheHealth

THREADS = 8
"""Threads for one cache's calls: reads wait for the disk, and a few writes at a time are enough."""

T = TypeVar("T")


class Cache:
    """A cache that is open; `open_cache` makes one."""

    def __init__(self, entries: Entries, limit: int, nursery: trio.Nursery) -> None:
        self.folder = entries.folder
        self.limit = limit
        self._entries = entries
        self._health = CacheHealth(entries.folder)
        self._nursery = nursery
        self._threads = trio.CapacityLimiter(THREADS)

    @property
    def failure(self) -> str | None:
        """Why calls fail; a kind of call that fails does so until one of that kind is done."""
        return self._health.failure

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
        if self._health.is_stalled:
            return None
        # Not ended before by a caller who gives up: what is written must not go on behind.
        with trio.move_on_after(ANSWER_SECONDS, shield=True):
            try:
                found = await trio.to_thread.run_sync(call, *arguments, limiter=self._threads, abandon_on_cancel=True)
            except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
                self._health.note(call.__name__, reason_of(error))
                return None
            self._health.note(call.__name__, None)
            return found
        if not self._health.is_stalled:
            self._health.is_stalled = True
            self._nursery.start_soon(self._await_disk)
        return None

    async def _await_disk(self) -> None:
        await trio.to_thread.run_sync(self._entries.try_disk, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
        self._health.is_stalled = False


@contextlib.asynccontextmanager
async def open_cache(folder: Path, limit: int) -> AsyncIterator[Cache]:
    """Open the cache in *folder*, created if missing, which may take up to *limit* bytes.

    Raises:
        CacheUnusable: the folder cannot be written.
    """
    entries = Entries(folder, limit)
    await trio.to_thread.run_sync(entries.open)
    async with trio.open_nursery() as nursery:
        try:
            yield Cache(entries, limit, nursery)
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(ANSWER_SECONDS, shield=True):
                await trio.to_thread.run_sync(entries.close, abandon_on_cancel=True)
