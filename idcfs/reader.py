"""Reading ranges of objects: from memory, the disk cache, or the mirror; belongs to the event loop.

An object is read in extents: whole if it is small, else in blocks. Callers that want the same extent wait for
one fetch. The order for an extent is: memory, then disk, then mirror; whoever waits is answered before the
extent is written to disk. Read-ahead fetches extents nobody waits for, a bounded number at a time.
"""

import contextlib
import logging
from collections import OrderedDict
from typing import NamedTuple

import trio

from idcfs import readahead
from idcfs.cache import Cache
from idcfs.errors import AccessDenied, IdcfsError, NotFound, ObjectChanged
from idcfs.flights import Flights
from idcfs.listing import Listing, Listings
from idcfs.metrics import Metrics
from idcfs.store.base import ObjectStore
from idcfs.store.mirror import Mirror

log = logging.getLogger(__name__)

MEMORY_BYTES = 64 << 20
"""Extents kept in memory: two full read-ahead windows and what several readers are at."""

UNWRITTEN_BYTES = 64 << 20
"""Fetched bytes that may wait to be written to disk; beyond them a fetch waits for its own writing."""

PREFETCHES = 16
"""Extents fetched ahead at a time; reads that somebody waits for are not counted."""

Buffer = bytes | memoryview


class Extent(NamedTuple):
    """The part of an instance that begins at `offset`; `series` is a row of the table of all series."""

    series: int
    instance: int
    offset: int


class Reader:
    """Reads instances.

    Args:
        store: the mirror.
        mirror: whose buckets these are.
        cache: where extents are kept.
        listings: where instances are looked up.
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
        self._unwritten = 0
        self._written = trio.Event()
        self._policy = readahead.ReadAhead()
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
        for start in readahead.extents(size, offset, stop):
            extent = Extent(series, instance, start)
            data = self._memory.get(extent)
            self._plan(extent, listing)
            if data is None:
                data = await self._flights.join(extent, lambda extent=extent: self._load(extent))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            else:
                self._memory.move_to_end(extent)
            pieces.append(memoryview(data)[max(0, offset - start) : stop - start])
        self._metrics.bytes_served += stop - offset
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _plan(self, extent: Extent, listing: Listing) -> None:
        """Start fetching what the policy expects to be read next."""
        size = listing.sizes[extent.instance]
        files = self._policy.next_files(extent.series, extent.instance, len(listing))
        wanted = [
            Extent(extent.series, instance, 0)
            for instance in files
            if listing.sizes[instance] <= readahead.SMALL_OBJECT
        ]
        if size > readahead.SMALL_OBJECT:
            block = extent.offset // readahead.BLOCK
            blocks = self._policy.next_blocks(extent.series, extent.instance, block, size)
            wanted += [extent._replace(offset=number * readahead.BLOCK) for number in blocks]
        room = MEMORY_BYTES // 2
        for ahead in wanted:
            length = readahead.extent_end(listing.sizes[ahead.instance], ahead.offset) - ahead.offset
            room -= length
            # Beyond that, what comes would push out what is about to be read.
            if room > 0 and ahead not in self._memory and ahead not in self._flights:
                self._nursery.start_soon(self._prefetch, ahead)

    async def _prefetch(self, extent: Extent) -> None:
        async with self._prefetches:
            if extent in self._memory:
                return
            try:
                await self._flights.join(extent, lambda: self._load(extent))
            except IdcfsError:
                # Whoever comes to read this extent asks again and is told.
                return
            except Exception:
                # The same, but nobody expected it; let through, it would end the mount.
                log.exception("fetching ahead failed")

    async def _load(self, extent: Extent) -> Buffer:
        """An extent that is not in memory."""
        listing = await self._listings.get(extent.series)
        size = listing.sizes[extent.instance]
        length = readahead.extent_end(size, extent.offset) - extent.offset
        key = self._key(extent, listing)
        data: Buffer | None = await self._cache.get(key)
        if data is not None and len(data) == length:
            self._metrics.cache_hits += 1
        else:
            self._metrics.cache_misses += 1
            fetched, fetched_under = await self._fetch(extent, listing)
            current = self._listings.peek(extent.series)
            if current is not None and current.etags[extent.instance] != fetched_under.etags[extent.instance]:
                # Meanwhile the object came under another ETag; two storings must not be mixed.
                return await self._load(extent)
            data = fetched
            self._unwritten += len(fetched)
            if self._unwritten <= UNWRITTEN_BYTES:
                self._nursery.start_soon(self._keep, key, fetched)
            else:
                await self._keep(key, fetched)
        self._remember(extent, data)
        return data

    async def finish_writing(self) -> None:
        """Wait until the cache has what was fetched."""
        while self._unwritten:
            await self._written.wait()

    async def _keep(self, key: str, data: bytes) -> None:
        """Write what `_unwritten` counts already."""
        try:
            await self._cache.put(key, data)
        finally:
            self._unwritten -= len(data)
            self._written.set()
            self._written = trio.Event()

    def _key(self, extent: Extent, listing: Listing) -> str:
        # The size is in the key because an object that changed its size must not meet its old blocks.
        size = listing.sizes[extent.instance]
        name = listing.names[extent.instance].decode()
        series = self._listings.uuid(extent.series)
        return f"{self._mirror.bytes_namespace}/{series}/{name}/{size}/{extent.offset}"

    async def _fetch(self, extent: Extent, listing: Listing) -> tuple[bytes, Listing]:
        """The bytes of an extent, and the listing that they were asked for under."""
        try:
            return await self._get_anywhere(extent, listing), listing
        except ObjectChanged:
            # The same size means the same object, stored anew.
            fresh = await self._listings.refresh(extent.series, listing)
            await self._drop_others(extent, fresh)
            return await self._get_anywhere(extent, fresh), fresh

    async def _get(self, extent: Extent, listing: Listing, bucket: str) -> bytes:
        key = f"{self._listings.uuid(extent.series)}/{listing.names[extent.instance].decode()}"
        stop = readahead.extent_end(listing.sizes[extent.instance], extent.offset)
        etag = listing.etags[extent.instance].decode()
        data = await self._store.get(bucket, key, extent.offset, stop, etag)
        self._metrics.objects_fetched += 1
        self._metrics.bytes_fetched += len(data)
        return data

    async def _get_anywhere(self, extent: Extent, listing: Listing) -> bytes:
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
        for offset in readahead.extents(size, 0, size):
            other = extent._replace(offset=offset)
            self._forget(other)
            await self._cache.delete(self._key(other, listing))

    def _remember(self, extent: Extent, data: Buffer) -> None:
        self._forget(extent)
        self._memory[extent] = data
        self._memory_size += len(data)
        while self._memory_size > MEMORY_BYTES:
            self._forget(next(iter(self._memory)))

    def _forget(self, extent: Extent) -> None:
        if extent in self._memory:
            self._memory_size -= len(self._memory.pop(extent))
