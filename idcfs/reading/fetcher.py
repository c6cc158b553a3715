"""`Fetcher`: extents, from memory, the disk or the mirror, in that order; belongs to the event loop.

Whoever wants the same extent waits for one flight. A flight that somebody waits for begins at once; what is only ahead
of readers waits in a queue for room in the window. A small extent that cannot be on the disk is asked for without a
task: measured, tasks that wait for requests took half of the daemon's time for a file. Everything else, and whatever
fails there while somebody waits, is done by a task. Both end in `_land`.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import trio

from idcfs.cache.client import Cache
from idcfs.errors import ObjectChanged, ReadError, first_error
from idcfs.metrics import Metrics
from idcfs.pages.client import PageCache
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.reading.failures import Failures
from idcfs.reading.filled import FilledFiles
from idcfs.reading.flights import Flight, Flights
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.on_disk import OnDisk
from idcfs.reading.policy import HEAD, SMALL_OBJECT, Extent, blocks
from idcfs.reading.request_limit import RequestLimit
from idcfs.reading.requests import Requests
from idcfs.store.base import Body, ObjectStore
from idcfs.store.mirror import Mirror

BURST = 8
"""Requests begun at a time, half a millisecond; between two times others get their turn."""

Ended = Callable[[bool], None]
"""Called when a request, or all those of a run, has ended: whether the mirror, or the disk, had what was asked for."""


class Fetcher:
    """Fetches extents.

    Args:
        store: the mirror.
        mirror: whose buckets these are.
        cache: where extents are kept.
        listings: where instances are looked up.
        pages: where what is read next goes on to.
        nursery: runs the fetches, so that a caller who gives up does not end them for the others.
        timeout: returns the seconds that a fetch may take.
        arena: what everything goes through.
    """

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        cache: Cache,
        listings: Listings,
        pages: PageCache,
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
        arena: Arena,
    ) -> None:
        self._listings = listings
        self._metrics = metrics
        self._nursery = nursery
        self._arena = arena
        self._cache = cache
        self._kept = arena.kept
        self._disk = OnDisk(cache, mirror.bytes_namespace, listings, nursery, timeout)
        self._requests = Requests(store, mirror, listings, metrics, self._forget_object)
        self._flights = Flights[Extent, Lease](nursery, timeout, Lease.hold, Lease.release)
        self._failures = Failures[tuple[int, int, int]]()
        self._limit = RequestLimit()
        self._ahead: deque[Extent] = deque()
        self._goes_on = False
        self.filled = FilledFiles(pages, arena)

    # What readers ask.

    def peek(self, extent: Extent) -> Lease | None:
        """An extent that is in memory; the caller releases it."""
        return self._kept.get(extent)

    def peek_part(self, extent: Extent, listing: Listing, start: int, stop: int) -> memoryview | None:
        """Some bytes of a block, counted from its start, that are on the disk, if that takes no waiting."""
        part = self._disk.get_part(extent, listing, start, stop)
        if part is not None:
            self._metrics.cache_hits += 1
        return part

    def has(self, extent: Extent) -> bool:
        """Whether an extent is in memory or on its way."""
        return extent in self._kept or extent in self._flights

    def expect(self, series: int) -> None:
        """A series will be read: find out what the disk has of it."""
        self._disk.expect(series)

    def want(self, extents: Iterable[Extent], urgent: bool) -> None:
        """Begin to fetch extents, the first one first, and wait for nothing.

        Args:
            extents: what is in memory or on its way is passed over. Those ahead may be several blocks long.
            urgent: somebody waits for them; others are fetched ahead of readers, within the window.
        """
        if urgent:
            for extent in extents:
                if not self.has(extent):
                    self._begin([extent], lambda is_answered: None)
            return
        self._ahead += extents
        self._begin_some()
        if self._ahead and self._limit.has_room and not self._goes_on:
            try:
                self._nursery.start_soon(self._begin_rest)
                self._goes_on = True
            except RuntimeError:
                # The mount is ending, and the nursery is closed.
                self._ahead.clear()

    async def get(self, extent: Extent) -> Lease:
        """An extent's bytes, which the caller releases; waits for the network.

        A failure that took long is repeated from memory for three seconds.

        Raises:
            ReadError: as `ObjectStore.get`; DeadlineExceeded; ObjectChanged if it is not what was listed.
        """
        lease = self._kept.get(extent)
        if lease is not None:
            return lease
        self._failures.raise_again(_place(extent))
        asked = trio.current_time()
        try:
            self.want([extent], urgent=True)
            return await self._flights.wait(extent)
        except ReadError as error:
            self._failures.note(_place(extent), error, asked)
            raise

    async def recall(self, extent: Extent) -> bool:
        """Take an extent from the disk into memory; returns whether it was there. Waits for the disk."""
        listing = await self._listings.get(extent.series)
        lease = await self._disk.get(extent, listing)
        if lease is None:
            return False
        with lease:
            if not self._requests.is_current(extent, listing):
                return False
            self._metrics.cache_hits += 1
            self._kept.add(extent, lease)
        return True

    def forget(self, extent: Extent) -> None:
        """An extent is not needed in memory any more."""
        self._kept.forget(extent)

    # The queue.

    def _begin_some(self) -> None:
        """Begin some of what is ahead, as far as the window goes."""
        most = self._limit.under_way + BURST
        while self._ahead and self._limit.has_room and self._limit.under_way < most:
            extent = self._ahead.popleft()
            listing = self._listings.peek(extent.series)
            if listing is None:
                continue
            size = listing.sizes[extent.instance]
            if extent.length == size and self.filled.has(extent.series, extent.instance):
                continue
            parts = [extent] if size <= SMALL_OBJECT else blocks(extent, size)
            parts = [part for part in parts if not self.has(part)]
            if parts:
                self._begin(parts, partial(self._end, self._limit.begin()))

    async def _begin_rest(self) -> None:
        while self._ahead and self._limit.has_room:
            # Requests of the kernel's come between.
            await trio.lowlevel.checkpoint()
            self._begin_some()
        self._goes_on = False

    def _end(self, number: int, is_answered: bool) -> None:
        self._limit.end(number, is_answered)
        self.want((), urgent=False)

    # Flights.

    def _begin(self, extents: Sequence[Extent], ended: Ended) -> None:
        """Begin the flights of extents of one object; a posted request, or a task, ends them."""
        first = extents[0]
        # What was posted and did not come may have found a process that is stuck: a task notices that.
        posts = len(extents) == 1 and not self._flights.is_overdue(first)
        flights = [self._flights.begin(extent) for extent in extents]
        listing = self._listings.peek(first.series)
        if listing is None or not posts or not self._post(flights[0], listing, ended):
            self._flights.start(flights, self._fetch, flights, ended)

    def _post(self, flight: Flight[Lease], listing: Listing, ended: Ended) -> bool:
        """Ask for one extent without a task; returns False if it may be on the disk, or that takes waiting."""
        extent: Extent = flight.key
        # Of a head's file the whole may be on the disk.
        whole = extent._replace(offset=0, length=listing.sizes[extent.instance])
        if self._disk.may_have(extent) or self._disk.may_have(whole) or not self._cache.has_room():
            return False

        def finished(outcome: Body | ReadError) -> None:
            if isinstance(outcome, bytes):
                lease = self._arena.take_now(len(outcome), self._arena.reserve)
                outcome = ReadError("there is no room in memory") if lease is None else _copy(outcome, lease)
            if isinstance(outcome, Lease):
                with outcome:
                    self._land(flight, listing, outcome, is_new=True)
                ended(True)
                return
            # Before it is tried again, which is no longer ahead of anybody.
            ended(False)
            if flight.waiting:
                self._flights.start([flight], self._fetch, [flight], lambda is_answered: None)
            else:
                self._flights.fail(flight, outcome)

        return self._requests.post(extent, listing, finished)

    async def _fetch(self, flights: Sequence[Flight[Lease]], ended: Ended) -> None:
        """Have the extents of one object land, from the disk or else from the mirror."""
        try:
            with self._flights.bounded(flights):
                listing = await self._listings.get(flights[0].key.series)
                await _each(partial(self._fetch_from_disk, listing), flights)
                missing = [flight for flight in flights if not flight.is_over]
                await _each(partial(self._fetch_run, listing), list(_runs(missing)))
        finally:
            ended(all(flight.error is None for flight in flights))

    async def _fetch_from_disk(self, listing: Listing, flight: Flight[Lease]) -> None:
        extent: Extent = flight.key
        lease = await self._disk.get(extent, listing)
        size = listing.sizes[extent.instance]
        if lease is None and extent.length < size <= SMALL_OBJECT:
            # Of a head's file the whole may be there.
            whole = await self._disk.get(extent._replace(length=size), listing)
            if whole is not None:
                with whole:
                    lease = whole.part(0, extent.length)
        if lease is not None:
            with lease:
                if self._requests.is_current(extent, listing):
                    self._land(flight, listing, lease, is_new=False)

    async def _fetch_run(self, listing: Listing, run: Sequence[Flight[Lease]]) -> None:
        """Have extents land that stand one after the other, with one request; each lands when its bytes are there."""
        first, last = run[0].key, run[-1].key
        whole = first._replace(length=last.offset + last.length - first.offset)
        coming = deque(run)

        def progress(lease: Lease, filled: int) -> None:
            while coming:
                extent: Extent = coming[0].key
                start = extent.offset - whole.offset
                if start + extent.length > filled or not self._requests.is_current(extent, listing):
                    return
                with lease.part(start, start + extent.length) as part:
                    self._land(coming.popleft(), listing, part, is_new=True)

        error: Exception = ObjectChanged("the object changes faster than it can be read")
        try:
            # What is fetched has to be kept, too.
            await self._cache.room()
            body, listing = await self._requests.get(whole, progress if len(run) > 1 else None)
            if isinstance(body, bytes):
                body = _copy(body, await self._arena.take(len(body)))
            with body:
                progress(body, whole.length)
        except Exception as failure:
            # For the callers that wait; other runs go on.
            error = failure
        for flight in coming:
            self._flights.fail(flight, first_error(error))

    def _land(self, flight: Flight[Lease], listing: Listing, lease: Lease, is_new: bool) -> None:
        """Do what has to be done once when an extent's bytes are there, in this order.

        Nothing is awaited between the check that they are of the listed version and this.
        """
        extent: Extent = flight.key
        is_awaited = flight.waiting > 0
        self._kept.add(extent, lease)
        self._failures.forget(_place(extent))
        if is_new:
            self._metrics.cache_misses += 1
            self._disk.put(extent, listing, lease)
        else:
            self._metrics.cache_hits += 1
        self._flights.land(flight, lease)
        if not is_awaited:
            self.filled.fill(extent, listing, lease)

    async def _forget_object(self, extent: Extent, listing: Listing) -> None:
        """Forget the extents of an object that came under another ETag: two versions must not be mixed."""
        size = listing.sizes[extent.instance]
        others = blocks(extent._replace(offset=0, length=size), size)
        if size <= SMALL_OBJECT:
            others.append(extent._replace(offset=0, length=min(size, HEAD)))
        for other in others:
            self._kept.forget(other)
        await self._disk.drop(others, listing)


T = TypeVar("T")


async def _each(work: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Do *work* for all items side by side; for a single one that takes no nursery."""
    if len(items) == 1:
        await work(items[0])
        return
    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(work, item)


def _copy(body: bytes, lease: Lease) -> Lease:
    """Put the bytes of a store that does not know the arena into *lease*."""
    lease.view[:] = body
    return lease


def _place(extent: Extent) -> tuple[int, int, int]:
    """Where an extent begins: what failed as a whole may be asked for again as a head, and the other way round."""
    return extent.series, extent.instance, extent.offset


def _runs(flights: Sequence[Flight[Lease]]) -> Iterator[list[Flight[Lease]]]:
    """The flights of one object's extents, cut where one between is not among them."""
    run: list[Flight[Lease]] = []
    for flight in flights:
        if run and run[-1].key.offset + run[-1].key.length != flight.key.offset:
            yield run
            run = []
        run.append(flight)
    if run:
        yield run
