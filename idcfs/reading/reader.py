"""Reading ranges of instances: which extents they are in, and what is fetched before it is asked for.

Belongs to the event loop.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from idcfs.cache.format import Buffer
from idcfs.errors import DeadlineExceeded, ReadError
from idcfs.metrics import Metrics
from idcfs.reading import policy as readahead
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import Extent, ListingOf
from idcfs.reading.prefetcher import Prefetcher

log = logging.getLogger(__name__)

_GRACE = 1.0
"""Seconds more than its timeout that a read may take, so that the error of what it waits for is heard."""

_PART = 64 << 10
"""Bytes up to which a part of a block is read from the disk by itself; the rest of it is seldom wanted then."""

_FILES_FOLLOWED = 256
"""Files that are being read of which it is known how far; of others all that is kept is their bytes, for longer."""


class Reader:
    """Reads instances.

    Args:
        fetcher: where extents come from.
        prefetcher: fetches what will be read.
        listings: where instances are looked up.
        nursery: runs what is done ahead of readers.
        timeout: gives the seconds that a read may take, whatever it waits for.
        memory: bytes of the arena that everything goes through.
        next_series: the series that stands after another in the tree that is being read.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        prefetcher: Prefetcher,
        listings: Listings,
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
        memory: int,
        next_series: Callable[[int], int | None] = lambda series: None,
    ) -> None:
        self._fetcher = fetcher
        self._prefetcher = prefetcher
        self._listings = listings
        self._metrics = metrics
        self._nursery = nursery
        self._timeout = timeout
        self._next_series = next_series
        self._read_up_to: dict[Extent, int] = {}
        self._policy = readahead.ReadAhead(self, int(memory * readahead.MEMORY_PART))

    async def read(self, series: int, instance: int, offset: int, length: int) -> Buffer:
        """Up to *length* bytes of an instance from *offset* on; fewer only at its end. May wait for the network.

        Raises:
            ReadError: as `ObjectStore.get`; DeadlineExceeded; ObjectChanged if it is not what was listed.
        """
        deadline = trio.current_time() + self._timeout() + _GRACE
        listing = self._listings.peek(series)
        if listing is None:
            with self._until(deadline):
                listing = await self._listings.get(series)
        size = listing.sizes[instance]
        stop = min(offset + length, size)
        if offset >= stop:
            return b""
        self._prefetcher.note_read(series, instance, offset, size)
        wanted = self._policy.read(series, instance, offset, stop)
        pieces: list[Buffer] = []
        for extent in self._extents(series, instance, size, offset, stop):
            first, last = max(0, offset - extent.offset), min(stop - extent.offset, extent.length)
            piece = self._here(extent, listing, first, last)
            if piece is None:
                # What somebody waits for goes before what is ahead.
                if not self._fetcher.has(extent):
                    self._fetcher.begin(extent)
                self._fetch_ahead(wanted)
                wanted = []
                # What others read from the disk needs memory while this waits for a network.
                pieces = [bytes(here) for here in pieces]
                with self._until(deadline):
                    extent, piece = await self._obtain(extent, stop, listing)
                piece = memoryview(piece)[first:last]
            pieces.append(piece)
            if extent.length == size and self._kernel_has_all(extent, offset, stop):
                # Memory that is used again is much faster than fresh memory.
                self._fetcher.forget(extent)
        self._fetch_ahead(wanted)
        self._metrics.bytes_served += stop - offset
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def open(self, series: int, instance: int) -> None:
        """An instance is opened; of one that the kernel has already, little is read here."""
        self._fetcher.expect(series)
        is_witness = self._prefetcher.is_witness(series, instance)
        if is_witness is None:
            return
        wanted = self._policy.open(series, instance, is_witness)
        if wanted:
            # After the answer, for which somebody waits.
            self._nursery.start_soon(self._fetch_behind, wanted)

    def sizes(self, series: int) -> Sequence[int] | None:
        """The sizes of a series' instances, if it is listed."""
        listing = self._listings.peek(series)
        return None if listing is None else listing.sizes

    def next_series(self, series: int) -> int | None:
        """The series that stands after another in the tree that is being read."""
        return self._next_series(series)

    def _here(self, extent: Extent, listing: Listing, first: int, last: int) -> Buffer | None:
        """The bytes from *first* to *last* of an extent, if they can be had without waiting."""
        data = self._fetcher.peek(extent)
        if data is not None:
            return memoryview(data)[first:last]
        if last - first > _PART or listing.sizes[extent.instance] <= readahead.SMALL_OBJECT:
            return None
        return self._fetcher.peek_part(extent, listing, first, last)

    def _kernel_has_all(self, whole: Extent, start: int, stop: int) -> bool:
        """Whether the kernel has a whole file when it gets its bytes from *start* to *stop*.

        Tools look at the end of a file before they read it from its start.
        """
        if start and start != self._read_up_to.get(whole) and not self._prefetcher.has_filled(whole):
            return False
        if stop == whole.length:
            self._read_up_to.pop(whole, None)
            return True
        if len(self._read_up_to) >= _FILES_FOLLOWED:
            self._read_up_to.clear()
        self._read_up_to[whole] = stop
        return False

    def _extents(self, series: int, instance: int, size: int, start: int, stop: int) -> list[Extent]:
        """The extents that hold the bytes from *start* to *stop*, in which a read waits for them."""
        if size > readahead.SMALL_OBJECT:
            return readahead.blocks(Extent(series, instance, start, stop - start), size)
        whole = Extent(series, instance, 0, size)
        head = whole._replace(length=min(size, readahead.HEAD))
        if stop > head.length or self._fetcher.has(whole):
            return [whole]
        if self._fetcher.has(head) or self._policy.wants_head(series, instance, stop):
            return [head]
        return [whole]

    @contextlib.contextmanager
    def _until(self, deadline: float) -> Iterator[None]:
        """Bound what a read waits for by a time of trio's clock: it may be several things, one after the other."""
        try:
            with trio.fail_at(deadline):
                yield
        except trio.TooSlowError:
            raise DeadlineExceeded(f"no answer within {self._timeout():g} seconds") from None

    async def _obtain(self, extent: Extent, stop: int, listing: Listing) -> tuple[Extent, Buffer]:
        """The bytes of an extent that is read up to *stop*, or a head on the disk that is enough for that."""
        is_small = listing.sizes[extent.instance] <= readahead.SMALL_OBJECT
        head_will_do = is_small and stop <= readahead.HEAD < extent.length
        if head_will_do and not self._fetcher.has(extent):
            extent = await self._head_on_disk(extent) or extent
        try:
            return extent, await self._fetcher.obtain_for_reader(extent)
        except ReadError:
            # It was being fetched ahead, in vain.
            head = await self._head_on_disk(extent) if head_will_do else None
            data = None if head is None else self._fetcher.peek(head)
            if head is None or data is None:
                raise
            return head, data

    async def _head_on_disk(self, whole: Extent) -> Extent | None:
        """The head of a small object that a header scan has left on the disk, if the whole is not there."""
        head = whole._replace(length=readahead.HEAD)
        if whole.length == head.length or not await self._fetcher.recall(head):
            return None
        return None if await self._fetcher.recall(whole) else head

    def _fetch_ahead(self, wanted: list[Extent | ListingOf]) -> None:
        """Start fetching what the policy expects to be read next."""
        for ahead in wanted:
            if isinstance(ahead, ListingOf):
                self._listings.begin(ahead.series)
        self._prefetcher.fetch(ahead for ahead in wanted if isinstance(ahead, Extent))

    async def _fetch_behind(self, wanted: list[Extent | ListingOf]) -> None:
        self._fetch_ahead(wanted)
