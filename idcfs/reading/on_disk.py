"""Extents on disk: their keys in the cache, and what the cache may have of each series; belongs to the event loop."""

from collections.abc import Callable, Collection

import trio

from idcfs.cache.client import Cache
from idcfs.processes.lease import Lease
from idcfs.reading.flights import Flights
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import SMALL_OBJECT, Extent

_SERIES_REMEMBERED = 10_000
"""Series of which it is remembered what the disk has: all that was kept since it had nothing."""

_EXTENTS_REMEMBERED = 100_000
"""Extents of all these series; measured: 15 MB. Of a slide they are 25 GB."""


class OnDisk:
    """Extents in *cache*, whose keys begin with *namespace*."""

    def __init__(
        self,
        cache: Cache,
        namespace: str,
        listings: Listings,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._namespace = namespace
        self._listings = listings
        # For each series the extents that were kept since the disk had nothing of it; None if it may have anything.
        self._kept: dict[int, set[Extent] | None] = {}
        self._remembered = 0
        self._learning = Flights[int, None](nursery, timeout)

    def expect(self, series: int) -> None:
        """A series will be read: find out whether the disk has anything of it."""
        if series not in self._kept and series not in self._learning:
            self._learning.start((), self._learning.fly, series, lambda: self._learn(series))

    def may_have(self, extent: Extent) -> bool:
        """Whether the disk may have an extent."""
        kept = self._kept.get(extent.series)
        return kept is None or extent in kept

    async def get(self, extent: Extent, listing: Listing) -> Lease | None:
        """An extent, if it is there; waits for the disk."""
        if extent.series not in self._kept:
            await self._learning.join(extent.series, lambda: self._learn(extent.series))
        if not self.may_have(extent):
            return None
        in_parts = listing.sizes[extent.instance] > SMALL_OBJECT
        return await self._cache.get(self._key(extent, listing), extent.length, in_parts)

    def get_part(self, extent: Extent, listing: Listing, start: int, stop: int) -> memoryview | None:
        """Some bytes of an extent, counted from its start, if they are there and that takes no waiting."""
        return self._cache.get_part(self._key(extent, listing), start, stop)

    def put(self, extent: Extent, listing: Listing, lease: Lease) -> None:
        """Have an extent kept, behind."""
        kept = self._kept.get(extent.series)
        if kept is not None:
            kept.add(extent)
            self._remembered += 1
            if self._remembered > _EXTENTS_REMEMBERED:
                # The disk may have anything of them; asked now, it would not know of what waits to be written.
                self._kept = dict.fromkeys(self._kept)
                self._remembered = 0
        self._cache.put(self._key(extent, listing), lease)

    async def drop(self, extents: Collection[Extent], listing: Listing) -> None:
        """Drop extents of an object that is stored anew."""
        await self._cache.delete({self._key(extent, listing) for extent in extents})

    async def _learn(self, series: int) -> None:
        """Ask once whether the disk has anything of a series: if not, that saves a question for each of its files."""
        has_any = await self._cache.has_any(f"{self._namespace}/{self._listings.uuid(series)}/")
        if len(self._kept) >= _SERIES_REMEMBERED:
            self._kept.clear()
            self._remembered = 0
        self._kept[series] = None if has_any else set()

    def _key(self, extent: Extent, listing: Listing) -> str:
        # The size is in the key because an object that changed its size must not meet its old blocks.
        size = listing.sizes[extent.instance]
        name = listing.names[extent.instance].decode()
        series = self._listings.uuid(extent.series)
        # The length of a head, and of a block, is in the key too; a whole is as long as the object.
        part = f"{extent.offset}" if extent.length == size else f"{extent.offset}+{extent.length}"
        return f"{self._namespace}/{series}/{name}/{size}/{part}"
