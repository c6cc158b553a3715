"""Reading ranges of objects: from memory, the disk cache, or the mirror; belongs to the event loop.

An object is read in extents: if it is small, its head or all of it, else blocks. Callers that want the same extent
wait for one fetch. The order for an extent is: memory, then disk, then mirror; whoever waits is answered before the
extent is written to disk. Read-ahead fetches extents nobody waits for, a bounded number of requests at a time; one
request may be for a run of blocks.
"""

import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import trio

from idcfs import readahead
from idcfs.cache import Buffer, Cache
from idcfs.errors import AccessDenied, IdcfsError, NotFound, ObjectChanged, ReadError
from idcfs.flights import Flights
from idcfs.listing import Listing, Listings
from idcfs.metrics import Metrics
from idcfs.readahead import Extent, ListingOf
from idcfs.store.base import ObjectStore
from idcfs.store.mirror import Mirror
from idcfs.write_behind import WriteBehind

log = logging.getLogger(__name__)

MEMORY_BYTES = 64 << 20
"""Extents kept in memory: a full window of read-ahead, and what several readers are at."""

_SERIES_REMEMBERED = 10_000
"""Series of which it is remembered whether the disk has anything."""

PREFETCHES = 128
"""Requests for what is ahead at a time; reads that somebody waits for are not counted."""


class _Run:
    """Blocks of one object that are fetched by one request, when the first of them is wanted."""

    def __init__(self, fetch: Callable[[], Awaitable[Buffer]]) -> None:
        self._fetch = fetch
        self._lock = trio.Lock()
        self._data: memoryview | None = None

    async def part(self, start: int, stop: int) -> Buffer:
        """The bytes from *start* to *stop*, counted from the run's first."""
        async with self._lock:
            if self._data is None:
                self._data = memoryview(await self._fetch())
        return self._data[start:stop]


class Reader:
    """Reads instances.

    Args:
        store: the mirror.
        mirror: whose buckets these are.
        cache: where extents are kept.
        listings: where instances are looked up.
        next_series: the series that stands after another in the tree that is being read.
        nursery: runs the fetches, so that a caller who gives up does not end them for the others.
        timeout: seconds that a fetch may take.
    """

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        cache: Cache,
        listings: Listings,
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: float,
        next_series: Callable[[int], int | None] = lambda series: None,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._cache = cache
        self._listings = listings
        self._metrics = metrics
        self._nursery = nursery
        self._flights = Flights[Extent, Buffer](nursery, timeout)
        self._memory: OrderedDict[Extent, Buffer] = OrderedDict()
        self._memory_size = 0
        self._kept = WriteBehind(cache, nursery)
        self._in_cache: dict[int, bool] = {}
        self._next_series = next_series
        self._policy = readahead.ReadAhead(self)
        self._prefetches = trio.CapacityLimiter(PREFETCHES)

    async def read(self, series: int, instance: int, offset: int, length: int) -> Buffer:
        """Up to *length* bytes of an instance from *offset* on; fewer only at its end. May wait for the network.

        Raises:
            ReadError: as `ObjectStore.get`; DeadlineExceeded; ObjectChanged if it is not what was listed.
        """
        listing = self._listings.peek(series) or await self._listings.get(series)
        size = listing.sizes[instance]
        stop = min(offset + length, size)
        if offset >= stop:
            return b""
        pieces: list[Buffer] = []
        # What somebody waits for comes first: the others begin by waiting for their turn.
        self._fetch_ahead(self._policy.read(series, instance, offset, stop))
        for extent in self._extents(series, instance, size, offset, stop):
            extent, data = await self._obtain(extent, stop, listing)
            pieces.append(memoryview(data)[max(0, offset - extent.offset) : stop - extent.offset])
            if stop == size == extent.length:
                # The kernel has all of it now; memory that is used again is much faster than fresh memory.
                self._forget(extent)
        self._metrics.bytes_served += stop - offset
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def sizes(self, series: int) -> Sequence[int] | None:
        """The sizes of a series' instances, if it is listed."""
        listing = self._listings.peek(series)
        return None if listing is None else listing.sizes

    def next_series(self, series: int) -> int | None:
        """The series that stands after another in the tree that is being read."""
        return self._next_series(series)

    def _extents(self, series: int, instance: int, size: int, start: int, stop: int) -> list[Extent]:
        """The extents that hold the bytes from *start* to *stop*, in which a read waits for them."""
        if size > readahead.SMALL_OBJECT:
            return [self._block(series, instance, size, at) for at in readahead.extents(size, start, stop)]
        whole = Extent(series, instance, 0, size)
        head = Extent(series, instance, 0, min(size, readahead.HEAD))
        if stop > head.length or whole in self._memory or whole in self._flights:
            return [whole]
        if head in self._memory or head in self._flights or self._policy.wants_head(series, instance, stop):
            return [head]
        return [whole]

    async def _obtain(self, extent: Extent, stop: int, listing: Listing) -> tuple[Extent, Buffer]:
        """The bytes of an extent that is read up to *stop*, or a head on the disk that is enough for that."""
        data = self._memory.get(extent)
        if data is not None:
            self._memory.move_to_end(extent)
            return extent, data
        is_small = listing.sizes[extent.instance] <= readahead.SMALL_OBJECT
        head_will_do = is_small and stop <= readahead.HEAD < extent.length
        if head_will_do and extent not in self._flights:
            extent = await self._head_on_disk(extent, listing) or extent
        try:
            return extent, await self._flights.join(extent, lambda: self._load(extent))
        except ReadError:
            # It was being fetched ahead, in vain.
            head = await self._head_on_disk(extent, listing) if head_will_do else None
            if head is None or head not in self._memory:
                raise
            return head, self._memory[head]

    async def _head_on_disk(self, whole: Extent, listing: Listing) -> Extent | None:
        """The head of a small object that a header scan has left on the disk, if the whole is not there."""
        head = whole._replace(length=readahead.HEAD)
        if whole.length == head.length or not await self._recall(head, listing):
            return None
        return None if await self._recall(whole, listing) else head

    def _block(self, series: int, instance: int, size: int, offset: int) -> Extent:
        return Extent(series, instance, offset, readahead.extent_end(size, offset) - offset)

    def _fetch_ahead(self, wanted: Iterable[Extent | ListingOf]) -> None:
        """Start fetching what the policy expects to be read next."""
        for ahead in wanted:
            if isinstance(ahead, ListingOf):
                self._nursery.start_soon(self._quietly, lambda series=ahead.series: self._listings.get(series))
            elif not self._has(ahead):
                self._nursery.start_soon(self._prefetch, ahead)

    def _has(self, extent: Extent) -> bool:
        return extent in self._memory or extent in self._flights

    async def _prefetch(self, extent: Extent) -> None:
        async with self._prefetches:
            listing = self._listings.peek(extent.series)
            if self._has(extent) or listing is None:
                return
            size = listing.sizes[extent.instance]
            if size <= readahead.SMALL_OBJECT:
                await self._quietly(lambda: self._flights.join(extent, lambda: self._load(extent)))
            else:
                await self._prefetch_run(extent, listing)

    async def _prefetch_run(self, extent: Extent, listing: Listing) -> None:
        """Fetch those blocks of a run that are not here, with one request for each gap."""
        size = listing.sizes[extent.instance]
        offsets = readahead.extents(size, extent.offset, min(size, extent.offset + extent.length))
        blocks = [self._block(extent.series, extent.instance, size, offset) for offset in offsets]
        missing = [block for block in blocks if not self._has(block) and not await self._recall(block, listing)]
        # Looking takes time, in which readers have come.
        missing = [block for block in missing if not self._has(block)]
        async with trio.open_nursery() as nursery:
            for run in _runs(missing):
                whole = run[0]._replace(length=run[-1].offset + run[-1].length - run[0].offset)
                fetched = _Run(functools.partial(self._fetch_checked, whole))
                for block in run:
                    work = functools.partial(self._take, block, fetched, block.offset - whole.offset)
                    nursery.start_soon(self._quietly, functools.partial(self._flights.join, block, work))

    async def _quietly(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except IdcfsError:
            # Whoever comes to read this asks again and is told.
            return
        except Exception:
            # The same, but nobody expected it; let through, it would end the mount.
            log.exception("fetching ahead failed")

    async def _load(self, extent: Extent) -> Buffer:
        """An extent that is not in memory."""
        listing = await self._listings.get(extent.series)
        key = self._key(extent, listing)
        data: Buffer | None = await self._cached(extent, key)
        size = listing.sizes[extent.instance]
        if data is None and extent.length < size <= readahead.SMALL_OBJECT:
            # Of a head's file the whole may be there.
            whole = await self._cached(extent, self._key(extent._replace(length=size), listing))
            data = None if whole is None else bytes(whole[: extent.length])
        if data is not None and len(data) == extent.length and self._is_current(extent, listing):
            self._metrics.cache_hits += 1
            self._remember(extent, data)
        else:
            self._metrics.cache_misses += 1
            data = await self._fetch_checked(extent)
            await self._keep(extent, key, data)
        return data

    async def _keep(self, extent: Extent, key: str, data: Buffer) -> None:
        """Remember what was fetched; nothing is awaited before, so that it is still of the listed storing."""
        self._in_cache[extent.series] = True
        self._remember(extent, data)
        await self._kept.put(key, data)

    async def _recall(self, extent: Extent, listing: Listing) -> bool:
        """Take an extent from the disk into memory, if it is there."""
        data = await self._cached(extent, self._key(extent, listing))
        if data is None or len(data) != extent.length or not self._is_current(extent, listing):
            return False
        self._metrics.cache_hits += 1
        self._remember(extent, data)
        return True

    async def _cached(self, extent: Extent, key: str) -> Buffer | None:
        """An extent from the disk, if it is there."""
        series = extent.series
        if series not in self._in_cache:
            if len(self._in_cache) >= _SERIES_REMEMBERED:
                self._in_cache.clear()
            prefix = f"{self._mirror.bytes_namespace}/{self._listings.uuid(series)}/"
            # One question for a series that was never read saves one for each of its files.
            self._in_cache[series] = await self._cache.has_any(prefix)
        return await self._cache.get(key) if self._in_cache[series] else None

    async def _take(self, block: Extent, run: _Run, start: int) -> Buffer:
        """A block of a run."""
        self._metrics.cache_misses += 1
        before = await self._listings.get(block.series)
        data = await run.part(start, start + block.length)
        if not self._is_current(block, before):
            data = await self._fetch_checked(block)
        await self._keep(block, self._key(block, before), data)
        return data

    async def _fetch_checked(self, extent: Extent) -> Buffer:
        """The bytes of an extent, all of one storing of its object."""
        while True:
            listing = await self._listings.get(extent.series)
            fetched, fetched_under = await self._fetch(extent, listing)
            if self._is_current(extent, fetched_under):
                return fetched
            # Meanwhile the object came under another ETag; two storings must not be mixed.

    def _is_current(self, extent: Extent, listing: Listing) -> bool:
        """Whether an instance is still listed under the ETag that it has in *listing*."""
        current = self._listings.peek(extent.series)
        return current is None or current.etags[extent.instance] == listing.etags[extent.instance]

    async def finish_writing(self) -> None:
        """Wait until the cache has what was fetched."""
        await self._kept.finish()

    def _key(self, extent: Extent, listing: Listing) -> str:
        # The size is in the key because an object that changed its size must not meet its old blocks.
        size = listing.sizes[extent.instance]
        name = listing.names[extent.instance].decode()
        series = self._listings.uuid(extent.series)
        # A head, and a block, tell how long they are; a whole is as long as the object.
        part = f"{extent.offset}" if extent.length == size else f"{extent.offset}+{extent.length}"
        return f"{self._mirror.bytes_namespace}/{series}/{name}/{size}/{part}"

    async def _fetch(self, extent: Extent, listing: Listing) -> tuple[Buffer, Listing]:
        """The bytes of an extent, and the listing that they were asked for under."""
        try:
            return await self._get_anywhere(extent, listing), listing
        except ObjectChanged:
            # The same size means the same object, stored anew.
            fresh = await self._listings.refresh(extent.series, listing)
            await self._drop_others(extent, fresh)
            return await self._get_anywhere(extent, fresh), fresh

    async def _get(self, extent: Extent, listing: Listing, bucket: str) -> Buffer:
        key = f"{self._listings.uuid(extent.series)}/{listing.names[extent.instance].decode()}"
        stop = extent.offset + extent.length
        etag = listing.etags[extent.instance].decode()
        data = await self._store.get(bucket, key, extent.offset, stop, etag)
        self._metrics.objects_fetched += 1
        self._metrics.bytes_fetched += len(data)
        return data

    async def _get_anywhere(self, extent: Extent, listing: Listing) -> Buffer:
        """From the bucket that was listed, or its siblings: objects have moved under unchanged names."""
        with contextlib.suppress(NotFound):
            return await self._get(extent, listing, listing.bucket)
        for bucket in self._mirror.candidates(listing.bucket):
            if bucket != listing.bucket:
                with contextlib.suppress(NotFound, AccessDenied):
                    return await self._get(extent, listing, bucket)
        name = listing.names[extent.instance].decode()
        raise NotFound(f"{name} of series {self._listings.uuid(extent.series)} is gone from every bucket")

    async def _drop_others(self, extent: Extent, listing: Listing) -> None:
        """Drop the blocks of an object that came under another ETag: two storings must not be mixed."""
        size = listing.sizes[extent.instance]
        others = [self._block(extent.series, extent.instance, size, at) for at in readahead.extents(size, 0, size)]
        if size <= readahead.SMALL_OBJECT:
            others.append(Extent(extent.series, extent.instance, 0, min(size, readahead.HEAD)))
        for other in others:
            self._forget(other)
        await self._kept.delete({self._key(other, listing) for other in others})

    def _remember(self, extent: Extent, data: Buffer) -> None:
        self._forget(extent)
        self._memory[extent] = data
        self._memory_size += len(data)
        while self._memory_size > MEMORY_BYTES:
            self._forget(next(iter(self._memory)))

    def _forget(self, extent: Extent) -> None:
        if extent in self._memory:
            self._memory_size -= len(self._memory.pop(extent))


def _runs(blocks: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Blocks of one object, cut where one is missing."""
    run: list[Extent] = []
    for block in blocks:
        if run and run[-1].offset + run[-1].length != block.offset:
            yield run
            run = []
        run.append(block)
    if run:
        yield run
