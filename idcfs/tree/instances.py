"""The instances of series: looked up, listed and opened to be read; belongs to the event loop.

What is in a series comes from its listing, and the bytes of an instance from a reader: both may wait for the network.
"""

import functools
from collections.abc import Sequence

from idcfs.catalog.catalogue import Catalogue
from idcfs.errors import NotFound
from idcfs.inode import FileAddress, FolderAddress, pack_file, pack_folder
from idcfs.node import Node
from idcfs.reading.listings import Listing, Listings, may_be_instance
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.tree.provider import ENTRIES_AT_ONCE, Entries, Entry, OpenFile, Provider


class Instances(Provider[FileAddress]):
    """The provider of instances; `Views` has the folder of a series answered by it, too.

    Args:
        order: notes in which order series are met, for what is listed and fetched ahead.
    """

    def __init__(self, catalogue: Catalogue, listings: Listings, reader: Reader, order: SeriesOrder) -> None:
        self._catalogue = catalogue
        self._listings = listings
        self._reader = reader
        self._order = order

    async def attributes(self, address: FileAddress) -> Node:
        if address.series >= self._catalogue.series_rows:
            raise NotFound(f"there is no series {address.series}")
        listing = await self._listings.get(address.series)
        if address.instance >= len(listing):
            raise NotFound(f"series {self._listings.uuid(address.series)} has no instance {address.instance}")
        return _node(listing, *address)

    async def content(self, file: FileAddress) -> OpenFile:
        self._reader.open(*file)
        return OpenFile(functools.partial(self._reader.read, *file), permanent=True)

    async def extended(self, address: FileAddress) -> dict[str, object]:
        listing = await self._listings.get(address.series)
        uuid, name = self._listings.uuid(address.series), listing.names[address.instance].decode()
        etag = listing.etags[address.instance].decode()
        return {"bucket": listing.bucket, "key": f"{uuid}/{name}", "etag": etag}

    def is_of_mirror(self, address: FileAddress, name: bytes | None = None) -> bool:
        return True

    async def find(self, series: int, folder: FolderAddress, name: bytes) -> Node:
        """The instance called *name* in *folder*, which is the one of *series*; waits and raises as `attributes`."""
        if not may_be_instance(name):
            raise NotFound(f"no instance is called {name!r}")
        self._order.met(series, folder.generation, folder.group)
        listing = await self._listings.get(series)
        instance = listing.find(name)
        if instance is None:
            raise NotFound(f"series {self._listings.uuid(series)} has no instance {name!r}")
        return _node(listing, series, instance)

    async def all(self, series: int, folder: FolderAddress) -> Entries:
        """What is in *folder*, which is the one of *series*; waits and raises as `attributes`."""
        for ahead in self._order.entered(series, folder.generation, folder.group):
            # Each starts when this waits for its own.
            self._listings.begin(ahead)
        await self._listings.get(series)
        return Entries(pack_folder(*folder), functools.partial(self._page, series))

    async def _page(self, series: int, start: int) -> Sequence[Entry]:
        listing = self._listings.peek(series) or await self._listings.get(series)
        stop = min(start + ENTRIES_AT_ONCE, len(listing))
        return [(listing.names[at], _node(listing, series, at)) for at in range(start, stop)]


def _node(listing: Listing, series: int, instance: int) -> Node:
    return Node(pack_file(series, instance), False, 1, listing.sizes[instance], listing.modified[instance])
