"""What to fetch before it is asked for, from what was read; pure, no I/O, one thread.

Two patterns so far. A large file read from front to back: the blocks after the one being read, a window that
doubles. Files of a series read one after the other in listing order, as `cp -r` and DICOM readers do: the next
whole files, a window that doubles too. Anything else fetches nothing, and ends the window it breaks.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

SMALL_OBJECT = 8 << 20
"""Bytes up to which an object is fetched and kept whole."""

BLOCK = 1 << 20
"""Bytes in a block of a larger object."""

BLOCKS_AHEAD = 16
FILES_AHEAD = 32
"""The widest windows: 16 MiB of one file; 32 files, which at half a megabyte each is as much."""

_REMEMBERED = 256
"""Series and files whose reading is remembered; the least recently read are forgotten first."""

K = TypeVar("K")


@dataclass
class _Window:
    """How far a reader has come, how much is fetched ahead of it, and up to where that is."""

    at: int
    width: int = 0
    ahead: int = 0

    def advance(self, at: int, widest: int, last: int) -> range:
        """The reader is at *at*; returns what to fetch next, none of it beyond *last*."""
        if at == self.at:
            return range(0)
        follows = self.at < at <= self.at + max(1, self.width)
        self.width = min(widest, self.width * 2 or 2) if follows else 0
        self.at = at
        start = max(at, self.ahead if follows else at) + 1
        stop = min(at + self.width, last) + 1
        self.ahead = max(start, stop) - 1
        return range(start, stop)


def extents(size: int, start: int, stop: int) -> range:
    """The offsets of the extents that hold the bytes from *start* to *stop* of an object of *size*."""
    if size <= SMALL_OBJECT:
        return range(0, 1)
    return range(start // BLOCK * BLOCK, stop, BLOCK)


def extent_end(size: int, offset: int) -> int:
    """Where the extent that begins at *offset* ends, in an object of *size* bytes."""
    return size if size <= SMALL_OBJECT else min(size, offset + BLOCK)


class ReadAhead:
    """Watches the reads of a mount and says what to fetch next."""

    def __init__(self) -> None:
        self._series: OrderedDict[int, _Window] = OrderedDict()
        self._files: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def next_files(self, series: int, instance: int, instances: int) -> range:
        """The instances to fetch whole when *instance* of *series*, which has *instances*, is being read."""
        window = _remembered(self._series, series, instance)
        return window.advance(instance, FILES_AHEAD, instances - 1)

    def next_blocks(self, series: int, instance: int, block: int, size: int) -> range:
        """The blocks to fetch when block number *block* of a large file of *size* bytes is being read."""
        window = _remembered(self._files, (series, instance), block)
        return window.advance(block, BLOCKS_AHEAD, (size - 1) // BLOCK)


def _remembered(windows: "OrderedDict[K, _Window]", key: K, at: int) -> _Window:
    window = windows.get(key)
    if window is None:
        # A reader that starts at the front is taken to go on from there.
        window = windows[key] = _Window(at - 1 if at == 0 else at)
        if len(windows) > _REMEMBERED:
            windows.popitem(last=False)
    windows.move_to_end(key)
    return window
