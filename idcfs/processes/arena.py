"""Memory that processes share, given out in regions; belongs to one trio run.

One process makes it and gives out regions; the others map the same descriptor, and fill or read them. What was filled
is used where it is, without a copy, and a region is free again when nobody refers to its buffer any more, in any
thread.
"""

import contextlib
import ctypes
import mmap
import os
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import trio

RESERVED_PART = 1 / 16
"""Of an arena, what is left to reads from the disk however many wait for a network: room for four of the largest
extents at least. (m) With an eighth, every tenth file of ten series read at once found no room at first."""


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
        self._map = mmap.mmap(self.descriptor, size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._token = trio.lowlevel.current_trio_token()
        self._free = [Region(0, size)]
        self.reclaim: Callable[[], bool] = lambda: False
        """Lets go of a buffer that is kept only because it may be useful; whether there was one. Whoever keeps one
        more calls `reclaimable`."""
        self._returned: deque[Region] = deque()
        self._waiting = 0
        self._freed = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    async def take(self, length: int, stop: int | None = None) -> memoryview:
        """*length* bytes that are free, the lowest, and before *stop* if that is given; waits while there are none.

        Raises:
            ValueError: the arena is not that large.
        """
        most = self.size if stop is None else stop
        if length > most:
            raise ValueError(f"{length} bytes do not fit into {most} of an arena")
        self._waiting += 1
        try:
            while True:
                buffer = self.take_now(length, stop)
                if buffer is not None:
                    return buffer
                if not self.reclaim():
                    await self._freed.wait()
        finally:
            self._waiting -= 1

    def take_now(self, length: int, stop: int | None = None) -> memoryview | None:
        """As `take`, if there are such bytes."""
        while self._returned:
            self._give_back(self._returned.popleft())
        for at, free in enumerate(self._free):
            taken, rest = Region(free.start, free.start + length), Region(free.start + length, free.stop)
            if stop is not None and taken.stop > stop:
                return None
            if taken.stop <= free.stop:
                self._free[at : at + 1] = [rest] if rest.start < rest.stop else []
                return self._buffer(taken)
        return None

    def reclaimable(self) -> None:
        """There is something new that `reclaim` may let go of."""
        if self._waiting:
            self._wake()

    def start(self, buffer: memoryview) -> int | None:
        """Where a buffer begins, from the arena's start; None if it is not of this arena."""
        if not isinstance(buffer.obj, ctypes.Array):
            return None
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) - self._address if len(buffer) else 0
        return start if 0 <= start <= self.size - len(buffer) else None

    def _buffer(self, region: Region) -> memoryview:
        array = (ctypes.c_char * (region.stop - region.start)).from_buffer(self._map, region.start)
        weakref.finalize(array, self._finalize, region).atexit = False
        return memoryview(array).cast("B")

    def _finalize(self, region: Region) -> None:
        # In whatever thread dropped it, and in the middle of anything.
        self._returned.append(region)
        if self._waiting:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._freed.set()
        self._freed = trio.Event()

    def _give_back(self, region: Region) -> None:
        if region.start == region.stop:
            return
        insort(self._free, region)
        at = self._free.index(region)
        # With its neighbours, if they are free too.
        if at + 1 < len(self._free) and self._free[at + 1].start == region.stop:
            self._free[at : at + 2] = [Region(region.start, self._free[at + 1].stop)]
        if at and self._free[at - 1].stop == self._free[at].start:
            self._free[at - 1 : at + 1] = [Region(self._free[at - 1].start, self._free[at].stop)]
