"""The instances of a series: listed from the bucket once, then kept for ever; belongs to the event loop.

The names of instances are in no index, so a series' folder needs a listing of its prefix. A series that the
index says is large is listed as sixteen prefixes at once, because names are uniform hexadecimal digits. What
comes back is checked against the prefix, against itself and against the index's count. Callers that want the
same listing at the same time wait for one request.
"""

import bisect
import contextlib
import functools
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import trio

from idcfs.cache.client import Cache
from idcfs.catalog.catalogue import Series
from idcfs.catalog.table import Strings, column_of
from idcfs.errors import AccessDenied, NotFound, ObjectChanged, SeriesMissing, Unreachable, Untrusted, first_error
from idcfs.metrics import Metrics
from idcfs.printable import printable
from idcfs.reading.flights import Flights
from idcfs.store.base import ObjectInfo, ObjectStore
from idcfs.store.mirror import Mirror

log = logging.getLogger(__name__)

FAN_OUT_INSTANCES = 2000
"""Instances from which on a series is listed as sixteen prefixes: two pages one after the other are as fast."""

PAGES = 10_000
"""Pages after which a listing counts as endless: a hundred times those of the largest series."""

REMEMBERED_INSTANCES = 500_000
"""Instances whose listings stay in memory (about 150 bytes each); the least recently used go first."""

_FORMAT = "1"
_SCHEMA = pa.schema([("name", pa.binary()), ("size", pa.uint64()), ("modified", pa.int64()), ("etag", pa.binary())])


def may_be_instance(name: bytes) -> bool:
    """Whether a series' folder can have *name* in it: it holds `*.dcm` only."""
    return name.endswith(b".dcm") and not name.startswith(b".")


@dataclass(frozen=True)
class Listing:
    """The instances of a series in name order, as columns.

    `bucket` is the mirror's bucket that they were found in. Sizes are in bytes, times in nanoseconds since the
    epoch.
    """

    bucket: str
    names: Strings
    sizes: memoryview
    modified: memoryview
    etags: Strings

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: bytes) -> int | None:
        """The instance with *name*, or None."""
        at = bisect.bisect_left(self.names, name)
        return at if at < len(self) and self.names[at] == name else None

    def has_instances_of(self, other: "Listing") -> bool:
        """Whether both have the same names and sizes in the same places."""
        return self.sizes == other.sizes and list(self.names) == list(other.names)


_UUIDS = 4096
"""Identifiers of series that are remembered."""


class Listings:
    """Listings from memory, the cache, or the mirror.

    Args:
        store: where to ask.
        mirror: whose buckets these are.
        cache: where listings are kept.
        series: the row of the table of all series for its number.
        nursery: runs the requests, so that a caller who gives up does not end them for the others.
        timeout: seconds that a listing may take.
    """

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        cache: Cache,
        series: Callable[[int], Series],
        metrics: Metrics,
        nursery: trio.Nursery,
        timeout: float,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._cache = cache
        self._series = series
        self._metrics = metrics
        self._nursery = nursery
        self._flights = Flights[int, Listing](nursery, lambda: timeout)
        self._refreshes = Flights[int, Listing](nursery, lambda: timeout)
        # Inode numbers are places in a listing, so a listing that may come out differently the next time stays.
        self._pinned: dict[int, Listing] = {}
        self._remembered: OrderedDict[int, Listing] = OrderedDict()
        self._instances = 0
        # It is needed for each fetch.
        self._uuid = functools.lru_cache(_UUIDS)(lambda row: series(row).uuid)

    def uuid(self, row: int) -> str:
        """The crdc_series_uuid of a series."""
        return self._uuid(row)

    def peek(self, row: int) -> Listing | None:
        """The listing of a series if it is in memory."""
        return self._pinned.get(row) or self._remembered.get(row)

    async def get(self, row: int) -> Listing:
        """The listing of the series in *row* of the table of all series. May wait for the network.

        Raises:
            NotFound: no bucket has such a series.
            ReadError: as `ObjectStore.list_page`; DeadlineExceeded.
        """
        listing = self.peek(row)
        if listing is None:
            return await self._flights.join(row, lambda: self._load(row))
        if row in self._remembered:
            self._remembered.move_to_end(row)
        return listing

    def begin(self, row: int) -> None:
        """Begin to list a series that somebody may come to, who then gets the error if there is one."""
        if self.peek(row) is None and row not in self._flights:
            self._nursery.start_soon(self._flights.fly, row, lambda: self._load(row))

    async def refresh(self, row: int, shown: Listing) -> Listing:
        """A listing newer than *shown*, because an object was not as in that one. May wait for the network.

        Raises:
            ObjectChanged: the series has other instances now. Until it ends, the mount stays with those it has
                shown: in another listing their inode numbers would mean other instances.
            ReadError: as `get`.
        """
        listing = self.peek(row)
        if listing is not None and listing is not shown:
            return listing
        return await self._refreshes.join(row, lambda: self._ask_again(row, shown))

    async def _ask_again(self, row: int, shown: Listing) -> Listing:
        listing = await self._ask(self._series(row), row)
        if not listing.has_instances_of(shown):
            self._pinned[row] = shown
            raise ObjectChanged(
                f"series {self.uuid(row)} is not what was listed; unmount and mount again to see it as it is now"
            )
        self._remember(row, listing)
        return listing

    def _key(self, row: int) -> str:
        return f"{self._mirror.listing_namespace}/{self._series(row).uuid}/{_FORMAT}"

    async def _load(self, row: int) -> Listing:
        kept = await self._cache.get_bytes(self._key(row))
        listing = _unpack(kept) if kept is not None else None
        if listing is None:
            listing = await self._ask(self._series(row), row)
        self._remember(row, listing)
        return listing

    def _remember(self, row: int, listing: Listing) -> None:
        self._forget(row)
        if _is_short(self._series(row), len(listing), sum(listing.sizes)):
            self._pinned[row] = listing
            return
        self._remembered[row] = listing
        self._instances += len(listing)
        while self._instances > REMEMBERED_INSTANCES and len(self._remembered) > 1:
            self._forget(next(iter(self._remembered)))

    def _forget(self, row: int) -> None:
        if row in self._remembered:
            self._instances -= len(self._remembered.pop(row))

    async def _ask(self, series: Series, row: int) -> Listing:
        candidates = self._mirror.candidates(series.bucket)
        for bucket in candidates:
            try:
                found = await self._list(bucket, series)
            except NotFound:
                continue
            except AccessDenied:
                # Public storage refuses what does not exist; only the series' own bucket must be there.
                if bucket == candidates[0]:
                    raise
                continue
            if len(found):
                break
        else:
            raise SeriesMissing(f"series {series.uuid} is in no bucket of mirror {self._mirror.word}")
        self._metrics.listings_fetched += 1
        batch = found.batch(bucket)
        if _is_short(series, len(found), sum(found.sizes)):
            # It is kept in memory only: this mount stays with it, and the next one lists the series again.
            await self._cache.delete([self._key(row)])
            log.warning(
                "series %s: bucket %s lists %d instances, the index says %s",
                series.uuid, bucket, len(found), series.instances or f"{series.size / 1e6:g} MB",
            )  # fmt: skip
        else:
            await self._cache.put_bytes(self._key(row), _pack(batch))
        return _listing(batch)

    async def _list(self, bucket: str, series: Series) -> "_Instances":
        """All instances; they are listed once more if pages cannot be trusted, or instances are missing."""
        try:
            found = await self._list_once(bucket, series)
        except Untrusted as error:
            log.debug("%s; listing the series again", error)
            return await self._list_once(bucket, series)
        if len(found) and _is_short(series, len(found), sum(found.sizes)):
            log.debug("series %s: bucket %s lists %d instances; listing it again", series.uuid, bucket, len(found))
            with contextlib.suppress(Unreachable, AccessDenied, NotFound):
                found = max(await self._list_once(bucket, series), found, key=lambda one: (len(one), sum(one.sizes)))
        return found

    async def _list_once(self, bucket: str, series: Series) -> "_Instances":
        folder = f"{series.uuid}/"
        found = _Instances(folder)
        if series.instances > FAN_OUT_INSTANCES:
            try:
                async with trio.open_nursery() as nursery:
                    for number in range(16):
                        nursery.start_soon(self._list_prefix, bucket, f"{folder}{number:x}", found)
            except ExceptionGroup as group:
                raise first_error(group) from None
        if len(found) < max(series.instances, 1):
            # Names that are no hexadecimal digits, or a series that is not as large as the index says.
            found = _Instances(folder)
            await self._list_prefix(bucket, folder, found)
        found.check()
        return found

    async def _list_prefix(self, bucket: str, prefix: str, found: "_Instances") -> None:
        last, token = "", None
        for _ in range(PAGES):
            page = await self._store.list_page(bucket, prefix, token)
            if page.objects and page.objects[0].key <= last:
                raise Untrusted(f"listing {bucket}/{prefix}: a page repeats keys of the one before")
            found.add(page.objects)
            token = page.token
            if token is None:
                return
            if not page.objects:
                raise Untrusted(f"listing {bucket}/{prefix}: an empty page that is not the last")
            last = page.objects[-1].key
        raise Untrusted(f"listing {bucket}/{prefix}: more than {PAGES} pages")


def _is_short(series: Series, count: int, size: int) -> bool:
    """Whether a listing has fewer instances than the index, or fewer bytes if that has no number of instances."""
    if series.instances:
        return count < series.instances
    # The index has megabytes with two decimals, from the time when the series was current.
    return size + 10_000 < series.size * 0.95


class _Instances:
    """The instances in a series' *folder*, from pages in any order; columns, as the largest has 91,980."""

    def __init__(self, folder: str) -> None:
        self.sizes = array("Q")
        self._folder = folder
        self._names: list[bytes] = []
        self._modified = array("q")
        self._etags: list[bytes] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, objects: list[ObjectInfo]) -> None:
        """Add those of a page that are instances.

        Other objects (a folder's marker) are left out.

        Raises:
            Untrusted: a key is no name of an instance.
        """
        for info in objects:
            name = info.key.removeprefix(self._folder)
            # A control character in a name would reach terminals, or break a line in a list of files.
            if name == info.key or "/" in name or name != printable(name) or len(name.encode()) > 255:
                raise Untrusted(f"listing {self._folder}: {name!r} is no name of an instance")
            encoded = name.encode()
            if may_be_instance(encoded):
                self._names.append(encoded)
                self.sizes.append(info.size)
                self._modified.append(info.modified_ns)
                self._etags.append(info.etag.encode())

    def check(self) -> None:
        """Raise `Untrusted` if an instance is listed twice."""
        if len(set(self._names)) < len(self._names):
            raise Untrusted(f"listing {self._folder}: an instance is listed twice")

    def batch(self, bucket: str) -> pa.RecordBatch:
        """The columns, in the order of names, and the bucket that they were found in."""
        # S3 lists in the order of UTF-8 bytes; a binary search later relies on the order, so it is not trusted.
        order = sorted(range(len(self)), key=self._names.__getitem__)
        columns: list[Sequence[bytes] | Sequence[int]] = [self._names, self.sizes, self._modified, self._etags]
        arrays = [
            pa.array(map(column.__getitem__, order), kind, size=len(order))
            for column, kind in zip(columns, _SCHEMA.types, strict=True)
        ]
        return pa.record_batch(arrays, schema=_SCHEMA.with_metadata({"bucket": bucket}))


def _listing(batch: pa.RecordBatch) -> Listing:
    bucket = batch.schema.metadata[b"bucket"].decode()
    return Listing(bucket, *(column_of(array) for array in batch.columns))  # type: ignore[arg-type]  # by _SCHEMA


def _pack(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]  # pyarrow ships no types


def _unpack(kept: bytes) -> Listing | None:
    try:
        with pa.ipc.open_stream(pa.py_buffer(kept)) as reader:
            return _listing(reader.read_next_batch())
    except (pa.ArrowException, KeyError, StopIteration, ValueError, TypeError, AttributeError):
        return None
