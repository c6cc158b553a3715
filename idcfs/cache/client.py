"""`Cache`: values on disk by key, read and written by the cache server; belongs to one trio run.

Writing is behind: `put` takes a value at once. A server that does not answer within `ANSWER_SECONDS` is killed, since
its disk may hang, and nothing more is asked until another one has found that the disk answers.
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import trio

from idcfs.cache.messages import Delete, Folders, Found, Get, GetUsage, Has, HasAny, Put, TryDisk, Usage
from idcfs.cache.open_files import OpenFiles
from idcfs.errors import CacheUnusable, IdcfsError, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.child import Child, Program, Reply
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Done, Failed, Message
from idcfs.processes.pool import Pool

ANSWER_SECONDS = 5.0
"""Seconds in which a disk answers that is only busy; a guess."""

TRY_SECONDS = 30.0
"""Seconds that a new server has to find that the disk answers, before another one tries."""

UNWRITTEN_PART = 3 / 16
"""The part of the arena that may wait to be written; beyond it, whoever fetches waits for room."""

FIRST_CAPACITY = 64 << 10
"""Bytes leased for a value of unknown length: a listing of some five hundred instances, as most series have fewer."""

A = TypeVar("A", bound=Message)


class _Server:
    """The process that all caches ask, and whether it answers."""

    def __init__(self, pool: Pool, arena: Arena, nursery: trio.Nursery) -> None:
        self.arena = arena
        self.is_stalled = False
        self._pool = pool
        self._nursery = nursery

    async def ask(self, request: Message, answer: type[A], lease: Lease | None = None) -> A:
        """Return the answer to a request.

        Raises:
            IdcfsError: it could not be met, or no answer came in time.
        """
        reply = Reply()
        self.process().post(request, reply.take, lease)
        with trio.move_on_after(ANSWER_SECONDS):
            await reply.has_come.wait()
        if not reply.has_come.is_set():
            # Which answers the request, too.
            self.give_up()
        return reply.read(answer)

    def process(self) -> Child:
        """Return the process, for one request.

        Raises:
            Unreachable: it cannot be asked.
        """
        if self.is_stalled:
            raise Unreachable("the disk does not answer")
        return self._pool.child()

    async def open(self) -> CacheUnusable | None:
        """Wait until the folders are open, or for as long as a disk may hang; return why one cannot be used."""
        with trio.move_on_after(TRY_SECONDS) as trying:
            try:
                await self._pool.child().ask(TryDisk(), Done)
            except CacheUnusable as error:
                return error
            except IdcfsError as error:
                return CacheUnusable(f"the cache cannot be used: {error}")
        if trying.cancelled_caught:
            self.give_up()
        return None

    def give_up(self) -> None:
        """Take the disk for one that hangs, and ask nothing more until it answers."""
        if not self.is_stalled:
            self.is_stalled = True
            self._nursery.start_soon(self._await_disk)
        # Whoever waits is answered at once.
        self._pool.kill("no answer")

    async def _await_disk(self) -> None:
        while True:
            with trio.move_on_after(TRY_SECONDS), contextlib.suppress(Unreachable):
                # That a folder cannot be used is an answer, too.
                with contextlib.suppress(CacheUnusable):
                    await self._pool.child().ask(TryDisk(), Done)
                self.is_stalled = False
                return
            # A server that cannot be started fails at once.
            await trio.sleep(ANSWER_SECONDS)


class Cache:
    """The values in one folder; `open_caches` makes it. *limit* is in bytes."""

    def __init__(self, name: str, folder: Path, limit: int, server: _Server, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.limit = limit
        self._name = name
        self._server = server
        self._arena = server.arena
        self._failures: dict[str, str] = {}
        self._files = OpenFiles(nursery)
        self._unwritten = 0
        self._most_unwritten = int(self._arena.size * UNWRITTEN_PART)
        self._written = trio.Event()

    @property
    def failure(self) -> str | None:
        """Why calls fail: reading fails until something was read, writing until something was written."""
        if self._server.is_stalled:
            return f"{self.folder}: no answer within {ANSWER_SECONDS:g} seconds; its disk may hang"
        return next(iter(self._failures.values()), None)

    async def get(self, key: str, length: int, in_parts: bool = False) -> Lease | None:
        """The value under *key*, or None, also if it is not *length* bytes long; one that does not verify is dropped.

        The caller releases the lease. With *in_parts*, parts of the value may be asked for by `get_part` later.
        """
        with await self._arena.take(length) as lease:
            found = await self._find(key, lease)
            if found.length != length:
                return None
            if in_parts and found.file is not None:
                self._files.note(key, found.file)
            return lease.hold()

    async def get_bytes(self, key: str) -> bytes | None:
        """The value under *key*, of whatever length up to the arena's size, or None."""
        length: int | None = FIRST_CAPACITY
        while length is not None and length <= self._arena.size:
            with await self._arena.take(length) as lease:
                found = await self._find(key, lease)
                if found.length is not None and found.length <= length:
                    return bytes(lease.view[: found.length])
                length = found.length
        return None

    async def _find(self, key: str, lease: Lease) -> Found:
        request = Get(self._name, key, len(lease), lease.start)
        return await self._ask(request, Found, lease) or Found(None, None)

    async def _ask(self, request: Message, answer: type[A], lease: Lease | None = None) -> A | None:
        try:
            found = await self._server.ask(request, answer, lease)
        except IdcfsError as error:
            self._note("read", error)
            return None
        if not isinstance(found, Usage):
            # Whoever asks for the usage wants to know of failures, too.
            self._note("read", None)
        return found

    def get_part(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes *start* to *stop* of the value under *key*, verified, if that takes no waiting."""
        return self._files.read(key, start, stop)

    async def has_any(self, prefix: str) -> bool:
        """Whether something may be kept under a key that starts with *prefix*."""
        has = await self._ask(HasAny(self._name, prefix), Has)
        # A question that failed is no answer: what is kept must be found where there is no network.
        return has is None or has.any

    def put(self, key: str, lease: Lease) -> None:
        """Have the bytes of *lease* kept under *key*, behind; whoever puts much waits for `room` after it."""

        def answered(message: Message) -> None:
            self._note("write", message.error() if isinstance(message, Failed) else None)
            self._unwritten -= len(lease)
            self._written.set()
            self._written = trio.Event()

        self._unwritten += len(lease)
        try:
            self._server.process().post(Put(self._name, key, len(lease), lease.start), answered, lease)
        except Unreachable as error:
            # What is not kept is fetched again.
            answered(Failed.of(error))

    async def put_bytes(self, key: str, value: bytes) -> None:
        """As `put`, of a copy; waits for memory. A value that is larger than the arena is not kept."""
        if not self._server.is_stalled and len(value) <= self._arena.size:
            with await self._arena.take(len(value)) as lease:
                lease.view[:] = value
                self.put(key, lease)

    def has_room(self) -> bool:
        """Whether little waits to be written."""
        return self._unwritten <= self._most_unwritten

    async def room(self) -> None:
        """Wait while much waits to be written."""
        while not self.has_room():
            with trio.move_on_after(ANSWER_SECONDS) as waiting:
                await self._written.wait()
            if waiting.cancelled_caught:
                self._server.give_up()

    async def delete(self, keys: Collection[str]) -> None:
        """Drop what waits or is kept under *keys*."""
        for key in keys:
            self._files.forget(key)
        # That dropping worked proves little, since a full disk lets it happen; so it is not noted.
        with contextlib.suppress(IdcfsError):
            await self._server.ask(Delete(self._name, list(keys)), Done)

    async def finish(self) -> None:
        """Wait until everything is written."""
        while self._unwritten:
            await self._written.wait()

    async def usage(self) -> Usage:
        """The number of entries, and the bytes that they take on disk; zeros if they are not known."""
        return await self._ask(GetUsage(self._name), Usage) or Usage(0, 0)

    def close(self) -> None:
        """Close what is open."""
        self._files.close()

    def _note(self, kind: str, error: IdcfsError | None) -> None:
        if error is None:
            self._failures.pop(kind, None)
        elif not self._server.is_stalled:
            self._failures[kind] = f"{self.folder}: {error}"


@contextlib.asynccontextmanager
async def open_caches(folders: Mapping[str, tuple[Path, int]], arena: Arena) -> AsyncIterator[dict[str, Cache]]:
    """Open caches, which one server reads and writes; values go through *arena*.

    *folders* has, for each cache's name, its folder, which is created if it is missing, and the bytes that it may take.

    Raises:
        CacheUnusable: a folder cannot be written.
    """
    options = Folders([(name, str(folder), limit) for name, (folder, limit) in folders.items()])
    names = ", ".join(str(folder) for folder, _ in folders.values())
    program = Program("idcfs.cache.server", [Found, Has, Usage], options, arena=arena, subject=names)
    async with Pool(1, program) as pool, trio.open_nursery() as nursery:
        server = _Server(pool, arena, nursery)
        refused = await server.open()
        if refused is None:
            with contextlib.ExitStack() as stack:
                caches = {name: Cache(name, *place, server, nursery) for name, place in folders.items()}
                yield {name: stack.enter_context(contextlib.closing(cache)) for name, cache in caches.items()}
        nursery.cancel_scope.cancel()
    if refused is not None:
        # Raised outside of the nurseries, which would make a group of it.
        raise refused
