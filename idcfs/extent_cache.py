"""`ExtentCache`: extents of objects on disk, read and written by a worker process; belongs to one trio run.

Writing is behind: `put` takes a value at once. A cache that fails makes
reads slower, not wrong: `get` then finds nothing and `put` keeps nothing, and `failure` says why.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import trio

from idcfs.arena import Arena
from idcfs.entries import Buffer
from idcfs.errors import CacheUnusable, IdcfsError
from idcfs.worker import Workers

UNWRITTEN_PART = 3 / 16
"""Of the arena, what may wait to be written; beyond it who fetches waits for room."""


class ExtentCache:
    """A cache that is open; `open_extent_cache` makes one."""

    def __init__(self, folder: Path, limit: int, arena: Arena, workers: Workers) -> None:
        self.folder = folder
        self.limit = limit
        self._arena = arena
        self._workers = workers
        self._failures: dict[str, str] = {}
        self._unwritten = 0
        self._most_unwritten = int(arena.size * UNWRITTEN_PART)
        self._written = trio.Event()

    @property
    def failure(self) -> str | None:
        """Why calls fail; a kind of call that fails does so until one of that kind is done."""
        return next(iter(self._failures.values()), None)

    async def get(self, key: str, length: int) -> Buffer | None:
        """The value under *key*, or None; also if it is not of that length. One that does not verify is dropped."""
        buffer = await self._arena.take(length)
        answer = await self._ask({"do": "get", "key": key, "length": length, "at": self._arena.start(buffer)})
        return buffer if answer.get("found") else None

    async def has_any(self, prefix: str) -> bool:
        """Whether something may be kept under a key that starts with *prefix*."""
        # A question that failed is no answer: what is kept must be found where there is no network.
        return bool((await self._ask({"do": "has_any", "prefix": prefix})).get("found", True))

    def put(self, key: str, value: Buffer) -> None:
        """Have *value* kept under *key*, behind; who puts much waits for `room` after it."""
        buffer = self._in_arena(memoryview(value))
        if buffer is None:
            # What is not kept is fetched again.
            return
        self._unwritten += len(buffer)
        request = {"do": "put", "key": key, "length": len(buffer), "at": self._arena.start(buffer)}
        # Its arguments keep the buffer until it is written.
        written = functools.partial(self._wrote, buffer)
        try:
            self._workers.post(request, written)
        except IdcfsError as error:
            written({"failure": str(error)})

    def has_room(self) -> bool:
        """Whether little waits to be written."""
        return self._unwritten <= self._most_unwritten

    async def room(self) -> None:
        """Wait while much waits to be written."""
        while self._unwritten > self._most_unwritten:
            await self._written.wait()

    def _in_arena(self, buffer: memoryview) -> memoryview | None:
        if self._arena.start(buffer) is not None:
            return buffer
        copy = self._arena.take_now(len(buffer))
        if copy is not None:
            copy[:] = buffer
        return copy

    def _wrote(self, buffer: memoryview, answer: dict[str, Any]) -> None:
        self._note("put", answer)
        self._unwritten -= len(buffer)
        self._written.set()
        self._written = trio.Event()

    async def delete(self, keys: Collection[str]) -> None:
        """Drop what waits or is kept under *keys*."""
        await self._ask({"do": "delete", "keys": list(keys)})

    async def finish(self) -> None:
        """Wait until everything is written."""
        while self._unwritten:
            await self._written.wait()

    async def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes they take on disk."""
        answer = await self._ask({"do": "usage"})
        return answer.get("entries", 0), answer.get("bytes", 0)

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._workers.ask(request)
        except IdcfsError as error:
            answer = {"failure": str(error)}
        self._note(request["do"], answer)
        return answer

    def _note(self, kind: str, answer: dict[str, Any]) -> None:
        failure = answer.get("failure") or answer.get("message")
        if failure:
            self._failures[kind] = f"{self.folder}: {failure}"
        else:
            self._failures.pop(kind, None)


@contextlib.asynccontextmanager
async def open_extent_cache(folder: Path, limit: int, arena: Arena) -> AsyncIterator[ExtentCache]:
    """Open the cache in *folder*, created if missing, which may take up to *limit* bytes; values go through *arena*.

    Raises:
        CacheUnusable: the folder cannot be written, or what is in it is no cache.
    """
    options = {"folder": str(folder), "limit": limit}
    async with Workers(1, "idcfs.cache_worker", options, arena, str(folder)) as workers:
        refused = None
        try:
            # Whether it opens.
            await workers.ask({"do": "usage"})
        except CacheUnusable as error:
            refused = error
        except IdcfsError as error:
            refused = CacheUnusable(f"cache folder {error}")
        else:
            yield ExtentCache(folder, limit, arena, workers)
    if refused is not None:
        # Not within the workers' nursery, which would make a group of it.
        raise refused
