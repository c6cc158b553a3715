"""The file system without FUSE: look up, list, read; belongs to the event loop.

Folders of views are answered from the catalogue without waiting. Only a series' folder (its listing), the
bytes of files, and what has to be built first (an earlier version's view) may wait.
"""

import datetime
import itertools
from typing import NamedTuple

from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.catalog.view import View
from idcfs.control import CONTROL_NAME, Control
from idcfs.errors import IsAFolder, NoSuchAttribute, NotAFolder, NotFound
from idcfs.inode import Facet, FileAddress, FolderAddress, pack_file, pack_folder, unpack
from idcfs.listing import Listing, Listings
from idcfs.metrics import Metrics
from idcfs.reader import Buffer, Reader

ENTRIES_AT_ONCE = 32
"""Entries made for one answer to a listing: the kernel's buffer of one page holds 15 to 25."""

XATTR_PREFIX = "user.idc."

_FOLDER_FACETS = frozenset({Facet.FOLDER, Facet.CONTROL, Facet.VERSIONS, Facet.ANALYSIS_RESULTS})


class Node(NamedTuple):
    """What is told about a file or folder. Sizes are in bytes, times in nanoseconds since the epoch.

    What is not `permanent` may be another thing the next time it is asked for.
    """

    inode: int
    is_folder: bool
    links: int
    size: int
    modified_ns: int
    permanent: bool = True


class Totals(NamedTuple):
    """The size of everything: bytes and files of the index."""

    size: int
    files: int


class FileSystem:
    """The tree, its files and their bytes."""

    def __init__(
        self, catalogue: Catalogue, listings: Listings, reader: Reader, control: Control, metrics: Metrics
    ) -> None:
        self._catalogue = catalogue
        self._listings = listings
        self._reader = reader
        self._control = control
        self._metrics = metrics
        self._released: dict[int, int] = {}
        self._contents: dict[int, bytes] = {}
        # Handles of control files; those of instances are their inode numbers, which are far larger.
        self._handles = itertools.count()

    async def lookup(self, parent: int, name: bytes) -> Node:
        """What has *name* in the folder *parent*. Waits for the network in a series' folder only.

        Raises:
            NotFound: nothing has.
            ReadError: the series cannot be listed.
        """
        address = self._folder(parent)
        if address.facet != Facet.FOLDER:
            return await self._lookup_control(address, name)
        if name == CONTROL_NAME:
            return self._special_folder(address._replace(facet=Facet.CONTROL))
        view = await self._view(address)
        if address.level == view.depth:
            row = view.series_row(address.group)
            listing = await self._listings.get(row)
            instance = listing.find(name)
            if instance is None:
                raise NotFound(f"series {self._listings.uuid(row)} has no instance {name!r}")
            return _instance(listing, row, instance)
        group = view.find(address.level, address.group, name)
        if group is None:
            raise NotFound(f"no folder {name!r} here")
        return self._view_folder(view, address.generation, address.level + 1, group)

    async def getattr(self, inode: int) -> Node:
        """What is told about a file or folder. May wait for a series' listing.

        Raises:
            NotFound: idcfs has no such inode number.
            ReadError: the series cannot be listed.
        """
        address = self._unpack(inode)
        if isinstance(address, FileAddress):
            if address.series >= self._catalogue.series_rows:
                raise NotFound(f"no inode number {inode}")
            listing = await self._listings.get(address.series)
            if address.instance >= len(listing):
                raise NotFound(f"no inode number {inode}")
            return _instance(listing, *address)
        if address.facet == Facet.FOLDER and address.level:
            view = await self._view(address)
            if address.level > view.depth or address.group >= view.groups(address.level):
                raise NotFound(f"no inode number {inode}")
            return self._view_folder(view, address.generation, address.level, address.group)
        return await self._control_node(address)

    async def open_folder(self, inode: int) -> None:
        """Make sure that a folder can be listed. May wait for a series' listing.

        Raises:
            NotAFolder: *inode* is a file.
            ReadError: the series cannot be listed.
        """
        address = self._folder(inode)
        if address.facet == Facet.FOLDER:
            view = await self._view(address)
            if address.level == view.depth:
                await self._listings.get(view.series_row(address.group))

    async def entries(self, inode: int, start: int) -> list[tuple[bytes, Node]]:
        """Up to `ENTRIES_AT_ONCE` entries of a folder from the one numbered *start* on; fewer at its end only."""
        address = self._folder(inode)
        if address.facet != Facet.FOLDER:
            entries = self._control.entries(address)[start : start + ENTRIES_AT_ONCE]
            return [(name, await self._control_node(found)) for name, found in entries]
        view = await self._view(address)
        if address.level == view.depth:
            row = view.series_row(address.group)
            listing = self._listings.peek(row) or await self._listings.get(row)
            stop = min(start + ENTRIES_AT_ONCE, len(listing))
            return [(listing.names[at], _instance(listing, row, at)) for at in range(start, stop)]
        groups = view.children(address.level, address.group)[start : start + ENTRIES_AT_ONCE]
        level = address.level + 1
        released = self._release_time(address.generation)
        if not groups:
            return []
        # The groups of a run are numbered one after the other, and so are their inodes.
        first = pack_folder(address.generation, level, groups.start)
        numbers = range(first, first + len(groups))
        counts = view.child_counts(level, groups)
        nodes = (Node(number, True, 2 + count, 0, released) for number, count in zip(numbers, counts, strict=True))
        return list(zip(view.names(level, groups), nodes, strict=True))

    async def open(self, inode: int) -> int:
        """A handle to read a file by.

        Raises:
            IsAFolder: *inode* is a folder.
            ReadError: what the file says about idcfs cannot be made.
        """
        address = self._unpack(inode)
        if isinstance(address, FolderAddress):
            if address.facet in _FOLDER_FACETS:
                raise IsAFolder("a folder is not read as a file")
            handle = next(self._handles)
            self._contents[handle] = await self._control.content(address)
        else:
            handle = inode
        self._metrics.open_files += 1
        return handle

    async def read(self, handle: int, offset: int, length: int) -> Buffer:
        """Up to *length* bytes of an open file from *offset* on; fewer at its end only. May wait for the network.

        Raises:
            ReadError: the bytes cannot be had.
        """
        content = self._contents.get(handle)
        if content is not None:
            return content[offset : offset + length]
        address = unpack(handle)
        assert isinstance(address, FileAddress)
        return await self._reader.read(address.series, address.instance, offset, length)

    def release(self, handle: int) -> None:
        """Forget a handle."""
        self._contents.pop(handle, None)
        self._metrics.open_files -= 1

    def totals(self) -> Totals:
        """The size of everything, from the index."""
        counts = self._catalogue.counts
        return Totals(counts["bytes"], counts["instances"])

    async def attributes(self, inode: int) -> dict[str, str]:
        """The extended attributes of a file or folder; the first ones of all take seconds.

        Raises:
            ReadError: the series cannot be listed.
        """
        address = self._unpack(inode)
        if isinstance(address, FileAddress):
            listing = await self._listings.get(address.series)
            uuid, name = self._listings.uuid(address.series), listing.names[address.instance].decode()
            etag = listing.etags[address.instance].decode()
            found = {"bucket": listing.bucket, "key": f"{uuid}/{name}", "etag": etag}
        elif address.facet == Facet.FOLDER and address.level:
            found = await self._control.attributes(address)
        else:
            found = {}
        return {XATTR_PREFIX + name: str(value) for name, value in found.items()}

    async def attribute(self, inode: int, name: str) -> str:
        """One extended attribute.

        Raises:
            NoSuchAttribute: the file or folder does not have it.
            ReadError: the series cannot be listed.
        """
        # Tools ask every file for attributes of the system's; only ours are worth a look at the index.
        if name.startswith(XATTR_PREFIX):
            value = (await self.attributes(inode)).get(name)
            if value is not None:
                return value
        raise NoSuchAttribute(name)

    async def repair(self) -> None:
        """Build the catalogue again, after it turned out damaged; takes seconds."""
        await self._catalogue.repair()

    def _unpack(self, inode: int) -> FolderAddress | FileAddress:
        try:
            return unpack(inode)
        except ValueError:
            raise NotFound(f"no inode number {inode}") from None

    def _folder(self, inode: int) -> FolderAddress:
        address = self._unpack(inode)
        if isinstance(address, FileAddress) or address.facet not in _FOLDER_FACETS:
            raise NotAFolder("a file has nothing in it")
        return address

    def _release_time(self, generation: int) -> int:
        if generation not in self._released:
            day = datetime.date.fromisoformat(self._catalogue.release_date(generation))
            midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
            self._released[generation] = int(midnight.timestamp()) * 10**9
        return self._released[generation]

    def _view_folder(self, view: View, generation: int, level: int, group: int) -> Node:
        inside = len(view.children(level, group))
        return Node(pack_folder(generation, level, group), True, 2 + inside, 0, self._release_time(generation))

    async def _view(self, address: FolderAddress) -> View:
        return self._catalogue.view(address.generation) or await self._catalogue.open_view(address.generation)

    def _special_folder(self, address: FolderAddress) -> Node:
        return Node(pack_folder(*address), True, 2, 0, self._release_time(MAIN_GENERATION))

    async def _control_node(self, address: FolderAddress) -> Node:
        if address.facet == Facet.FOLDER:
            # The root of a view that may not be built: looking at the versions must not build them all.
            view = self._catalogue.view(address.generation)
            if view is not None:
                return self._view_folder(view, address.generation, 0, 0)
        if address.facet in _FOLDER_FACETS:
            return self._special_folder(address)
        size = len(await self._control.content(address))
        return Node(pack_folder(*address), False, 1, size, self._release_time(MAIN_GENERATION), permanent=False)

    async def _lookup_control(self, parent: FolderAddress, name: bytes) -> Node:
        for found, address in self._control.entries(parent):
            if found == name:
                return await self._control_node(address)
        raise NotFound(f"no {name!r} in {CONTROL_NAME.decode()}")


def _instance(listing: Listing, row: int, instance: int) -> Node:
    return Node(pack_file(row, instance), False, 1, listing.sizes[instance], listing.modified[instance])
