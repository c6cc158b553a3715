"""The file system without FUSE: look up, list, read, write; belongs to the event loop.

Folders of views are answered from the catalogue without waiting. Only a series' folder (its listing), the
bytes of files, what has to be built first (an earlier version's view) and cohorts may wait.
"""

import datetime
import itertools
from typing import NamedTuple

from idcfs.cache.format import Buffer
from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.catalog.temporary import FIRST_GENERATION
from idcfs.catalog.view import View
from idcfs.cohorts.files import COHORTS_NAME, CohortFiles, Entry
from idcfs.cohorts.registry import Cohorts
from idcfs.errors import IsAFolder, NoSuchAttribute, NotAFolder, NotFound, NotThereNow
from idcfs.inode import Facet, FileAddress, FolderAddress, generation_of, pack_file, pack_folder, unpack
from idcfs.metrics import Metrics
from idcfs.node import Node
from idcfs.reading.listings import Listing, Listings, may_be_instance
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.tree.control import CONTROL_NAME, Control

ENTRIES_AT_ONCE = 32
"""Entries made for one answer to a listing: the kernel's buffer of one page holds 15 to 25."""

XATTR_PREFIX = "user.idc."

_COHORT_FACETS = frozenset({Facet.COHORTS, Facet.COHORT, Facet.QUERY, Facet.ERROR, Facet.SUMMARY})
_FOLDER_FACETS = frozenset(
    {Facet.FOLDER, Facet.CONTROL, Facet.VERSIONS, Facet.ANALYSIS_RESULTS, Facet.COHORTS, Facet.COHORT}
)
_ROOT = FolderAddress(MAIN_GENERATION, 0, 0)


class Totals(NamedTuple):
    """The size of everything: bytes and files of the index."""

    size: int
    files: int


class FileSystem:
    """The tree, its files and their bytes; `cohort_files` takes what is written."""

    def __init__(
        self,
        catalogue: Catalogue,
        listings: Listings,
        reader: Reader,
        control: Control,
        cohorts: Cohorts,
        order: SeriesOrder,
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._listings = listings
        self._reader = reader
        self._control = control
        self._order = order
        self._metrics = metrics
        self._released: dict[int, int] = {}
        self._contents: dict[int, bytes] = {}
        self._listed: dict[int, list[Entry]] = {}
        # Most handles are inode numbers, so nothing is kept for them; 1 is the root's, and others are far larger.
        self._handles = itertools.count(2)
        self._cohorts = cohorts
        self.cohort_files = CohortFiles(cohorts, catalogue, self._handles)

    async def lookup(self, parent: int, name: bytes) -> Node:
        """What has *name* in the folder *parent*. Waits for the network in a series' folder only, for an instance.

        Raises:
            NotFound: nothing has.
            ReadError: the series cannot be listed.
        """
        address = self._folder(parent)
        if address.facet in _COHORT_FACETS:
            return await self._lookup_cohort(address, name)
        if address.facet != Facet.FOLDER:
            return await self._lookup_control(address, name)
        if name == CONTROL_NAME:
            return self._special_folder(address._replace(facet=Facet.CONTROL))
        if name == COHORTS_NAME and address == _ROOT:
            return self.cohort_files.root()
        view = await self._view(address)
        if address.level == view.depth:
            if not may_be_instance(name):
                raise NotFound(f"no instance is called {name!r}")
            row = view.series_row(address.group)
            self._order.met(row, address.generation, address.group)
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
        if address.facet in _COHORT_FACETS:
            return await self.cohort_files.getattr(address)
        return await self._control_node(address)

    async def open_folder(self, inode: int) -> int:
        """A handle to list a folder by. May wait for a series' listing, or a cohort's query.

        Raises:
            NotAFolder: *inode* is a file.
            ReadError: the series cannot be listed.
        """
        address = self._folder(inode)
        if address.facet in _COHORT_FACETS:
            return await self._open_cohort(address)
        if address.facet == Facet.FOLDER:
            view = await self._view(address)
            if address.level == view.depth:
                row = view.series_row(address.group)
                for ahead in self._order.entered(row, address.generation, address.group):
                    # Each starts when this waits for its own.
                    self._listings.begin(ahead)
                await self._listings.get(row)
        self.remember(inode)
        return inode

    def is_of_mirror(self, inode: int, name: bytes | None = None) -> bool:
        """Whether a mirror may have to be asked for what is in a folder, or has *name* there, or for a file's bytes."""
        address = self._unpack(inode)
        if isinstance(address, FileAddress):
            return True
        if name is not None and not may_be_instance(name):
            return False
        view = self._catalogue.view(address.generation)
        return address.facet == Facet.FOLDER and view is not None and address.level == view.depth

    def release_folder(self, handle: int) -> None:
        """Forget a handle of a folder."""
        self._listed.pop(handle, None)
        self.forget(handle)

    def remember(self, inode: int, times: int = 1) -> None:
        """Count that the kernel, or an open folder, refers to an inode number."""
        generation = generation_of(inode)
        if generation >= FIRST_GENERATION:
            self._catalogue.temporary.hold(generation, times)

    def forget(self, inode: int, times: int = 1) -> None:
        """Count that fewer refer to an inode number; a cohort's view goes with the last."""
        generation = generation_of(inode)
        if generation >= FIRST_GENERATION:
            self._catalogue.temporary.release(generation, times)

    async def entries(self, handle: int, start: int) -> list[tuple[bytes, Node]]:
        """Up to `ENTRIES_AT_ONCE` entries of a folder from the one numbered *start* on; fewer at its end only."""
        listed = self._listed.get(handle)
        if listed is not None:
            return [(name, node) for name, node in listed[start : start + ENTRIES_AT_ONCE]]
        address = self._folder(handle)
        if address.facet != Facet.FOLDER:
            entries = self._control.entries(address)[start : start + ENTRIES_AT_ONCE]
            return [(name, await self._control_node(found)) for name, found in entries]
        view = await self._view(address)
        if address.level == view.depth:
            row = view.series_row(address.group)
            listing = self._listings.peek(row) or await self._listings.get(row)
            stop = min(start + ENTRIES_AT_ONCE, len(listing))
            return [(listing.names[at], _instance(listing, row, at)) for at in range(start, stop)]
        children = view.children(address.level, address.group)
        groups = children[start : start + ENTRIES_AT_ONCE]
        level = address.level + 1
        released = self._release_time(address.generation)
        # After all others, so that their numbers stay those of their groups.
        is_end = start <= len(children) < start + ENTRIES_AT_ONCE
        last = [(COHORTS_NAME, self.cohort_files.root())] if address == _ROOT and is_end else []
        if not groups:
            return last
        # The groups of a run are numbered one after the other, and so are their inodes.
        first = pack_folder(address.generation, level, groups.start)
        numbers = range(first, first + len(groups))
        counts = view.child_counts(level, groups)
        permanent = _is_permanent(address.generation, level)
        nodes = (
            Node(number, True, 2 + count, 0, released, permanent) for number, count in zip(numbers, counts, strict=True)
        )
        return [*zip(view.names(level, groups), nodes, strict=True), *last]

    async def open(self, inode: int) -> int:
        """A handle to read a file by.

        Raises:
            IsAFolder: *inode* is a folder.
            ReadError: what the file says about idcfs cannot be made.
        """
        address = self._unpack(inode)
        if isinstance(address, FileAddress):
            self._reader.open(address.series, address.instance)
        if isinstance(address, FolderAddress):
            if address.facet in _FOLDER_FACETS:
                raise IsAFolder("a folder is not read as a file")
            files: Control | CohortFiles = self.cohort_files if address.facet in _COHORT_FACETS else self._control
            content = await files.content(address)
            handle = next(self._handles)
            self._contents[handle] = content
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
        drafted = self.cohort_files.read(handle, offset, length)
        if drafted is not None:
            return drafted
        address = unpack(handle)
        assert isinstance(address, FileAddress)
        return await self._reader.read(address.series, address.instance, offset, length)

    async def release(self, handle: int) -> None:
        """Forget a handle of a file.

        Raises:
            QueryRefused: it was a query's, and what was left of it does not work.
        """
        if self.cohort_files.is_draft(handle):
            await self.cohort_files.release(handle)
        else:
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
        """Build the catalogue and the cohorts again, after something turned out damaged; takes seconds."""
        await self._catalogue.repair()
        await self._cohorts.repair()

    async def _lookup_cohort(self, parent: FolderAddress, name: bytes) -> Node:
        if parent.facet == Facet.COHORTS:
            return await self.cohort_files.lookup(name)
        found = await self.cohort_files.lookup_file(parent.group, name)
        if found is not None:
            return found
        generation = await self.cohort_files.generation(parent.group)
        if generation is None:
            raise NotThereNow("this cohort shows nothing")
        address = FolderAddress(generation, 0, 0)
        if name == CONTROL_NAME:
            return self._special_folder(address._replace(facet=Facet.CONTROL))._replace(permanent=False)
        view = await self._view(address)
        group = view.find(0, 0, name)
        if group is None:
            raise NotThereNow(f"no folder {name!r} here")
        return self._view_folder(view, generation, 1, group)

    async def _open_cohort(self, address: FolderAddress) -> int:
        """A handle to list `cohorts/` or a cohort by: what is there now, whatever comes."""
        if address.facet == Facet.COHORT:
            generation = await self.cohort_files.generation(address.group)
            if generation is not None:
                handle = pack_folder(generation, 0, 0)
                self.remember(handle)
                return handle
            entries = []
        else:
            entries = await self.cohort_files.entries()
        handle = next(self._handles)
        self._listed[handle] = entries
        return handle

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
        permanent = _is_permanent(generation, level)
        if (generation, level) == (MAIN_GENERATION, 0):
            inside += 1  # the cohorts
        return Node(
            pack_folder(generation, level, group), True, 2 + inside, 0, self._release_time(generation), permanent
        )

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


def _is_permanent(generation: int, level: int) -> bool:
    """Whether a folder is what its name will always mean; what is directly in a cohort is not."""
    return level != 1 or generation < FIRST_GENERATION


def _instance(listing: Listing, row: int, instance: int) -> Node:
    return Node(pack_file(row, instance), False, 1, listing.sizes[instance], listing.modified[instance])
