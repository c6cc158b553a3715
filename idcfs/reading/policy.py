"""What to fetch before it is asked for, from what was read; pure, no I/O, one thread.

A *walk* is a reader that goes through files in the order of the tree, from one series into the next. It reads each
file whole (`cp -r`, DICOM readers) or only its head (header scans); what it read of the last file decides. The number
of files ahead of it grows as it goes on, and falls back when the pattern ends. What is fetched of a series that is not
yet begun is bounded by a part of what was read, so that little is fetched in vain when the walk ends there.

A *stream* is a reader of one large file: front to back, or in steps of a constant length. Any other reader is random,
and just what it asks for is fetched.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

SMALL_OBJECT = 1 << 20
"""Bytes up to which an object is fetched and kept whole: a reader waits 17 ms for so many at 60 MB/s a connection."""

WALKED_OBJECT = 8 << 20
"""Bytes up to which an object is fetched whole before its walk comes to it."""

BLOCK = 256 << 10
"""Bytes in a block of a larger object: a tile of a slide is about a third of it."""

HEAD = 64 << 10
"""Bytes that a header scan reads of a file at most; the kernel asks for 16 to 48 kB when a tool wants 4."""

FIRST_FILES = 2
"""Files ahead of a walk at its start, and the fewest: a guess at what costs little if the reader goes no further."""

FIRST_WHOLES = 64
"""Files ahead of a walk at its start if its first read, of a series' first file, is longer than a head: such readers
mostly take the whole series. Divided by GROWTH when another walk begins before this one has come to its second file."""

GROWTH = 8
MOST_FILES = 256
"""The factor by which files ahead grow with each file that follows, and the most: a series of 304 slices at 50 ms."""

MOST_BYTES = 40 << 20
"""Bytes ahead of a walk or a stream, unless an arena sets them: at 50 ms and 60 MB/s a connection, 600 MB/s."""

MEMORY_PART = 5 / 16
"""The part of the arena that may be ahead of one reader."""

NEXT_SERIES_BYTES = 1 << 20
NEXT_SERIES_PART = 25
"""Bytes fetched of a series that is not yet begun: NEXT_SERIES_BYTES, and what was read divided by NEXT_SERIES_PART."""

LISTINGS_AHEAD = 8
"""Series listed ahead of a walk that goes from series to series."""

RUN_BLOCKS = 4
"""Blocks fetched by one request: 1 MiB, so that many requests share a window."""

LARGE_FILE_START = 4
"""Blocks of a large file that are fetched before its walk comes to it."""

_REMEMBERED = 256
"""Walks and streams remembered; the least recently read are forgotten first."""


class Extent(NamedTuple):
    """A range of an instance, in bytes; `series` is a row of the table of all series."""

    series: int
    instance: int
    offset: int
    length: int


def blocks(extent: Extent, size: int) -> list[Extent]:
    """The blocks, or the one whole, that hold the bytes of *extent*, which is of an object of *size* bytes."""
    if size <= SMALL_OBJECT:
        return [extent._replace(offset=0, length=size)]
    stop = min(size, extent.offset + extent.length)
    starts = range(extent.offset // BLOCK * BLOCK, stop, BLOCK)
    return [Extent(extent.series, extent.instance, start, min(size - start, BLOCK)) for start in starts]


class ListingOf(NamedTuple):
    """The wish that a series be listed."""

    series: int


class Tree(Protocol):
    """What the policy asks about the tree."""

    def sizes(self, series: int) -> Sequence[int] | None:
        """The sizes of a series' instances in bytes; None if they are not known yet."""

    def next_series(self, series: int) -> int | None:
        """The series that stands after *series* in the tree that is being read."""


class _Walk:
    """A reader of files; a place is the number of a series that it comes through, and the instance."""

    def __init__(self, series: int, instance: int) -> None:
        self.series = {0: series}
        self.numbers = {series: 0}
        self.at = (0, instance)
        self.deepest = 0
        self.heads = False
        self.width = 0
        self.frontier = (0, instance + 1)
        self.pending: deque[tuple[tuple[int, int], int]] = deque()
        self.pending_bytes = 0
        self.read_bytes = 0
        self.listed = {series}

    def come_to(self, at: tuple[int, int]) -> None:
        """Note that the reader is at another place, and forget what is behind it."""
        self.at = at
        while self.pending and self.pending[0][0] <= at:
            self.pending_bytes -= self.pending.popleft()[1]
        for number in [number for number in self.series if number < at[0]]:
            series = self.series.pop(number)
            del self.numbers[series]
            self.listed.discard(series)

    def enter(self, number: int, series: int) -> None:
        """Let the frontier come to another series."""
        self.series[number] = series
        self.numbers[series] = number


class _Track:
    """Where a reader of a large file is, and how it goes on, counted in blocks."""

    def __init__(self, block: int, step: int) -> None:
        self.at = block
        self.step = step
        self.width = 0
        self.ahead = block

    def is_followed(self, first: int) -> bool:
        """Whether a read that begins in block *first* goes on with this track."""
        if self.step == 1:
            # The reader need not ask for each block of what was fetched ahead.
            return self.at <= first <= max(self.ahead, self.at + 1)
        return first - self.at == self.step > 0


class _Stream:
    """The readers of a large file: the track that was followed last, and the one before it.

    Tools look at the end of a file, or at its last frame, and come back.
    """

    def __init__(self, block: int) -> None:
        self.track = _Track(block, 1 if block == 0 else 0)
        self.other: _Track | None = None

    def find(self, first: int, last: int) -> _Track | None:
        """The track that a read of the blocks from *first* to *last* follows; if none, it begins one."""
        if self.track.is_followed(first) or first == self.track.at:
            return self.track
        if self.other is not None and (self.other.is_followed(first) or first == self.other.at):
            self.track, self.other = self.other, self.track
            return self.track
        step = first - self.track.at
        self.other, self.track = self.track, _Track(last, max(0, step))
        return None


class ReadAhead:
    """Watches the reads of a mount and returns what to fetch next, most urgent first.

    Args:
        tree: where files stand.
        most_bytes: bytes that may be ahead of one reader.
    """

    def __init__(self, tree: Tree, most_bytes: int = MOST_BYTES) -> None:
        self._tree = tree
        self._most_bytes = most_bytes
        self._first_wholes = FIRST_WHOLES
        self._latest: _Walk | None = None
        self._walks: OrderedDict[int, _Walk] = OrderedDict()
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()

    def wants_head(self, series: int, instance: int, stop: int) -> bool:
        """Whether a read of a small file that ends at *stop* is one of a header scan."""
        walk = self._walks.get(series)
        return walk is not None and walk.heads and stop <= HEAD

    def read(self, series: int, instance: int, start: int, stop: int) -> list[Extent | ListingOf]:
        """Note that bytes *start* to *stop* of an instance are read; returns what to fetch."""
        sizes = self._tree.sizes(series)
        if sizes is None:
            return []
        wanted = self._walked(series, instance, start, stop, sizes)
        if sizes[instance] > SMALL_OBJECT:
            wanted = self._streamed(series, instance, start, stop, sizes[instance]) + wanted
        return wanted

    def open(self, series: int, instance: int, is_observed: bool) -> list[Extent | ListingOf]:
        """Note that a small file is opened that the kernel has already; returns what to fetch.

        Args:
            series: the file's.
            instance: the file's.
            is_observed: a read that goes to its end will be seen; any other file is taken to be read as those before.
        """
        sizes = self._tree.sizes(series)
        walk = self._walks.get(series)
        if sizes is None or walk is None:
            return []
        wanted = self._walked(series, instance, 0, min(HEAD, sizes[instance]), sizes)
        if not is_observed and not walk.heads:
            walk.deepest = sizes[instance]
        return wanted

    def _walked(
        self, series: int, instance: int, start: int, stop: int, sizes: Sequence[int]
    ) -> list[Extent | ListingOf]:
        walk = self._walks.get(series)
        if walk is None or series not in walk.numbers:
            walk = _Walk(series, instance)
            if instance == 0:
                is_whole = stop > min(HEAD, sizes[0] - 1)
                walk.width = self._first_window(walk, len(sizes)) if is_whole else FIRST_FILES
            _remember(self._walks, series, walk)
            walk.deepest, walk.read_bytes = stop, stop - start
            return self._ahead(walk)
        self._walks.move_to_end(series)
        walk.read_bytes += stop - start
        at = (walk.numbers[series], instance)
        if at > walk.at:
            return self._advance(walk, at, stop)
        if at == walk.at:
            walk.deepest = max(walk.deepest, stop)
        elif instance == 0 and walk.at[1] > FIRST_FILES:
            # From the front again.
            self._restart(walk, at)
            walk.deepest = stop
        if walk.heads and stop > HEAD and sizes[instance] > HEAD:
            return self._take_whole(walk)
        return []

    def _first_window(self, walk: _Walk, files: int) -> int:
        """Files ahead of a walk that begins with the first of a series' *files*, and reads it whole."""
        if self._latest is not None:
            # For a reader who looks at one file of each series, not much of every series is to be fetched.
            self._first_wholes = max(FIRST_FILES, self._first_wholes // GROWTH)
        self._latest = walk
        # No more than the series has, so that the walk does not go on into the next one, but for very short series.
        return min(self._first_wholes, max(FIRST_FILES, files - 1))

    def _advance(self, walk: _Walk, at: tuple[int, int], stop: int) -> list[Extent | ListingOf]:
        """The walk has come to a later file."""
        size = self._size(walk, walk.at)
        follows = at <= walk.frontier or at == (walk.at[0] + 1, 0)
        walk.heads = follows and size > HEAD >= walk.deepest
        walk.come_to(at)
        walk.deepest = stop
        if not follows:
            self._restart(walk, at)
            walk.width = 0
            return []
        walk.width = min(MOST_FILES, max(FIRST_FILES, walk.width * GROWTH))
        if walk is self._latest:
            self._first_wholes = min(FIRST_WHOLES, self._first_wholes * GROWTH)
            self._latest = None
        walk.frontier = max(walk.frontier, (at[0], at[1] + 1))
        return self._ahead(walk)

    def _restart(self, walk: _Walk, at: tuple[int, int]) -> None:
        walk.at, walk.frontier, walk.width, walk.heads = at, (at[0], at[1] + 1), FIRST_FILES, False
        walk.pending.clear()
        walk.pending_bytes = 0

    def _take_whole(self, walk: _Walk) -> list[Extent | ListingOf]:
        """Return to whole files: what looked like a header scan reads on."""
        width = walk.width
        self._restart(walk, walk.at)
        walk.width = max(FIRST_FILES, width // GROWTH)
        return self._ahead(walk)

    def _ahead(self, walk: _Walk) -> list[Extent | ListingOf]:
        """Move the frontier of a walk as far as its window goes."""
        wanted: list[Extent | ListingOf] = []
        budget = NEXT_SERIES_BYTES + walk.read_bytes // NEXT_SERIES_PART
        if walk.frontier[0] > walk.at[0]:
            budget -= sum(size for at, size in walk.pending if at[0] > walk.at[0])
        while len(walk.pending) < walk.width and walk.pending_bytes < self._most_bytes:
            number, instance = walk.frontier
            series = walk.series[number]
            sizes = self._tree.sizes(series)
            if sizes is None or (instance >= len(sizes) and not self._enter_next(walk, number, wanted)):
                break
            if instance >= len(sizes):
                continue
            taken = self._extents(walk, series, instance, sizes[instance])
            length = sum(extent.length for extent in taken)
            if number > walk.at[0]:
                budget -= length
                if budget < 0:
                    break
            wanted += taken
            walk.pending.append((walk.frontier, length))
            walk.pending_bytes += length
            walk.frontier = (number, instance + 1)
        return wanted

    def _enter_next(self, walk: _Walk, number: int, wanted: list[Extent | ListingOf]) -> bool:
        """Let the frontier pass the end of a series, and have those that follow listed."""
        following = walk.series.get(number + 1)
        if following is None:
            following = self._tree.next_series(walk.series[number])
            if following is None or following in walk.numbers or self._is_read(following):
                return False
            walk.enter(number + 1, following)
            _remember(self._walks, following, walk)
        series: int | None = following
        # A walk in its first series is not yet known to go from series to series.
        for _ in range(LISTINGS_AHEAD if walk.at[0] else 1):
            if series is None:
                break
            if series not in walk.listed and self._tree.sizes(series) is None:
                walk.listed.add(series)
                wanted.append(ListingOf(series))
            series = self._tree.next_series(series)
        if self._tree.sizes(following) is None:
            return False
        walk.frontier = (number + 1, 0)
        return True

    def _is_read(self, series: int) -> bool:
        """Whether a walk is in a series; another walk that comes up to it must not take it over."""
        walk = self._walks.get(series)
        return walk is not None and walk.numbers.get(series) == walk.at[0]

    def _extents(self, walk: _Walk, series: int, instance: int, size: int) -> list[Extent]:
        """What is fetched of a file ahead of a walk."""
        if size == 0:
            return []
        if size > SMALL_OBJECT:
            start = BLOCK if walk.heads else LARGE_FILE_START * BLOCK
            return [Extent(series, instance, 0, start if walk.heads or size > WALKED_OBJECT else size)]
        return [Extent(series, instance, 0, min(size, HEAD) if walk.heads else size)]

    def _size(self, walk: _Walk, at: tuple[int, int]) -> int:
        sizes = self._tree.sizes(walk.series[at[0]])
        return 0 if sizes is None else sizes[at[1]]

    def _streamed(self, series: int, instance: int, start: int, stop: int, size: int) -> list[Extent | ListingOf]:
        first, last = start // BLOCK, (stop - 1) // BLOCK
        stream = self._streams.get((series, instance))
        if stream is None:
            stream = _Stream(first)
            _remember(self._streams, (series, instance), stream)
        self._streams.move_to_end((series, instance))
        track = stream.find(first, last)
        if track is None or last == track.at:
            return []
        track.width = min(self._most_bytes // BLOCK, max(4, track.width * 4))
        track.at = last
        return self._blocks(series, instance, track, size)

    def _blocks(self, series: int, instance: int, track: _Track, size: int) -> list[Extent | ListingOf]:
        """Move a track's window on; blocks that stand together are one request."""
        end = (size - 1) // BLOCK
        step = track.step
        if track.ahead - track.at > track.width * step * 3 // 4:
            # A quarter of a window at a time, so that requests stay large.
            return []
        begin = max(track.ahead, track.at) + step
        stop = min(end, track.at + track.width * step)
        if step > 1:
            # Steps do not end at blocks, so each takes the block behind it too.
            steps = range(begin, min(end, track.at + track.width // 2 * step) + 1, step)
            runs = [range(block, min(end, block + 1) + 1) for block in steps]
        else:
            runs = [range(at, min(stop + 1, at + RUN_BLOCKS)) for at in range(begin, stop + 1, RUN_BLOCKS)]
        if runs:
            track.ahead = runs[-1].start if step > 1 else runs[-1].stop - 1
        return [
            Extent(series, instance, run.start * BLOCK, min(size, run.stop * BLOCK) - run.start * BLOCK) for run in runs
        ]


K = TypeVar("K")
V = TypeVar("V")


def _remember(kept: "OrderedDict[K, V]", key: K, value: V) -> None:
    kept[key] = value
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)
