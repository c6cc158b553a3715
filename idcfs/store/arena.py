"""Memory that two processes share, given out in regions; belongs to one trio run.

One process makes it and gives out regions; the other maps the same descriptor and fills them. What was filled is used
where it is, without a copy, and the region is free again when nobody refers to its buffer any more, in any thread.
"""

import ctypes
import mmap
import os
import weakref
from bisect import insort
from typing import NamedTuple

import trio


class Region(NamedTuple):
    """A part of an arena, in bytes from its start."""

    start: int
    stop: int


class Arena:
    """*size* bytes of shared memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = os.memfd_create("idcfs-arena")
        os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)
        self._token = trio.lowlevel.current_trio_token()
        self._free = [Region(0, size)]
        self._freed = trio.Event()

    async def take(self, length: int) -> Region:
        """A free region, the lowest; waits while there is none.

        Raises:
            ValueError: the arena is not that large.
        """
        if length > self.size:
            raise ValueError(f"{length} bytes do not fit into an arena of {self.size}")
        while True:
            for at, (start, stop) in enumerate(self._free):
                if stop - start >= length:
                    rest = Region(start + length, stop)
                    self._free[at : at + 1] = [rest] if rest.start < rest.stop else []
                    return Region(start, start + length)
            await self._freed.wait()

    def buffer(self, region: Region) -> memoryview:
        """The bytes of a region, which is given back when nobody refers to them any more."""
        array = (ctypes.c_char * (region.stop - region.start)).from_buffer(self._map, region.start)
        weakref.finalize(array, self._finalize, region).atexit = False
        return memoryview(array).cast("B")

    def _finalize(self, region: Region) -> None:
        try:
            self._token.run_sync_soon(self.give_back, region)
        except trio.RunFinishedError:
            return

    def give_back(self, region: Region) -> None:
        """Free a region; nobody may write into it any more."""
        if region.start == region.stop:
            return
        insort(self._free, region)
        at = self._free.index(region)
        # With its neighbours, if they are free too.
        if at + 1 < len(self._free) and self._free[at + 1].start == region.stop:
            self._free[at : at + 2] = [Region(region.start, self._free[at + 1].stop)]
        if at and self._free[at - 1].stop == self._free[at].start:
            self._free[at - 1 : at + 1] = [Region(self._free[at - 1].start, self._free[at].stop)]
        self._freed.set()
        self._freed = trio.Event()
