"""Extents of objects, from memory, the disk cache or the mirror, in that order; belongs to the event loop.

Whoever wants the same extent waits for one fetch, and is answered before the extent is written to disk.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable

import trio

from idcfs.cache.client import ExtentCache
from idcfs.cache.format import Buffer
from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Untrusted
from idcfs.metrics import Metrics
from idcfs.processes.arena import Arena
from idcfs.reading import policy as readahead
from idcfs.reading.failures import Failures
from idcfs.reading.flights import Flights
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import Extent
from idcfs.store.base import ObjectStore, ObjectVersion, Progress
from idcfs.store.mirror import Mirror

log = logging.getLogger(__name__)

MEMORY_PART = 3 / 8
"""Of the arena, what extents in memory take: a full window of read-ahead, and what several readers are at."""

Fetched = Callable[[Buffer | None, bool], None]
"""Given the bytes, if nobody waits for them, and whether the mirror gave them."""

_SERIES_REMEMBERED = 10_000
"""Series of which it is remembered what the disk has: all that was kept since it had nothing."""

_EXTENTS_REMEMBERED = 100_000
"""Extents of all these series, (m) 15 MB; of a slide they are 25 GB."""


class _Memory:
    """The extents that were used last, up to a part of an arena, and for as long as nobody waits for memory."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._limit = int(arena.size * MEMORY_PART)
        self._extents: OrderedDict[Extent, Buffer] = OrderedDict()
        self._size = 0
        arena.reclaim = self.forget_oldest

    def __contains__(self, extent: Extent) -> bool:
        return extent in self._extents

    def get(self, extent: Extent) -> Buffer | None:
        data = self._extents.get(extent)
        if data is not None:
            self._extents.move_to_end(extent)
        return data

    def remember(self, extent: Extent, data: Buffer) -> None:
        self.forget(extent)
        self._extents[extent] = data
        self._size += len(data)
        while self._size > self._limit:
            self.forget_oldest()
        self._arena.reclaimable()

    def forget_oldest(self) -> bool:
        """Let go of the extent that was not used for longest; whether there was one."""
        if not self._extents:
            return False
        self.forget(next(iter(self._extents)))
        return True

    def forget(self, extent: Extent) -> None:
        if extent in self._extents:
            self._size -= len(self._extents.pop(extent))


class Fetcher:
    """Fetches extents.

    Args:
        store: the mirror.
        mirror: whose buckets these are.
        cache: where extents are kept.
        listings: where instances are looked up.
        nursery: runs the fetches, so that a caller who gives up does not end them for the others.
        timeout: gives the seconds that a fetch may take.
        arena: what everything goes through.
    """

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        cache: ExtentCache,
        listings: Listings,
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
        arena: Arena,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._cache = cache
        self._listings = listings
        self._metrics = metrics
        self._nursery = nursery
        self._flights = Flights[Extent, Buffer](nursery, timeout)
        self._learning = Flights[int, None](nursery, timeout)
        self._failures = Failures[tuple[int, int, int]]()
        self._memory = _Memory(arena)
        self._in_cache: dict[int, set[Extent] | None] = {}
        self._extents_remembered = 0

    def peek(self, extent: Extent) -> Buffer | None:
        """An extent that is in memory."""
        return self._memory.get(extent)

    def peek_part(self, extent: Extent, listing: Listing, start: int, stop: int) -> Buffer | None:
        """Some bytes of a block, counted from its start, that are on the disk, if that takes no waiting."""
        part = self._cache.get_part(self._key(extent, listing), start, stop)
        if part is not None:
            self._metrics.cache_hits += 1
        return part

    def has(self, extent: Extent) -> bool:
        """Whether an extent is in memory or on its way."""
        return extent in self._memory or extent in self._flights

    def forget(self, extent: Extent) -> None:
        """An extent is not needed in memory any more."""
        self._memory.forget(extent)

    def detach(self, extent: Extent, data: Buffer) -> None:
        """Keep an extent that is in memory without what it is a part of."""
        if extent in self._memory:
            self._memory.remember(extent, bytes(data))

    def expect(self, series: int) -> None:
        """A series will be read: find out what the disk has of it."""
        if series not in self._in_cache and series not in self._learning:
            self._nursery.start_soon(self._learning.fly, series, lambda: self._learn(series))

    async def obtain(self, extent: Extent) -> Buffer:
        """An extent's bytes. May wait for the network.

        Raises:
            ReadError: as `ObjectStore.get`; DeadlineExceeded; ObjectChanged if it is not what was listed.
        """
        return await self._flights.join(extent, lambda: self._load(extent))

    async def obtain_for_reader(self, extent: Extent) -> Buffer:
        """As `obtain`, but who asks again after a failure that took long is told the same for some seconds."""
        self._failures.raise_again(_place(extent))
        asked = trio.current_time()
        try:
            return await self.obtain(extent)
        except ReadError as error:
            self._failures.note(_place(extent), error, asked)
            raise

    async def recall(self, extent: Extent) -> bool:
        """Take an extent from the disk into memory, if it is there."""
        listing = await self._listings.get(extent.series)
        data = await self._cached(extent, listing)
        if data is None or not self.is_current(extent, listing):
            return False
        self._metrics.cache_hits += 1
        self._memory.remember(extent, data)
        return True

    async def finish_writing(self) -> None:
        """Wait until the cache has what was fetched."""
        await self._cache.finish()

    # Ahead of readers.

    def begin(self, extent: Extent, done: Fetched = lambda data, is_answered: None) -> bool:
        """Have a small extent fetched without a task of its own, if all goes as it should.

        (m) Of the daemon's time for a file in a series of 526 kB each, tasks that wait for fetches took half.

        Args:
            extent: one that is neither in memory nor on its way.
            done: called at the end.

        Returns:
            Whether it is under way; not if that takes waiting, because there may be something on the disk.
        """
        listing = self._listings.peek(extent.series)
        if listing is None or not self._cache.has_room():
            return False
        # Of a head's file the whole may be on the disk.
        whole = extent._replace(length=listing.sizes[extent.instance])
        if self.may_be_kept(extent) or self.may_be_kept(whole):
            return False
        if extent.length > readahead.SMALL_OBJECT:
            return False

        def answered(outcome: Buffer | ReadError) -> None:
            is_awaited = self._flights.is_awaited(extent)
            if isinstance(outcome, ReadError) or not self.is_current(extent, listing):
                # Now with everything that helps, for those who wait too.
                self._flights.carry_on(extent, lambda: self._load(extent))
                done(None, False)
                return
            self._count(outcome)
            self._keep(extent, listing, outcome)
            self._flights.land(extent, outcome)
            done(None if is_awaited else outcome, True)

        started = self._store.get_soon(listing.bucket, *self._request(extent, listing), answered)
        if started:
            self._flights.begin(extent)
        return started

    def may_be_kept(self, extent: Extent) -> bool:
        """Whether the disk may have an extent."""
        kept = self._in_cache.get(extent.series)
        return kept is None or extent in kept

    def expect_arrival(self, extent: Extent) -> None:
        """An extent will come as a part of a larger fetch: `arrive` or `fail` has to follow."""
        self._flights.begin(extent)

    def arrive(self, extent: Extent, listing: Listing, data: Buffer) -> bool:
        """An extent has come; whether nobody waits for it, and it may be handed on."""
        if not self.is_current(extent, listing):
            self._flights.carry_on(extent, lambda: self._load(extent))
            return False
        is_awaited = self._flights.is_awaited(extent)
        self._keep(extent, listing, data)
        self._flights.land(extent, data)
        return not is_awaited

    def fail(self, extent: Extent, error: Exception) -> None:
        """An extent has not come."""
        self._flights.fail(extent, error)

    async def room(self) -> None:
        """Wait while much waits to be written to disk."""
        await self._cache.room()

    # One extent.

    async def _load(self, extent: Extent) -> Buffer:
        """An extent that is not in memory."""
        listing = await self._listings.get(extent.series)
        data = await self._cached(extent, listing)
        size = listing.sizes[extent.instance]
        if data is None and extent.length < size <= readahead.SMALL_OBJECT:
            # Of a head's file the whole may be there.
            whole = await self._cached(extent._replace(length=size), listing)
            data = None if whole is None else bytes(whole[: extent.length])
        if data is not None and self.is_current(extent, listing):
            self._metrics.cache_hits += 1
            self._memory.remember(extent, data)
        else:
            data = await self.fetch(extent)
            self._keep(extent, listing, data)
            await self._cache.room()
        return data

    def _keep(self, extent: Extent, listing: Listing, data: Buffer) -> None:
        """Remember what was fetched; nothing is awaited before, so that it is still of the listed version."""
        self._metrics.cache_misses += 1
        kept = self._in_cache.get(extent.series)
        if kept is not None:
            kept.add(extent)
            self._extents_remembered += 1
            if self._extents_remembered > _EXTENTS_REMEMBERED:
                # The disk may have anything of them; asked now, it would not tell of what waits to be written.
                self._in_cache = dict.fromkeys(self._in_cache)
                self._extents_remembered = 0
        self._failures.forget(_place(extent))
        self._memory.remember(extent, data)
        self._cache.put(self._key(extent, listing), data)

    async def _cached(self, extent: Extent, listing: Listing) -> Buffer | None:
        """An extent from the disk, if it is there."""
        if extent.series not in self._in_cache:
            await self._learning.join(extent.series, lambda: self._learn(extent.series))
        if not self.may_be_kept(extent):
            return None
        in_parts = listing.sizes[extent.instance] > readahead.SMALL_OBJECT
        return await self._cache.get(self._key(extent, listing), extent.length, in_parts)

    async def _learn(self, series: int) -> None:
        """Ask once whether the disk has anything of a series: if not, that saves a question for each of its files."""
        prefix = f"{self._mirror.bytes_namespace}/{self._listings.uuid(series)}/"
        found = await self._cache.has_any(prefix)
        if len(self._in_cache) >= _SERIES_REMEMBERED:
            self._in_cache.clear()
            self._extents_remembered = 0
        self._in_cache[series] = None if found else set()

    def is_current(self, extent: Extent, listing: Listing) -> bool:
        """Whether an instance is still listed under the ETag that it has in *listing*."""
        current = self._listings.peek(extent.series)
        return current is None or current.etags[extent.instance] == listing.etags[extent.instance]

    def _key(self, extent: Extent, listing: Listing) -> str:
        # The size is in the key because an object that changed its size must not meet its old blocks.
        size = listing.sizes[extent.instance]
        name = listing.names[extent.instance].decode()
        series = self._listings.uuid(extent.series)
        # A head, and a block, tell how long they are; a whole is as long as the object.
        part = f"{extent.offset}" if extent.length == size else f"{extent.offset}+{extent.length}"
        return f"{self._mirror.bytes_namespace}/{series}/{name}/{size}/{part}"

    # From the mirror.

    async def fetch(self, extent: Extent, progress: Progress | None = None) -> Buffer:
        """The bytes of a range of an object from the mirror, all of one version of it.

        Raises:
            ReadError: as `ObjectStore.get`.
        """
        while True:
            listing = await self._listings.get(extent.series)
            fetched, fetched_under = await self._fetch(extent, listing, progress)
            if self.is_current(extent, fetched_under):
                return fetched
            # Meanwhile the object came under another ETag; two versions must not be mixed.

    async def _fetch(self, extent: Extent, listing: Listing, progress: Progress | None) -> tuple[Buffer, Listing]:
        """The bytes of an extent, and the listing that they were asked for under.

        Raises:
            Untrusted: the mirror refuses under an ETag what it lists under it.
            ObjectChanged: the object changes faster than it can be listed.
        """
        try:
            return await self._get_anywhere(extent, listing, progress), listing
        except ObjectChanged:
            fresh = await self._listings.refresh(extent.series, listing)
        is_as_listed = fresh.etags[extent.instance] == listing.etags[extent.instance]
        if not is_as_listed:
            # The same size means the same object, stored anew.
            await self._drop_others(extent, fresh)
        try:
            return await self._get_anywhere(extent, fresh, progress), fresh
        except ObjectChanged as error:
            if is_as_listed:
                raise Untrusted(f"the mirror refuses what it lists: {error}") from error
            raise

    async def _get_anywhere(self, extent: Extent, listing: Listing, progress: Progress | None) -> Buffer:
        """From the bucket that was listed, or its siblings: objects have moved under unchanged names."""
        with contextlib.suppress(NotFound):
            return await self._get(extent, listing, listing.bucket, progress)
        for bucket in self._mirror.candidates(listing.bucket):
            if bucket != listing.bucket:
                with contextlib.suppress(NotFound, AccessDenied):
                    return await self._get(extent, listing, bucket, progress)
        name = listing.names[extent.instance].decode()
        raise NotFound(f"{name} of series {self._listings.uuid(extent.series)} is gone from every bucket")

    async def _get(self, extent: Extent, listing: Listing, bucket: str, progress: Progress | None) -> Buffer:
        data = await self._store.get(bucket, *self._request(extent, listing), progress)
        self._count(data)
        return data

    def _request(self, extent: Extent, listing: Listing) -> tuple[str, int, int, ObjectVersion]:
        at = extent.instance
        key = f"{self._listings.uuid(extent.series)}/{listing.names[at].decode()}"
        return (
            key,
            extent.offset,
            extent.offset + extent.length,
            ObjectVersion(listing.etags[at].decode(), listing.sizes[at]),
        )

    def _count(self, data: Buffer) -> None:
        self._metrics.objects_fetched += 1
        self._metrics.bytes_fetched += len(data)

    async def _drop_others(self, extent: Extent, listing: Listing) -> None:
        """Drop the extents of an object that came under another ETag: two versions must not be mixed."""
        size = listing.sizes[extent.instance]
        others = readahead.blocks(extent._replace(offset=0, length=size), size)
        if size <= readahead.SMALL_OBJECT:
            others.append(extent._replace(offset=0, length=min(size, readahead.HEAD)))
        for other in others:
            self._memory.forget(other)
        await self._cache.delete({self._key(other, listing) for other in others})


def _place(extent: Extent) -> tuple[int, int, int]:
    """Where an extent begins: what failed as a whole may be asked for again as a head, and the other way round."""
    return extent.series, extent.instance, extent.offset
