"""`PageCache`: the kernel's pages of a mount, filled by a process of its own; belongs to one trio run."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio

from idcfs.errors import IdcfsError
from idcfs.pages.messages import Device, Store, Stored
from idcfs.processes.arena import Arena
from idcfs.processes.child import Program
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Message
from idcfs.processes.pool import Pool

log = logging.getLogger(__name__)

PAGE = os.sysconf("SC_PAGE_SIZE")

SMALLEST = 2 * PAGE
"""Bytes below which one request is all that a reader makes anyway."""

WAITING_PART = 1 / 8
"""The part of the arena that may wait to be put into the kernel's pages."""


class PageCache:
    """The pages of one mount; nothing is stored before `start`. `open_page_cache` makes it."""

    def __init__(self, arena: Arena, nursery: trio.Nursery) -> None:
        self._arena = arena
        self._nursery = nursery
        self._pool: Pool | None = None
        self._waiting = 0

    def start(self, abort: Path) -> None:
        """Begin: the mount is there, and *abort* is the file in which the kernel takes the order to abort it.

        Does nothing where this user may not abort it.
        """
        device = _device()
        if device is None:
            return
        try:
            # By its name, a process that ends late would abort the next mount, which the kernel gives the same number.
            order = os.open(abort, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            log.debug("the kernel's pages cannot be filled: %s", error)
            return
        program = Program(
            "idcfs.pages.server", [Stored], Device(device, order), [device, order], self._arena, "the page cache"
        )
        self._nursery.start_soon(self._run, program)

    async def _run(self, program: Program) -> None:
        async with Pool(1, program) as self._pool:
            self._pool.start()
            await trio.sleep_forever()

    def fill(self, inode: int, offset: int, lease: Lease, all_but_last: bool, filled: Callable[[], None]) -> None:
        """Have the bytes of *lease* put into the pages of *inode* from *offset* on.

        Args:
            inode: the file's.
            offset: bytes, a multiple of `PAGE`.
            lease: bytes up to the file's end, or a multiple of `PAGE` long; nothing is done with those of the arena's
                reserve.
            all_but_last: leave out the last page.
            filled: called when the kernel has taken them.
        """
        length = (len(lease) - 1) // PAGE * PAGE if all_but_last else len(lease)
        if self._pool is None or length < SMALLEST:
            return
        is_too_much = self._waiting + length > self._arena.size * WAITING_PART
        if is_too_much or lease.start + len(lease) > self._arena.reserve:
            # The process may be held up; what waits for it must not take the memory that reads need.
            return
        self._waiting += length

        def answered(message: Message) -> None:
            self._waiting -= length
            if isinstance(message, Stored) and message.is_taken:
                filled()

        try:
            self._pool.child().post(Store(inode, offset, lease.start, length), answered, lease)
        except IdcfsError as error:
            self._waiting -= length
            log.debug("%s", error)


@contextlib.asynccontextmanager
async def open_page_cache(arena: Arena) -> AsyncIterator[PageCache]:
    """The page cache of a mount that is not there yet; bytes go through *arena*."""
    async with trio.open_nursery() as nursery:
        yield PageCache(arena, nursery)
        nursery.cancel_scope.cancel()


def _device() -> int | None:
    """The descriptor of the mount's device, which pyfuse3 does not expose."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
    return None
