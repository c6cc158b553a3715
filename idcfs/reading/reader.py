"""Reading ranges of instances: which extents they are in, and what is fetched before it is asked for.

Belongs to the event loop.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import trio

from idcfs.errors import DeadlineExceeded, ReadError
from idcfs.metrics import Metrics
from idcfs.processes.lease import Lease
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import HEAD, MEMORY_PART, SMALL_OBJECT, Extent, ListingOf, ReadAhead, blocks

_GRACE = 1.0
"""Seconds more than its timeout that a read may take, so that the error of what it waits for gets there."""

_PART = 64 << 10
"""Bytes up to which a part of a block is read from the disk by itself; the rest of it is seldom wanted then."""

_FILES_FOLLOWED = 256
"""Files that are being read of which it is known how far; of others only their bytes are kept, for longer."""


class Reader:
    """Reads instances.

    Args:
        fetcher: where extents come from.
        listings: where instances are looked up.
        nursery: runs what is done ahead of readers.
        timeout: returns the seconds that a read may take, whatever it waits for.
        memory: bytes of the arena that everything goes through.
        next_series: the series that stands after another in the tree that is being read.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        listings: Listings,
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: Callable[[], float],
        memory: int,
        next_series: Callable[[int], int | None] = lambda series: None,
    ) -> None:
        self._fetcher = fetcher
        self._listings = listings
        self._metrics = metrics
        self._nursery = nursery
        self._timeout = timeout
        self._next_series = next_series
        self._read_up_to: dict[Extent, int] = {}
        self._policy = ReadAhead(self, int(memory * MEMORY_PART))

    async def read(self, series: int, instance: int, offset: int, length: int) -> bytes | memoryview:
        """Up to *length* bytes of an instance from *offset* on; fewer only at its end. May wait for the network.

        What is returned must be used before the caller awaits anything: the memory is then used for something else.

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
        self._fetcher.filled.note_read(series, instance, offset, size)
        ahead = self._policy.read(series, instance, offset, stop)
        extents = self._extents(series, instance, size, offset, stop)
        pieces: list[bytes | memoryview] = []
        held: list[Lease] = []
        try:
            for at, extent in enumerate(extents):
                first, last = max(0, offset - extent.offset), min(stop - extent.offset, extent.length)
                piece = self._here(extent, listing, first, last, held)
                if piece is None:
                    # What others read from the disk needs memory while this waits for a network.
                    pieces = [bytes(here) for here in pieces]
                    _release(held)
                    with self._until(deadline):
                        extent, lease = await self._obtain(extents[at:], stop, listing, ahead)
                    ahead = []
                    held.append(lease)
                    piece = lease.view[first:last]
                pieces.append(piece)
                if extent.length == size and self._kernel_has_all(extent, offset, stop):
                    # Memory that is used again is much faster than fresh memory.
                    self._fetcher.forget(extent)
            self._fetch_ahead(ahead)
            self._metrics.bytes_served += stop - offset
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            _release(held)

    def open(self, series: int, instance: int) -> None:
        """An instance is opened; of one that the kernel has already, little is read here."""
        self._fetcher.expect(series)
        is_observed = self._fetcher.filled.is_observed(series, instance)
        if is_observed is None:
            return
        ahead = self._policy.open(series, instance, is_observed)
        if ahead:
            # After the answer, for which somebody waits.
            self._nursery.start_soon(self._fetch_behind, ahead)

    def sizes(self, series: int) -> Sequence[int] | None:
        """The sizes of a series' instances, if it is listed."""
        listing = self._listings.peek(series)
        return None if listing is None else listing.sizes

    def next_series(self, series: int) -> int | None:
        """The series that stands after another in the tree that is being read."""
        return self._next_series(series)

    def _here(
        self, extent: Extent, listing: Listing, first: int, last: int, held: list[Lease]
    ) -> bytes | memoryview | None:
        """The bytes from *first* to *last* of an extent, if no waiting is needed; their lease is added to *held*."""
        lease = self._fetcher.peek(extent)
        if lease is not None:
            held.append(lease)
            return lease.view[first:last]
        if last - first > _PART or listing.sizes[extent.instance] <= SMALL_OBJECT:
            return None
        return self._fetcher.peek_part(extent, listing, first, last)

    def _kernel_has_all(self, whole: Extent, start: int, stop: int) -> bool:
        """Whether the kernel has a whole file when it gets its bytes from *start* to *stop*.

        Tools look at the end of a file before they read it from its start.
        """
        is_filled = self._fetcher.filled.has(whole.series, whole.instance)
        if start and start != self._read_up_to.get(whole) and not is_filled:
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
        if size > SMALL_OBJECT:
            return blocks(Extent(series, instance, start, stop - start), size)
        whole = Extent(series, instance, 0, size)
        head = whole._replace(length=min(size, HEAD))
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

    async def _obtain(
        self, extents: list[Extent], stop: int, listing: Listing, ahead: list[Extent | ListingOf]
    ) -> tuple[Extent, Lease]:
        """The first of *extents*, of which all are read, up to *stop*; or its head on the disk if that is enough."""
        extent = extents[0]
        is_small = listing.sizes[extent.instance] <= SMALL_OBJECT
        head_will_do = is_small and stop <= HEAD < extent.length
        head = await self._head_on_disk(extent) if head_will_do and not self._fetcher.has(extent) else None
        # What somebody waits for goes before what is ahead.
        self._fetcher.want(extents if head is None else [], urgent=True)
        self._fetch_ahead(ahead)
        try:
            extent = head or extent
            return extent, await self._fetcher.get(extent)
        except ReadError:
            # It was being fetched ahead, in vain.
            head = await self._head_on_disk(extent) if head_will_do else None
            if head is None:
                raise
            return head, await self._fetcher.get(head)

    async def _head_on_disk(self, whole: Extent) -> Extent | None:
        """The head of a small object that a header scan has left on the disk, if the whole is not there."""
        head = whole._replace(length=HEAD)
        if whole.length == head.length or not await self._fetcher.recall(head):
            return None
        return None if await self._fetcher.recall(whole) else head

    def _fetch_ahead(self, ahead: list[Extent | ListingOf]) -> None:
        """Begin to fetch what the policy expects to be read next."""
        for each in ahead:
            if isinstance(each, ListingOf):
                self._listings.begin(each.series)
        self._fetcher.want((each for each in ahead if isinstance(each, Extent)), urgent=False)

    async def _fetch_behind(self, ahead: list[Extent | ListingOf]) -> None:
        self._fetch_ahead(ahead)


def _release(leases: list[Lease]) -> None:
    while leases:
        leases.pop().release()
