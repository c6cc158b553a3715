"""Memory that processes share, given out in leases; belongs to one trio run.

This process leases regions of it; the others map the same descriptor. What a child has filled is used where it is: on
many virtual machines memory that is touched for the first time costs more than the network.
"""

import mmap
import os
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, Self

import trio

from idcfs.processes.lease import Lease

RESERVED_PART = 1 / 16
"""The part of an arena that is left to reads from the disk, however many readers wait for a network: room for four of
the largest extents at least. Measured: with an eighth, every tenth file of ten series read at once found no room."""

KEPT_PART = 3 / 8
"""The part of an arena that extents may take which are kept in case they are read again: a full window of read-ahead,
and what several readers are at."""


class Region(NamedTuple):
    """A part of an arena, in bytes from its start."""

    start: int
    stop: int


class Arena:
    """*size* bytes of shared memory; a context manager, at whose end no process can be started with it any more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reserve = size - int(size * RESERVED_PART)
        """Where the part begins in which nothing may be that waits for a network."""
        self.descriptor = os.memfd_create("idcfs-arena")
        os.ftruncate(self.descriptor, size)
        self.kept = Kept(int(size * KEPT_PART), self._wake)
        self._view = memoryview(mmap.mmap(self.descriptor, size))
        self._free = [Region(0, size)]
        self._waiting = 0
        self._freed = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        os.close(self.descriptor)

    @property
    def leased(self) -> int:
        """Bytes that are not free."""
        return self.size - sum(region.stop - region.start for region in self._free)

    async def take(self, length: int, stop: int | None = None) -> Lease:
        """Lease the lowest free region of *length* bytes, before *stop* if that is given; waits while there is none.

        Raises:
            ValueError: the arena is not that large.
        """
        most = self.size if stop is None else stop
        if length > most:
            raise ValueError(f"{length} bytes do not fit into {most} of an arena")
        self._waiting += 1
        try:
            while (lease := self.take_now(length, stop)) is None:
                if not self.kept.forget_oldest():
                    await self._freed.wait()
            return lease
        finally:
            self._waiting -= 1

    def take_now(self, length: int, stop: int | None = None) -> Lease | None:
        """As `take`, but None if there is no such region now."""
        for at, free in enumerate(self._free):
            taken, rest = Region(free.start, free.start + length), Region(free.start + length, free.stop)
            if stop is not None and taken.stop > stop:
                return None
            if taken.stop <= free.stop:
                self._free[at : at + 1] = [rest] if rest.start < rest.stop else []
                return Lease(taken.start, self._view[taken.start : taken.stop], partial(self._give_back, taken))
        return None

    def _wake(self) -> None:
        if self._waiting:
            self._freed.set()
            self._freed = trio.Event()

    def _give_back(self, region: Region) -> None:
        if region.start == region.stop:
            # Within a larger free region, an empty one would keep its neighbours apart.
            return
        insort(self._free, region)
        at = self._free.index(region)
        # A free region and its free neighbours become one.
        if at + 1 < len(self._free) and self._free[at + 1].start == region.stop:
            self._free[at : at + 2] = [Region(region.start, self._free[at + 1].stop)]
        if at and self._free[at - 1].stop == self._free[at].start:
            self._free[at - 1 : at + 1] = [Region(self._free[at - 1].start, self._free[at].stop)]
        self._wake()


class Kept:
    """Leases that are held only in case they are useful again, by key, up to *limit* bytes.

    The least recently used are let go of first, also when somebody waits for memory. *added* is called after each
    addition, because a waiting taker may have what was added.
    """

    def __init__(self, limit: int, added: Callable[[], None]) -> None:
        self._limit = limit
        self._added = added
        self._leases: OrderedDict[Hashable, Lease] = OrderedDict()
        self._size = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._leases

    def get(self, key: Hashable) -> Lease | None:
        """The lease under *key*, which the caller holds too from now on."""
        if key not in self._leases:
            return None
        self._leases.move_to_end(key)
        return self._leases[key].hold()

    def add(self, key: Hashable, lease: Lease) -> None:
        """Hold *lease* under *key*."""
        self.forget(key)
        self._leases[key] = lease.hold()
        self._size += len(lease)
        while self._size > self._limit:
            self.forget_oldest()
        self._added()

    def forget(self, key: Hashable) -> None:
        """Let go of what is under *key*, if anything is."""
        lease = self._leases.pop(key, None)
        if lease is not None:
            self._size -= len(lease)
            lease.release()

    def forget_oldest(self) -> bool:
        """Let go of the lease that was not used for longest; returns whether there was one."""
        if not self._leases:
            return False
        self.forget(next(iter(self._leases)))
        return True
