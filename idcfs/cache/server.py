"""A process that reads and writes a cache folder, so that checksums, files and SQLite stay off the file system's back.

    python -m idcfs.cache.server OPTIONS

OPTIONS is JSON: `folder`, `limit`, `swept` (cache folders in which files that nobody knows are looked for, some time
after the start and then every hour), and the descriptors of a socket and of an arena (see `Arena`). Requests and
answers are lines of JSON on the socket; values are in the arena. A request has an `id` and

    get      key, length, at        answered with `found`; the value is then in the arena at `at`, and in the entry of
                                    the file that `file` names, if it has one
    put      key, length, at        answered when the value is kept, or cannot be
    delete   keys                   done after every put that came before it
    has_any  prefix                 answered with `found`
    usage                           answered with `entries` and `bytes`
    try                             answered when the disk answers, with `error` if the folder cannot be used

An answer that has `failure` tells why the cache could not do it. Puts are done in the order in which they come, as
many in one transaction as wait, by the thread that takes the requests: (m) with one of their own, most of the time
went into passing Python's lock. Reads go beside them in threads. After the end of the socket, what was asked to be
kept is still kept.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from idcfs.cache import upkeep
from idcfs.cache.entries import Entries, reason_of
from idcfs.errors import CacheUnusable

_RECEIVED_BYTES = 64 << 10

READERS = 3
"""Threads that read: as many as keep a disk busy while one checks what came."""

BATCH_BYTES = 8 << 20
"""Bytes written in one transaction: some 10 ms, for which other writers wait."""

NICENESS = 10

SWEEP_AFTER = 10.0
"""Seconds after the start: what is done first is what somebody waits for."""

SWEEP_PAUSE = 0.02
"""Seconds between two folders of files: a sweep of a large cache takes some seconds, and little of any of them."""

Request = dict[str, Any]


class _Wrong(Exception):
    """A value that is not as long as was asked for."""


class CacheWorker:
    """Answers requests about *entries*; values are in *arena*, answers go to *connection*."""

    def __init__(self, entries: Entries, arena: memoryview, connection: socket.socket) -> None:
        self._entries = entries
        self._arena = arena
        self._connection = connection
        self._received = b""
        self._sending = threading.Lock()
        self._writes: deque[Request] = deque()
        self._reads: dict[str, Callable[[Request], Request]] = {
            "get": self._get,
            "has_any": lambda request: {"found": self._entries.has_any(request["prefix"])},
            "usage": lambda request: dict(zip(("entries", "bytes"), self._entries.usage(), strict=True)),
            "try": self._try,
        }

    def serve(self) -> None:
        """Answer until the other side is gone and everything is written."""
        open_still = True
        with ThreadPoolExecutor(READERS) as readers:
            while open_still or self._writes:
                if open_still and (not self._writes or select.select([self._connection], [], [], 0)[0]):
                    open_still = self._receive(readers)
                elif self._writes:
                    self._write()

    def _receive(self, readers: ThreadPoolExecutor) -> bool:
        try:
            chunk = self._connection.recv(_RECEIVED_BYTES)
        except ConnectionError:
            # The other side has ended, and left answers behind.
            chunk = b""
        *lines, self._received = (self._received + chunk).split(b"\n")
        for request in map(json.loads, lines):
            if request.get("do") in self._reads:
                readers.submit(self._answer, request, self._reads[request["do"]])
            elif "do" in request:
                self._writes.append(request)
        return bool(chunk)

    def _write(self) -> None:
        request = self._writes.popleft()
        if request["do"] == "delete":
            self._answer(request, self._delete)
            return
        batch, size = [request], request["length"]
        while self._writes and size < BATCH_BYTES and self._writes[0]["do"] == "put":
            batch.append(self._writes.popleft())
            size += batch[-1]["length"]
        self._put(batch)

    def _answer(self, request: Request, work: Callable[[Request], Request]) -> None:
        try:
            answer = work(request)
        except Exception as error:  # A damaged database makes diskcache stumble in ways of all kinds.
            answer = {"failure": reason_of(error)}
        self._send([{"id": request["id"], **answer}])

    def _get(self, request: Request) -> Request:
        def place(length: int) -> memoryview:
            if length != request["length"]:
                raise _Wrong
            return self._arena[request["at"] : request["at"] + length]

        try:
            found = self._entries.get_with_file(request["key"], place)
        except _Wrong:
            found = None
        return {"found": False} if found is None else {"found": True, "file": found[1]}

    def _try(self, request: Request) -> Request:
        try:
            self._entries.open()
        except CacheUnusable as error:
            return {"error": "CacheUnusable", "message": str(error)}
        self._entries.try_disk()
        return {}

    def _put(self, batch: list[Request]) -> None:
        values = [(request["key"], self._arena[request["at"] : request["at"] + request["length"]]) for request in batch]
        answer: Request = {}
        try:
            self._entries.put_many(values)
        except Exception as error:  # As above.
            answer = {"failure": reason_of(error)}
        self._send([{"id": request["id"], **answer} for request in batch])

    def _delete(self, request: Request) -> Request:
        for key in request["keys"]:
            self._entries.delete(key)
        return {}

    def _send(self, answers: list[Request]) -> None:
        text = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
        try:
            with self._sending:
                self._connection.sendall(text)
        except OSError:
            # Nobody is left to hear it.
            return


def _sweep(folders: dict[Path, float], entries: Entries, wait: float) -> None:
    """Remove what processes that were killed have left, again when the database was replaced, and every hour.

    Args:
        folders: cache folders, and until when what is there was written by processes that are gone.
        entries: tells when its database was replaced.
        wait: seconds, each time.
    """
    while True:
        time.sleep(wait)
        for folder, before in folders.items():
            now = time.time()
            # A clock may have been set back since.
            before = max(min(before, now), now - upkeep.ORPHAN_SECONDS)
            # Who is asked for entries finds out what is wrong with the folder, and says so.
            with contextlib.suppress(OSError, sqlite3.Error, UnicodeDecodeError):
                upkeep.sweep(folder, before, lambda: time.sleep(SWEEP_PAUSE))
        entries.replaced.wait(upkeep.ORPHAN_SECONDS)
        entries.replaced.clear()


def main() -> None:
    """Run as a process."""
    # Both are for the file system, at whose end there may be something left to write.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What is being read goes before what is to be kept.
    os.nice(NICENESS)
    options = json.loads(sys.argv[1])
    connection = socket.socket(fileno=options["socket"])
    arena = memoryview(mmap.mmap(options["arena"], options["arena_size"]))
    # Before this process, or who waits for its first answer, has them open.
    swept = {Path(folder): upkeep.abandoned_before(Path(folder)) for folder in options["swept"]}
    entries = Entries(Path(options["folder"]), options["limit"])
    sweeping = swept, entries, SWEEP_AFTER
    threading.Thread(target=_sweep, args=sweeping, daemon=True).start()
    CacheWorker(entries, arena, connection).serve()
    entries.close()
    # A thread of diskcache's may be left.
    os._exit(0)


if __name__ == "__main__":
    main()
