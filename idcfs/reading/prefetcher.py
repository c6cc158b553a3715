"""Fetching what nobody waits for yet: a bounded number of requests at a time; belongs to the event loop.

One request may be for a run of blocks, each of which is there as soon as its bytes are. What will be read next goes
on into the kernel's pages.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

import trio

from idcfs.cache.format import Buffer
from idcfs.errors import IdcfsError, ReadError
from idcfs.inode import pack_file
from idcfs.pages.client import PAGE, PageCache
from idcfs.reading import policy as readahead
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import Extent

log = logging.getLogger(__name__)

FIRST_PREFETCHES = 128
LEAST_PREFETCHES = 4
MOST_PREFETCHES = 256
"""Requests for what is ahead at a time: the first at the start, more with each that is answered, and half after one
that fails, since a mirror that is asked too much refuses some. Reads that somebody waits for are not counted."""

BURST = 8
"""Requests begun at a time, half a millisecond; between two times others get their turn."""

WITNESSES = 4
"""One part in so many lacks its last page in the kernel; to ask for it takes a third of a reader's time for a file."""

_FILES_REMEMBERED = 4096
"""Files of which it is remembered that the kernel has them; the windows of several walks."""


class _Run:
    """Blocks of one object, one after the other, that one request fetches."""

    def __init__(self, blocks: Sequence[Extent]) -> None:
        self.whole = blocks[0]._replace(length=blocks[-1].offset + blocks[-1].length - blocks[0].offset)
        self._coming = deque(blocks)

    def arrived(self, data: memoryview, filled: int) -> Iterator[tuple[Extent, memoryview]]:
        """The blocks that are there now and were not before; of *data*, *filled* bytes are."""
        while self._coming:
            block = self._coming[0]
            start = block.offset - self.whole.offset
            if start + block.length > filled:
                return
            self._coming.popleft()
            yield block, data[start : start + block.length]

    def rest(self) -> Iterator[Extent]:
        """The blocks that have not come."""
        while self._coming:
            yield self._coming.popleft()


class Prefetcher:
    """Fetches ahead of readers.

    Args:
        fetcher: fetches what readers wait for.
        listings: where instances are looked up.
        pages: where goes what will be read next.
        nursery: runs the fetches.
    """

    def __init__(self, fetcher: Fetcher, listings: Listings, pages: PageCache, nursery: trio.Nursery) -> None:
        self._fetcher = fetcher
        self._listings = listings
        self._pages = pages
        self._nursery = nursery
        self._ahead: deque[Extent] = deque()
        self._fetching = 0
        self._most = float(FIRST_PREFETCHES)
        self._begun = 0
        self._begun_at_cut = 0
        self._goes_on = False
        self._filled: OrderedDict[int, bool] = OrderedDict()

    def fetch(self, extents: Iterable[Extent]) -> None:
        """Fetch what will be read, the first of *extents* first."""
        self._ahead += extents
        self._fetch_some()
        if self._ahead and self._fetching < self._most and not self._goes_on:
            self._goes_on = True
            self._nursery.start_soon(self._fetch_rest)

    async def _fetch_rest(self) -> None:
        while self._ahead and self._fetching < self._most:
            # Requests of the kernel's come between.
            await trio.lowlevel.checkpoint()
            self._fetch_some()
        self._goes_on = False

    def _fetch_some(self) -> None:
        most = self._fetching + BURST
        while self._ahead and self._fetching < min(most, self._most):
            extent = self._ahead.popleft()
            listing = self._listings.peek(extent.series)
            if listing is None or self._fetcher.has(extent) or self._is_filled(extent, listing):
                continue
            self._fetching += 1
            self._begun += 1
            if self._begin(extent, listing, self._begun):
                continue
            try:
                self._nursery.start_soon(self._fetch, extent, listing, self._begun)
            except RuntimeError:
                # The mount is ending, and the nursery is closed.
                self._ahead.clear()

    def _is_filled(self, extent: Extent, listing: Listing) -> bool:
        is_whole = extent.length == listing.sizes[extent.instance]
        return is_whole and self.has_filled(extent)

    def _begin(self, extent: Extent, listing: Listing, number: int) -> bool:
        if listing.sizes[extent.instance] > readahead.SMALL_OBJECT:
            return False

        def done(data: Buffer | None, is_answered: bool) -> None:
            if data is not None:
                self._fill_pages(extent, listing, data)
            self._end(number, is_answered)

        return self._fetcher.begin(extent, done)

    def _end(self, number: int, is_answered: bool) -> None:
        self._fetching -= 1
        if is_answered:
            # One more in a round trip.
            self._most = min(MOST_PREFETCHES, self._most + 1 / self._most)
        elif number > self._begun_at_cut:
            # Those under way were asked for before it was known.
            self._begun_at_cut = self._begun
            self._most = max(LEAST_PREFETCHES, self._most / 2)
        self.fetch(())

    async def _fetch(self, extent: Extent, listing: Listing, number: int) -> None:
        is_answered = False
        try:
            if listing.sizes[extent.instance] <= readahead.SMALL_OBJECT:
                is_awaited = self._fetcher.has(extent)
                data = await self._fetcher.obtain(extent)
                if not is_awaited:
                    self._fill_pages(extent, listing, data)
                is_answered = True
            else:
                is_answered = await self._fetch_runs(extent, listing)
        except IdcfsError:
            # Whoever comes to read this asks again and is told what is wrong.
            return
        except Exception:
            # Nobody expected it; let through, it would end the mount.
            log.exception("fetching ahead failed")
        finally:
            self._end(number, is_answered)

    # Large objects.

    async def _fetch_runs(self, extent: Extent, listing: Listing) -> bool:
        """Fetch those blocks of a range that are not here, with one request for each gap; whether all were answered."""
        size = listing.sizes[extent.instance]
        blocks = [block for block in readahead.blocks(extent, size) if not self._fetcher.has(block)]
        recalled: set[Extent] = set()
        async with trio.open_nursery() as nursery:
            for block in blocks:
                if self._fetcher.may_be_kept(block):
                    nursery.start_soon(self._recall, block, listing, recalled)
        # Looking takes time, in which readers have come.
        missing = [block for block in blocks if block not in recalled and not self._fetcher.has(block)]
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:
            for gap in _gaps(missing):
                for block in gap:
                    self._fetcher.expect_arrival(block)
                nursery.start_soon(self._fetch_run, _Run(gap), listing, failures)
        return not failures

    async def _recall(self, block: Extent, listing: Listing, recalled: set[Extent]) -> None:
        if await self._fetcher.recall(block):
            recalled.add(block)
            data = self._fetcher.peek(block)
            if data is not None:
                self._fill_pages(block, listing, data)

    async def _fetch_run(self, run: _Run, listing: Listing, failures: list[Exception]) -> None:
        def take(data: memoryview, filled: int) -> None:
            for block, part in run.arrived(data, filled):
                if self._fetcher.arrive(block, listing, part):
                    self._fill_pages(block, listing, part)

        failure: Exception = ReadError("the request was given up")
        try:
            data = memoryview(await self._fetcher.fetch(run.whole, take))
            take(data, len(data))
        except Exception as error:
            # For those who wait; whoever comes later asks again.
            failure = error
            failures.append(error)
        finally:
            for block in run.rest():
                self._fetcher.fail(block, failure)
        await self._fetcher.room()

    # The kernel's pages.

    def _fill_pages(self, extent: Extent, listing: Listing, data: Buffer) -> None:
        """Hand what is read next, and nobody waits for, to the kernel, which then needs not ask for it.

        Of one part in `WITNESSES` the last page is left out, so that it is seen how far readers come.
        """
        size = listing.sizes[extent.instance]
        is_whole = extent.length == size
        if not is_whole and size <= readahead.SMALL_OBJECT:
            return
        # A walk comes through files, a stream through blocks.
        number = extent.instance if is_whole else extent.offset // readahead.BLOCK
        is_witness = number % WITNESSES == 0
        inode = pack_file(extent.series, extent.instance)

        def filled() -> None:
            if is_whole:
                self._filled[inode] = is_witness
                if len(self._filled) > _FILES_REMEMBERED:
                    self._filled.popitem(last=False)
            if not is_witness:
                self._fetcher.forget(extent)
            elif not is_whole:
                self._fetcher.detach(extent, data)

        self._pages.fill(inode, extent.offset, data, is_witness, filled)

    def has_filled(self, whole: Extent) -> bool:
        """Whether the kernel was given a small file, but for the last page of a witness."""
        return pack_file(whole.series, whole.instance) in self._filled

    def is_witness(self, series: int, instance: int) -> bool | None:
        """Whether reading a small file to its end will be seen; None if all of its reads will."""
        return self._filled.get(pack_file(series, instance))

    def note_read(self, series: int, instance: int, start: int, size: int) -> None:
        """The kernel asks for bytes of a file from *start* on."""
        if pack_file(series, instance) in self._filled and start < size - 2 * PAGE:
            # It has thrown them out, and others probably too.
            self._filled.clear()


def _gaps(blocks: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Blocks of one object, cut where one between is not among them."""
    gap: list[Extent] = []
    for block in blocks:
        if gap and gap[-1].offset + gap[-1].length != block.offset:
            yield gap
            gap = []
        gap.append(block)
    if gap:
        yield gap
