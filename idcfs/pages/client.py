"""`PageCache`: the kernel's pages of a mount, filled ahead of readers by a worker process; belongs to one trio run.

A reader who finds a file's bytes there asks for nothing: (m) of the time that a reader takes for a file of 526 kB two
thirds are the kernel's requests for its bytes. What it reads there is not seen here, though, so now and then a page is
left out.
"""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from idcfs.cache.format import Buffer
from idcfs.errors import IdcfsError
from idcfs.processes.arena import Arena
from idcfs.processes.pool import Workers

log = logging.getLogger(__name__)

PAGE = os.sysconf("SC_PAGE_SIZE")

SMALLEST = 2 * PAGE
"""Bytes below which one request is all that it takes anyway."""

WAITING_PART = 1 / 8
"""Of the arena, what waits to be put into the kernel's pages."""


class PageCache:
    """The pages of one mount; does nothing until `start`. `open_page_cache` makes one."""

    def __init__(self, arena: Arena, workers: Workers) -> None:
        self._arena = arena
        self._workers = workers
        self._started = False
        self._waiting = 0

    def start(self, abort: Path) -> None:
        """Begin: the mount is there, and *abort* is the file in which the kernel takes the order to abort it.

        Does nothing where this user may not abort it.
        """
        device = _device()
        if device is None:
            return
        try:
            # By its name, a worker that ends late would abort the next mount, which the kernel gives the same number.
            order = os.open(abort, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            log.debug("the kernel's pages cannot be filled: %s", error)
            return
        self._workers.options |= {"device": device, "abort": order}
        self._workers.descriptors += [device, order]
        self._workers.start()
        self._started = True

    def fill(self, inode: int, offset: int, data: Buffer, all_but_last: bool, filled: Callable[[], None]) -> None:
        """Have *data* put into the pages of *inode* from *offset* on.

        Args:
            inode: the file's.
            offset: bytes, a multiple of `PAGE`.
            data: up to the file's end, or a multiple of `PAGE` long; of the arena but for its reserve, else nothing is
                done.
            all_but_last: leave out the last page.
            filled: called when the kernel has taken it.
        """
        buffer = memoryview(data)
        at = self._arena.start(buffer)
        length = (len(buffer) - 1) // PAGE * PAGE if all_but_last else len(buffer)
        if not self._started or at is None or length < SMALLEST:
            return
        is_too_much = self._waiting + length > self._arena.size * WAITING_PART
        if is_too_much or at + len(buffer) > self._arena.reserve:
            # The worker may be held up; what waits for it must not take the memory that reads need.
            return
        self._waiting += length

        def answered(answer: dict[str, Any]) -> None:
            # The buffer stays until here.
            self._waiting -= length
            if buffer and answer.get("stored"):
                filled()

        try:
            self._workers.post({"inode": inode, "offset": offset, "at": at, "length": length}, answered)
        except IdcfsError as error:
            self._waiting -= length
            log.debug("%s", error)


@contextlib.asynccontextmanager
async def open_page_cache(arena: Arena) -> AsyncIterator[PageCache]:
    """The page cache of a mount that is not there yet; buffers go through *arena*."""
    async with Workers(1, "idcfs.pages.server", {}, arena, "the page cache") as workers:
        yield PageCache(arena, workers)


def _device() -> int | None:
    """The descriptor of the mount's device, which pyfuse3 does not tell."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
    return None
