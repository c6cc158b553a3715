"""The folder `cohorts/` and what is directly in it: looked up, listed, read and written; belongs to the event loop.

    cohorts/<name>/          the first level of the cohort's view
    cohorts/<name>/.query    its text; writing it defines the cohort
    cohorts/<name>/.error    what is wrong with it, while something is
    cohorts/<name>/.summary  what is in it

The three files are found by name and listed nowhere, so tools that walk the tree see series only. Nothing in here is
permanent: the kernel asks again each time. What is deeper belongs to a view, as everywhere.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial

from idcfs import layout
from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.cohorts.folder import check_name
from idcfs.cohorts.registry import Cohort, Cohorts
from idcfs.cohorts.text import MAX_TEXT
from idcfs.errors import NameRefused, NameTooLong, NotFound, NotThereNow, QueryTooLong, ReadOnly
from idcfs.inode import Facet, FileAddress, FolderAddress, pack_folder
from idcfs.node import Node
from idcfs.tree.provider import Entries, MadeFile, OpenFile, Provider, fixed
from idcfs.tree.views import Views

COHORTS_NAME = layout.COHORTS.encode()
COHORTS = FolderAddress(MAIN_GENERATION, 0, 0, Facet.COHORTS)


class CohortsFolder(Provider[FolderAddress]):
    """The provider of `cohorts/`."""

    def __init__(self, cohorts: Cohorts, catalogue: Catalogue) -> None:
        self._cohorts = cohorts
        self._catalogue = catalogue
        self._changed_ns = time.time_ns()

    def node(self) -> Node:
        """What is known of `cohorts/`."""
        return Node(pack_folder(*COHORTS), True, 2, 0, self._changed_ns, permanent=False, writable=True)

    async def attributes(self, address: FolderAddress) -> Node:
        return self.node()

    async def lookup(self, folder: FolderAddress, name: bytes) -> Node:
        try:
            text = check_name(name)
        except (NameRefused, NameTooLong) as error:
            raise NotThereNow(f"no cohort can be called {name!r}") from error
        return _node(self._catalogue, await self._cohorts.find(text))

    async def entries(self, folder: FolderAddress) -> Entries:
        cohorts = await self._cohorts.all()
        return fixed(pack_folder(*folder), [(one.name.encode(), _node(self._catalogue, one)) for one in cohorts])

    async def create(self, folder: FolderAddress, name: bytes) -> Node:
        cohort = await self._cohorts.create(check_name(name))
        self._changed_ns = cohort.stamp.modified_ns
        return _node(self._catalogue, cohort)

    async def delete(self, folder: FolderAddress, name: bytes) -> None:
        await self._cohorts.delete((await self._cohorts.find(check_name(name))).number)

    async def rename(
        self, folder: FolderAddress, old: bytes, new_folder: FolderAddress | FileAddress, new: bytes
    ) -> None:
        if new_folder != COHORTS:
            raise ReadOnly("a cohort stays in the folder of cohorts")
        cohort = await self._cohorts.find(check_name(old))
        if old != new:
            await self._cohorts.rename(cohort.number, check_name(new))


class CohortFolder(Provider[FolderAddress]):
    """The provider of the folder of a cohort, whose number is the address's group.

    Attributes:
        files: the names, facets and providers of the files in it.
    """

    def __init__(self, cohorts: Cohorts, catalogue: Catalogue, views: Views) -> None:
        self._cohorts = cohorts
        self._catalogue = catalogue
        self._views = views
        self.files: dict[bytes, tuple[Facet, Provider[FolderAddress]]] = {
            b".query": (Facet.QUERY, Query(cohorts)),
            b".error": (Facet.ERROR, MadeFile(partial(_made, cohorts, cohorts.remarks))),
            b".summary": (Facet.SUMMARY, MadeFile(partial(_made, cohorts, cohorts.summary))),
        }

    async def attributes(self, address: FolderAddress) -> Node:
        return _node(self._catalogue, await self._cohorts.get(address.group))

    async def lookup(self, folder: FolderAddress, name: bytes) -> Node:
        if name in self.files:
            facet, file = self.files[name]
            return await file.attributes(folder._replace(facet=facet))
        shown = await self._shown(folder)
        if shown is None:
            raise NotThereNow("this cohort shows nothing")
        try:
            return (await self._views.lookup(shown, name))._replace(permanent=False)
        except NotFound as error:
            raise NotThereNow(*error.args) from None

    async def entries(self, folder: FolderAddress) -> Entries:
        shown = await self._shown(folder)
        return fixed(pack_folder(*folder), []) if shown is None else await self._views.entries(shown)

    async def _shown(self, folder: FolderAddress) -> FolderAddress | None:
        """The root of the view that a cohort shows now, or None if it shows none; waits for its query."""
        cohort = await self._cohorts.get(folder.group)
        await self._cohorts.evaluated(cohort)
        return None if cohort.generation is None else FolderAddress(cohort.generation, 0, 0)


class Query(MadeFile):
    """The provider of the text of a cohort."""

    def __init__(self, cohorts: Cohorts) -> None:
        super().__init__(partial(_made, cohorts, _text))
        self._cohorts = cohorts
        self._drafts: list[Draft] = []

    async def attributes(self, address: FolderAddress) -> Node:
        # While somebody writes, the size is that of what was written.
        node = (await super().attributes(address))._replace(writable=True)
        drafts = (draft for draft in reversed(self._drafts) if draft.number == address.group and draft.is_changed)
        draft = next(drafts, None)
        return node if draft is None else node._replace(size=draft.size)

    async def draft(self, file: FolderAddress, append: bool, truncate: bool) -> OpenFile:
        return Draft(self._cohorts, await self._cohorts.get(file.group), append, truncate, self._drafts)

    async def resize(self, file: FolderAddress, size: int) -> None:
        cohort = await self._cohorts.get(file.group)
        await self._cohorts.write(file.group, _resized(await _text(cohort), size))


class Draft(OpenFile):
    """What somebody writes into a query, until it is closed.

    Args:
        append: whether all that is written goes to the end.
        truncate: whether it begins empty.
        drafts: those that are open, of all queries; this is added to them, and removed when it is closed.
    """

    def __init__(self, cohorts: Cohorts, cohort: Cohort, append: bool, truncate: bool, drafts: list["Draft"]) -> None:
        super().__init__(self._read)
        self.number = cohort.number
        self._cohorts = cohorts
        self._drafts = drafts
        drafts.append(self)
        self._text = bytearray(b"" if truncate else cohort.text or b"")
        self._append = append
        # Where what was appended and is not kept yet begins; None if the text is kept as a whole.
        self._appended_from = len(self._text) if append and not truncate else None
        # Cut, and not written to since. That counts when the file is closed for good: shells close a copy first.
        self._cut = truncate
        self._written = False
        self._too_long = False

    @property
    def is_changed(self) -> bool:
        """Whether there is something to keep."""
        return (self._written or self._cut) and not self._too_long

    @property
    def size(self) -> int:
        """Bytes of the text as it is written now."""
        return len(self._text)

    def write(self, offset: int, data: bytes) -> int:
        if self._append:
            # The kernel may remember an older end.
            offset = len(self._text)
        if max(offset + len(data), len(self._text)) > MAX_TEXT:
            # A part of the new text is worse than the old one.
            self._too_long = True
            self._text.clear()
        if self._too_long:
            raise _too_long()
        self._text.extend(bytes(max(0, offset - len(self._text))))
        self._text[offset : offset + len(data)] = data
        self._written = True
        return len(data)

    def resize(self, size: int) -> None:
        self._text = bytearray(_resized(bytes(self._text), size))
        self._cut, self._appended_from = True, None

    async def flush(self) -> None:
        """Keep and evaluate what was written since the last time; waits until it is known to be sound.

        Raises:
            QueryRefused: it is kept, and does not work.
            QueryTooLong: some of it did not fit, so nothing of it is kept.
            NoSpace, NotThereNow: it cannot be kept.
        """
        if self._too_long:
            raise _too_long()
        if self._written:
            await self._keep()

    async def close(self) -> None:
        """Keep the text if all that was done is to cut it; waits and raises as `flush`."""
        self._drafts.remove(self)
        if self.is_changed:
            await self._keep()

    async def _keep(self) -> None:
        self._written = self._cut = False
        first = self._appended_from
        if first is not None:
            self._appended_from = len(self._text)
        await self._cohorts.write(self.number, bytes(self._text[first:]), append=first is not None)

    async def _read(self, offset: int, length: int) -> bytes:
        return bytes(self._text[offset : offset + length])


async def _made(
    cohorts: Cohorts, content: Callable[[Cohort], Awaitable[bytes | None]], file: FolderAddress
) -> tuple[bytes | None, int]:
    """Return what *content* makes for the cohort that *file* is of, and the time of its text; for `MadeFile`."""
    cohort = await cohorts.get(file.group)
    return await content(cohort), cohort.stamp.modified_ns


async def _text(cohort: Cohort) -> bytes:
    return cohort.text or b""


def _resized(text: bytes, size: int) -> bytes:
    """*text* cut, or lengthened with NUL, to *size* bytes."""
    if size > MAX_TEXT:
        raise _too_long()
    return text[:size].ljust(size, b"\0")


def _too_long() -> QueryTooLong:
    return QueryTooLong(f"a query has at most {MAX_TEXT:,} bytes")


def _node(catalogue: Catalogue, cohort: Cohort) -> Node:
    number = pack_folder(MAIN_GENERATION, 0, cohort.number, Facet.COHORT)
    view = None if cohort.generation is None else catalogue.view(cohort.generation)
    # One link means that the number of folders is not known; counting them is not worth an evaluation.
    links = 1 if view is None else 2 + len(view.children(0, 0))
    return Node(number, True, links, 0, cohort.stamp.modified_ns, permanent=False)
