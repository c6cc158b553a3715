"""`ExtentCache`: extents of objects on disk, read and written by a worker process; belongs to one trio run.

Writing is behind: `put` takes a value at once. A cache that fails makes reads slower, not wrong: `get` then finds
nothing and `put` keeps nothing, and `failure` says why. A worker that does not answer is ended, and nothing more is
asked until another one has found out that the disk answers.
"""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import trio

from idcfs.cache.format import Buffer, EntryFile
from idcfs.cache.health import ANSWER_SECONDS, CacheHealth
from idcfs.errors import CacheUnusable, IdcfsError, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.pool import Workers

UNWRITTEN_PART = 3 / 16
"""Of the arena, what may wait to be written; beyond it who fetches waits for room."""


TRY_SECONDS = 30.0
"""Seconds that a new worker has to hear from the disk, before another one tries."""

MOST_FILES = 2000
"""Files that stay open: of blocks that were thrown out, they hold no more than the disk is left free (`RESERVE`)."""


class _Files:
    """The files of entries that were read last; each is opened when a part of it is asked for, for the next part."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._files: dict[str, EntryFile] = {}
        self._opening: set[str] = set()
        # A disk that hangs holds one thread.
        self._threads = trio.CapacityLimiter(1)

    def note(self, key: str, path: str) -> None:
        if self._paths.get(key) != path:
            self.forget(key)
        self._paths[key] = path
        self._paths.move_to_end(key)
        if len(self._paths) > MOST_FILES:
            self.forget(next(iter(self._paths)))

    def read(self, key: str, start: int, stop: int) -> Buffer | None:
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
            # Another one is the key's by now.
            if file is not None:
                file.close()
        elif file is None:
            self.forget(key)
        else:
            self._files[key] = file

    def forget(self, key: str) -> None:
        self._paths.pop(key, None)
        file = self._files.pop(key, None)
        if file is not None:
            file.close()

    def forget_all(self) -> None:
        for key in list(self._paths):
            self.forget(key)


class ExtentCache:
    """A cache that is open; `open_extent_cache` makes one."""

    def __init__(self, folder: Path, limit: int, arena: Arena, workers: Workers, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.limit = limit
        self._arena = arena
        self._workers = workers
        self._nursery = nursery
        self._health = CacheHealth(folder)
        self._unwritten = 0
        self._most_unwritten = int(arena.size * UNWRITTEN_PART)
        self._written = trio.Event()
        self._files = _Files(nursery)

    @property
    def failure(self) -> str | None:
        """Why calls fail; a kind of call that fails does so until one of that kind is done."""
        return self._health.failure

    async def get(self, key: str, length: int, in_parts: bool = False) -> Buffer | None:
        """The value under *key*, or None; also if it is not of that length. One that does not verify is dropped.

        Args:
            key: the extent's.
            length: bytes that it has.
            in_parts: whether parts of it may be asked for by `get_part` later.
        """
        buffer = await self._arena.take(length)
        request = {"do": "get", "key": key, "length": length, "at": self._arena.start(buffer)}
        answer = await self._ask(request, buffer)
        if not answer.get("found"):
            return None
        if in_parts and answer["file"] is not None:
            self._files.note(key, answer["file"])
        return buffer

    def get_part(self, key: str, start: int, stop: int) -> Buffer | None:
        """Bytes *start* to *stop* of the value under *key*, verified, if that takes no waiting."""
        return self._files.read(key, start, stop)

    async def has_any(self, prefix: str) -> bool:
        """Whether something may be kept under a key that starts with *prefix*."""
        # A question that failed is no answer: what is kept must be found where there is no network.
        return bool((await self._ask({"do": "has_any", "prefix": prefix})).get("found", True))

    def put(self, key: str, value: Buffer) -> None:
        """Have *value* kept under *key*, behind; who puts much waits for `room` after it."""
        buffer = None if self._health.is_stalled else self._in_arena(memoryview(value))
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
            with trio.move_on_after(ANSWER_SECONDS) as waiting:
                await self._written.wait()
            if waiting.cancelled_caught:
                self.give_up()

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

    def close(self) -> None:
        """Close what is open."""
        self._files.forget_all()

    async def delete(self, keys: Collection[str]) -> None:
        """Drop what waits or is kept under *keys*."""
        for key in keys:
            self._files.forget(key)
        await self._ask({"do": "delete", "keys": list(keys)})

    async def finish(self) -> None:
        """Wait until everything is written."""
        while self._unwritten:
            await self._written.wait()

    async def usage(self) -> tuple[int, int]:
        """The number of entries, and the bytes they take on disk."""
        answer = await self._ask({"do": "usage"})
        return answer.get("entries", 0), answer.get("bytes", 0)

    async def _ask(self, request: dict[str, Any], buffer: Buffer | None = None) -> dict[str, Any]:
        """The answer to a request; *buffer* is kept until it has come, also if its caller is gone by then."""
        if self._health.is_stalled:
            return {}
        answer: dict[str, Any] = {}
        has_come = trio.Event()

        def answered(found: dict[str, Any], _kept: Buffer | None = buffer) -> None:
            answer.update(found)
            has_come.set()

        try:
            self._workers.post(request, answered)
        except IdcfsError as error:
            answered({"failure": str(error)})
        with trio.move_on_after(ANSWER_SECONDS):
            await has_come.wait()
        if not has_come.is_set():
            self.give_up()
        self._note(request["do"], answer)
        return answer

    def _note(self, kind: str, answer: dict[str, Any]) -> None:
        self._health.note(kind, answer.get("failure") or answer.get("message"))

    def give_up(self) -> None:
        """Treat the disk as one that hangs, and ask nothing more until it answers."""
        if not self._health.is_stalled:
            self._health.is_stalled = True
            self._nursery.start_soon(self._await_disk)
        # Whoever waits hears of it at once.
        self._workers.end_all("no answer")

    async def _await_disk(self) -> None:
        while True:
            with trio.move_on_after(TRY_SECONDS), contextlib.suppress(Unreachable):
                with contextlib.suppress(CacheUnusable):
                    # Which is an answer, too.
                    await self._workers.ask({"do": "try"})
                self._health.is_stalled = False
                return
            self._workers.end_all("no answer")
            # One that cannot be started fails at once.
            await trio.sleep(ANSWER_SECONDS)


@contextlib.asynccontextmanager
async def open_extent_cache(
    folder: Path, limit: int, arena: Arena, swept: Sequence[Path] = ()
) -> AsyncIterator[ExtentCache]:
    """Open a cache.

    Args:
        folder: where it is; created if missing.
        limit: bytes that it may take.
        arena: where values go through.
        swept: cache folders, of others too, in which the worker looks for what killed processes have left.

    Raises:
        CacheUnusable: the folder cannot be written.
    """
    options = {"folder": str(folder), "limit": limit, "swept": [str(each) for each in swept]}
    async with Workers(1, "idcfs.cache.server", options, arena, str(folder)) as workers, trio.open_nursery() as nursery:
        refused = None
        cache = ExtentCache(folder, limit, arena, workers, nursery)
        try:
            # Whether it opens.
            with trio.move_on_after(TRY_SECONDS) as opening:
                await workers.ask({"do": "try"})
            if opening.cancelled_caught:
                cache.give_up()
        except CacheUnusable as error:
            refused = error
        except IdcfsError as error:
            refused = CacheUnusable(f"cache folder {error}")
        else:
            try:
                yield cache
            finally:
                cache.close()
        nursery.cancel_scope.cancel()
    if refused is not None:
        # Not within the workers' nursery, which would make a group of it.
        raise refused
