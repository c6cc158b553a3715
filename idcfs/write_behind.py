"""Keeping what was fetched, behind the replies: entries wait in memory and go to the cache many at a time.

One at a time is what SQLite does best: (m) writers beside each other took five times as long as one that writes the
same entries in batches, most of it waiting for the database's lock and for Python's. Belongs to the event loop.
"""

from collections import deque
from collections.abc import Collection

import trio

from idcfs.cache import Buffer, Cache

UNWRITTEN_BYTES = 32 << 20
"""Bytes that may wait; beyond them a fetch waits for room."""

BATCH_BYTES = 8 << 20
"""Bytes written in one transaction: some 10 ms, for which other writers wait."""


class WriteBehind:
    """Writes to *cache* from a task in *nursery*."""

    def __init__(self, cache: Cache, nursery: trio.Nursery) -> None:
        self._cache = cache
        self._waiting: deque[tuple[str, Buffer]] = deque()
        self._unwritten = 0
        self._writing = False
        self._more = trio.Event()
        self._written = trio.Event()
        nursery.start_soon(self._write)

    async def put(self, key: str, value: Buffer) -> None:
        """Have *value* kept under *key*; waits only while too much waits already, and takes it at once."""
        self._waiting.append((key, value))
        self._unwritten += len(value)
        self._more.set()
        while self._unwritten > UNWRITTEN_BYTES:
            await self._written.wait()

    async def delete(self, keys: Collection[str]) -> None:
        """Drop what waits or is kept under *keys*."""
        kept = deque((key, value) for key, value in self._waiting if key not in keys)
        self._unwritten -= sum(len(value) for _, value in self._waiting) - sum(len(value) for _, value in kept)
        self._waiting = kept
        if self._writing:
            # It may be writing them now.
            await self._written.wait()
        for key in keys:
            await self._cache.delete(key)

    async def finish(self) -> None:
        """Wait until everything is written."""
        while self._unwritten:
            await self._written.wait()

    async def _write(self) -> None:
        while True:
            await self._more.wait()
            batch: list[tuple[str, Buffer]] = []
            size = 0
            while self._waiting and size < BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += len(batch[-1][1])
            if not self._waiting:
                self._more = trio.Event()
            if batch:
                self._writing = True
                await self._cache.put_many(batch)
                self._writing = False
            self._unwritten -= size
            self._written.set()
            self._written = trio.Event()
