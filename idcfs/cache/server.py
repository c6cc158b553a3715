"""A process that reads and writes cache folders, so that checksums, files and SQLite do not hold up the event loop.

It answers the messages of `idcfs.cache.messages`. Puts are done in the order in which they come, as many in one
transaction as wait, by the thread that takes the requests. Measured: with a thread of their own, most of the time went
into passing Python's lock. Reads go beside them in threads. After the end of the socket, what was asked to be kept is
still kept. Some time after the start, and then every hour, files that no database knows are removed.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from idcfs.cache import upkeep
from idcfs.cache.entries import Entries, reason_of
from idcfs.cache.messages import Delete, Folders, Found, Get, GetUsage, Has, HasAny, Put, TryDisk, Usage
from idcfs.cache.tables import ERRORS
from idcfs.errors import CacheUnusable
from idcfs.processes.messages import Done, Failed, Message
from idcfs.processes.server import Connection, shared_arena

READERS = 3
"""Threads that read: as many as keep a disk busy while one checks what came."""

BATCH_BYTES = 8 << 20
"""Bytes written in one transaction: some 10 ms, for which other writers wait."""

NICENESS = 10

SWEEP_AFTER = 10.0
"""Seconds between the start and the first sweep, because the first requests are waited for."""

SWEEP_PAUSE = 0.02
"""Seconds between two folders of files: a sweep of a large cache takes some seconds, and little of any of them."""

T = TypeVar("T")


class _TooLong(Exception):
    """A value does not fit into the space for it; the argument is its length."""


class Server:
    """Answers requests about *caches*; values are in *arena*."""

    def __init__(self, caches: Mapping[str, Entries], arena: memoryview, connection: Connection) -> None:
        self._caches = caches
        self._arena = arena
        self._connection = connection
        self._writes: deque[tuple[int, Put | Delete]] = deque()

    def serve(self) -> None:
        """Answer until the other side is gone and everything is written."""
        is_open = True
        with ThreadPoolExecutor(READERS) as readers:
            while is_open or self._writes:
                if is_open and (not self._writes or select.select([self._connection], [], [], 0)[0]):
                    is_open = self._receive(readers)
                elif self._writes:
                    self._write()

    def _receive(self, readers: ThreadPoolExecutor) -> bool:
        envelopes = self._connection.receive()
        for number, _, request in envelopes or ():
            if isinstance(request, Put | Delete):
                self._writes.append((number, request))
            elif isinstance(request, Get | HasAny | GetUsage | TryDisk):
                readers.submit(self._answer, [number], self._meet, request)
        return envelopes is not None

    def _write(self) -> None:
        number, request = self._writes.popleft()
        if isinstance(request, Delete):
            self._answer([number], self._meet, request)
            return
        batch, size = {number: request}, request.length
        while self._writes and size < BATCH_BYTES:
            number, following = self._writes[0]
            if not isinstance(following, Put) or following.cache != request.cache:
                break
            self._writes.popleft()
            batch[number] = following
            size += following.length
        self._answer(batch, self._put, batch.values())

    def _answer(self, numbers: Iterable[int], work: Callable[[T], Message], asked: T) -> None:
        try:
            answer = work(asked)
        except CacheUnusable as error:
            answer = Failed.of(error)
        except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
            answer = Failed.of(CacheUnusable(reason_of(error)))
        for number in numbers:
            self._connection.add(number, answer)
        self._connection.flush()

    def _meet(self, request: Message) -> Message:
        match request:
            case Get():
                return self._get(request)
            case HasAny(cache, prefix):
                return Has(self._caches[cache].has_any(prefix))
            case GetUsage(cache):
                return Usage(*self._caches[cache].usage())
            case Delete(cache, keys):
                for key in keys:
                    self._caches[cache].delete(key)
            case TryDisk():
                for entries in self._caches.values():
                    entries.open()
        return Done()

    def _get(self, request: Get) -> Found:
        def place(length: int) -> memoryview:
            if length > request.capacity:
                raise _TooLong(length)
            return self._arena[request.at : request.at + length]

        try:
            found = self._caches[request.cache].get(request.key, place)
        except _TooLong as error:
            return Found(error.args[0], None)
        return Found(None, None) if found is None else Found(len(found[0]), found[1])

    def _put(self, batch: Collection[Put]) -> Done:
        values = [(request.key, self._arena[request.at : request.at + request.length]) for request in batch]
        self._caches[next(iter(batch)).cache].put_many(values)
        return Done()


def _sweep(entries: Entries, before: float) -> None:
    """Remove what killed processes have left, again when the database was replaced, and every hour.

    Files that were written *before* that time are of processes that are gone.
    """
    while True:
        time.sleep(SWEEP_AFTER)
        now = time.time()
        # A clock may have been set back since.
        before = max(min(before, now), now - upkeep.ORPHAN_SECONDS)
        # Whoever asks for entries finds out what is wrong with the folder, and reports it.
        with contextlib.suppress(OSError, *ERRORS):
            upkeep.sweep(entries.folder, before, lambda: time.sleep(SWEEP_PAUSE))
        entries.replaced.wait(upkeep.ORPHAN_SECONDS)
        entries.replaced.clear()


def main() -> None:
    """Run as a process."""
    # Both are for the file system, at whose end there may be something left to write.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What is being read goes before what is to be kept.
    os.nice(NICENESS)
    connection = Connection.of_this_process([Folders, Get, Put, Delete, HasAny, GetUsage, TryDisk])
    _, options = connection.first(Folders)
    # Found out before this process, or whoever waits for its first answer, has the folders open.
    before = [upkeep.abandoned_before(Path(folder)) for _, folder, _ in options.caches]
    caches = {name: Entries(Path(folder), limit) for name, folder, limit in options.caches}
    for swept in zip(caches.values(), before, strict=True):
        threading.Thread(target=_sweep, args=swept, daemon=True).start()
    Server(caches, shared_arena(), connection).serve()
    for entries in caches.values():
        entries.close()
    # A thread of diskcache's may be left.
    os._exit(0)


if __name__ == "__main__":
    main()
