"""The folder `cohorts/` and what is directly in it: looked up, listed, read and written; belongs to the event loop.

    cohorts/<name>/          the first level of the cohort's view
    cohorts/<name>/.query    its text; writing it defines the cohort
    cohorts/<name>/.error    what is wrong with it, while something is
    cohorts/<name>/.summary  what is in it

The three files are reachable by name and listed nowhere, so tools that walk the tree see series only. Nothing in
here is permanent: the kernel asks again each time. What is deeper belongs to a view, as everywhere.
"""

import itertools
import time
from typing import NamedTuple

from idcfs import layout
from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.cohorts.folder import check_name
from idcfs.cohorts.registry import Cohort, Cohorts
from idcfs.cohorts.text import MAX_TEXT
from idcfs.errors import NameRefused, NameTooLong, NotThereNow, QueryTooLong, ReadOnly
from idcfs.inode import Facet, FileAddress, FolderAddress, pack_folder, unpack
from idcfs.node import Node

COHORTS_NAME = layout.COHORTS.encode()
COHORTS = FolderAddress(MAIN_GENERATION, 0, 0, Facet.COHORTS)

_TOO_LONG = f"a query has at most {MAX_TEXT:,} bytes"

_FILES = {b".query": Facet.QUERY, b".error": Facet.ERROR, b".summary": Facet.SUMMARY}


class Entry(NamedTuple):
    """A name in `cohorts/`."""

    name: bytes
    node: Node


class _Draft:
    """What somebody writes into a query, until it is closed."""

    def __init__(self, number: int, text: bytes, appending: bool, truncated: bool) -> None:
        self.number = number
        self.text = bytearray(b"" if truncated else text)
        self.appending = appending
        self.appended = bytearray()
        # Cut, and not written to since: that counts when the file is let go of, as shells close a copy first.
        self.cut = truncated
        self.only_appended = appending and not truncated
        self.written = False
        self.too_long = False

    def write(self, offset: int, data: bytes) -> None:
        if self.appending:
            # Where the end is, is known here; the kernel may remember an older one.
            offset = len(self.text)
        if max(offset + len(data), len(self.text)) > MAX_TEXT:
            # A part of what was meant is worse than what there was.
            self.too_long = True
            self.text.clear()
        if self.too_long:
            raise QueryTooLong(_TOO_LONG)
        self.text.extend(bytes(max(0, offset - len(self.text))))
        self.text[offset : offset + len(data)] = data
        if self.only_appended:
            self.appended += data
        self.written = True

    def resize(self, size: int) -> None:
        self.text = bytearray(resized(bytes(self.text), size))
        self.cut, self.only_appended = True, False


class CohortFiles:
    """The files and folders of the cohorts.

    Args:
        handles: gives numbers to what is opened, shared with other open files.
    """

    def __init__(self, cohorts: Cohorts, catalogue: Catalogue, handles: "itertools.count[int]") -> None:
        self._cohorts = cohorts
        self._catalogue = catalogue
        self._handles = handles
        self._drafts: dict[int, _Draft] = {}
        self._changed_ns = time.time_ns()

    def root(self) -> Node:
        """`cohorts/` itself."""
        number = pack_folder(*COHORTS)
        return Node(number, True, 2, 0, self._changed_ns, permanent=False, writable=True)

    async def lookup(self, name: bytes) -> Node:
        """The cohort called *name*.

        Raises:
            NotThereNow: there is none.
        """
        try:
            text = check_name(name)
        except (NameRefused, NameTooLong) as error:
            raise NotThereNow(f"no cohort can be called {name!r}") from error
        return self._node(await self._cohorts.find(text))

    async def lookup_file(self, number: int, name: bytes) -> Node | None:
        """One of a cohort's own files, or None if *name* is none of theirs. May wait for its query.

        Raises:
            NotThereNow: it is one of theirs, and there is nothing in it.
        """
        facet = _FILES.get(name)
        return None if facet is None else await self.getattr(FolderAddress(MAIN_GENERATION, 0, number, facet))

    async def getattr(self, address: FolderAddress) -> Node:
        """What is told of a cohort or one of its files. May wait for its query.

        Raises:
            NotThereNow: it is gone.
        """
        if address.facet == Facet.COHORTS:
            return self.root()
        cohort = await self._cohorts.get(address.group)
        if address.facet == Facet.COHORT:
            return self._node(cohort)
        if address.facet == Facet.QUERY:
            draft = next((d for d in reversed(self._drafts.values()) if d.number == cohort.number and _open(d)), None)
            size = len((cohort.text or b"") if draft is None else draft.text)
        else:
            size = len(await self.content(address))
        is_query = address.facet == Facet.QUERY
        modified = cohort.stamp.modified_ns
        return Node(pack_folder(*address), False, 1, size, modified, permanent=False, writable=is_query)

    async def content(self, address: FolderAddress) -> bytes:
        """The bytes of one of a cohort's files. May wait for its query.

        Raises:
            NotThereNow: there is nothing in it.
        """
        cohort = await self._cohorts.get(address.group)
        match address.facet:
            case Facet.QUERY:
                return cohort.text or b""
            case Facet.ERROR:
                found = await self._cohorts.remarks(cohort)
            case _:
                found = await self._cohorts.summary(cohort)
        if found is None:
            raise NotThereNow(f"cohort {cohort.name} has nothing to say here")
        return found

    async def entries(self) -> list[Entry]:
        """What is in `cohorts/`."""
        return [Entry(cohort.name.encode(), self._node(cohort)) for cohort in await self._cohorts.all()]

    async def generation(self, number: int) -> int | None:
        """The generation of the view that a cohort shows, None if it shows none. May wait for its query.

        Raises:
            NotThereNow: the cohort is gone.
            DeadlineExceeded: its query takes too long.
        """
        cohort = await self._cohorts.get(number)
        await self._cohorts.evaluated(cohort)
        return cohort.generation

    async def create(self, parent: int, name: bytes) -> Node:
        """Make a cohort with an empty query.

        Raises:
            ReadOnly: *parent* is not the folder of cohorts.
            NameRefused, NameTooLong, AlreadyThere, NoSpace: it cannot be.
        """
        _check_is_root(parent)
        cohort = await self._cohorts.create(check_name(name))
        self._changed_ns = cohort.stamp.modified_ns
        return self._node(cohort)

    async def delete(self, parent: int, name: bytes) -> None:
        """Remove a cohort.

        Raises:
            ReadOnly: *parent* is not the folder of cohorts.
            NotThereNow: there is none.
        """
        _check_is_root(parent)
        await self._cohorts.delete((await self._cohorts.find(check_name(name))).number)

    async def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes) -> None:
        """Give a cohort another name.

        Raises:
            ReadOnly: it is not a cohort, or is to leave their folder.
            NotThereNow, NameRefused, NameTooLong, AlreadyThere: it cannot be.
        """
        _check_is_root(old_parent)
        _check_is_root(new_parent)
        cohort = await self._cohorts.find(check_name(old))
        if old != new:
            await self._cohorts.rename(cohort.number, check_name(new))

    async def open_draft(self, inode: int, append: bool, truncate: bool) -> int:
        """Open a query to write it; returns a handle.

        Raises:
            ReadOnly: *inode* is no query.
        """
        cohort = await self._cohorts.get(_query(inode))
        handle = next(self._handles)
        self._drafts[handle] = _Draft(cohort.number, cohort.text or b"", append, truncate)
        return handle

    def is_draft(self, handle: int) -> bool:
        """Whether a handle is of a query that is open to be written."""
        return handle in self._drafts

    def read(self, handle: int, offset: int, length: int) -> bytes | None:
        """Bytes of what is being written, None if *handle* is no draft's."""
        draft = self._drafts.get(handle)
        return None if draft is None else bytes(draft.text[offset : offset + length])

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write into a draft; returns how many bytes.

        Raises:
            ReadOnly: it was opened to be read.
            QueryTooLong: it gets too long.
        """
        draft = self._drafts.get(handle)
        if draft is None:
            raise ReadOnly("opened to be read only")
        draft.write(offset, data)
        return len(data)

    async def resize(self, inode: int, handle: int | None, size: int) -> None:
        """Cut or lengthen a query; through a handle, that counts when the file is closed.

        Raises:
            ReadOnly: *inode* is no query.
            QueryTooLong: it gets too long.
            QueryRefused: what is left does not work.
        """
        number = _query(inode)
        if size > MAX_TEXT:
            raise QueryTooLong(_TOO_LONG)
        draft = self._drafts.get(handle) if handle is not None else None
        if draft is not None:
            draft.resize(size)
            return
        cohort = await self._cohorts.get(number)
        await self._cohorts.write(number, resized(cohort.text or b"", size))

    async def flush(self, handle: int) -> None:
        """Keep and evaluate what was written since the last time; waits until it is known to be sound.

        Raises:
            QueryRefused: it is kept, and does not work.
            QueryTooLong: some of it did not fit, so nothing of it is kept.
            NoSpace, NotThereNow: it cannot be kept.
        """
        draft = self._drafts.get(handle)
        if draft is None:
            return
        if draft.too_long:
            raise QueryTooLong(_TOO_LONG)
        if draft.written:
            await self._keep(draft)

    async def release(self, handle: int) -> None:
        """Forget a draft, and keep it if all that was done is to cut it.

        Raises:
            As `flush`.
        """
        draft = self._drafts.pop(handle)
        if _open(draft):
            await self._keep(draft)

    async def _keep(self, draft: _Draft) -> None:
        draft.written = draft.cut = False
        if draft.only_appended:
            appended, draft.appended = bytes(draft.appended), bytearray()
            await self._cohorts.write(draft.number, appended, append=True)
        else:
            await self._cohorts.write(draft.number, bytes(draft.text))

    def _node(self, cohort: Cohort) -> Node:
        number = pack_folder(MAIN_GENERATION, 0, cohort.number, Facet.COHORT)
        view = None if cohort.generation is None else self._catalogue.view(cohort.generation)
        # One link means that the number of folders is not known; counting them is not worth an evaluation.
        links = 1 if view is None else 2 + len(view.children(0, 0))
        return Node(number, True, links, 0, cohort.stamp.modified_ns, permanent=False)


def resized(text: bytes, size: int) -> bytes:
    """*text* cut, or lengthened with NUL, to *size* bytes."""
    return text[:size].ljust(size, b"\0")


def _check_is_root(inode: int) -> None:
    if inode != pack_folder(*COHORTS):
        raise ReadOnly("idcfs is read-only but for cohorts")


def _query(inode: int) -> int:
    """The number of the cohort whose query an inode number is of."""
    address = unpack(inode)
    if isinstance(address, FileAddress) or address.facet != Facet.QUERY:
        raise ReadOnly("idcfs is read-only but for the queries of cohorts")
    return address.group


def _open(draft: _Draft) -> bool:
    return (draft.written or draft.cut) and not draft.too_long
