"""`Provider`: what answers for a part of the tree; belongs to the event loop.

Each part has a provider: the folders of views, instances, `.idc`, each file in `.idc`, `cohorts/`, a cohort, each file
of a cohort. All have the same methods, and `FileSystem.find` picks the provider once per call, by the address.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from idcfs.cache.format import Buffer
from idcfs.errors import IsAFolder, NotAFolder, NotFound, NotThereNow, ReadOnly
from idcfs.inode import FileAddress, FolderAddress, pack_folder
from idcfs.node import Node

ENTRIES_AT_ONCE = 32
"""Entries made for one answer to a listing: the kernel's buffer of one page holds 15 to 25."""

READ_ONLY = "idcfs is read-only but for cohorts and their queries"

A = TypeVar("A", FolderAddress, FileAddress)

Entry = tuple[bytes, Node]
"""A name in a folder, and what has it."""


class Entries(NamedTuple):
    """An open folder. `page` gives up to `ENTRIES_AT_ONCE` entries from a number on, and fewer at the end only.

    `inode` is the folder's whose entries they are: the kernel's references to it are counted while this is open.
    """

    inode: int
    page: Callable[[int], Awaitable[Sequence[Entry]]]


def fixed(inode: int, entries: Sequence[Entry]) -> Entries:
    """An open folder whose entries stay what they are now."""

    async def page(start: int) -> Sequence[Entry]:
        return entries[start : start + ENTRIES_AT_ONCE]

    return Entries(inode, page)


class OpenFile:
    """An open file, which can be read only; `idcfs.tree.cohorts.Draft` can be written.

    Args:
        read: returns up to a number of bytes from an offset on; fewer at the file's end only. May wait for the network.
            Raises ReadError if the bytes cannot be had.
        permanent: whether its bytes never change, so that the kernel may keep them.
    """

    def __init__(self, read: Callable[[int, int], Awaitable[Buffer]], permanent: bool = False) -> None:
        self.read = read
        self.permanent = permanent

    def write(self, offset: int, data: bytes) -> int:
        """Write *data*; returns the number of bytes written. Raises ReadOnly or QueryTooLong."""
        raise ReadOnly("opened to be read only")

    def resize(self, size: int) -> None:
        """Cut or lengthen the file to *size* bytes. Raises ReadOnly or QueryTooLong."""
        raise ReadOnly("opened to be read only")

    async def flush(self) -> None:
        """Keep what was written since the last time."""

    async def close(self) -> None:
        """Keep what is not kept yet, and end."""


class Provider(Generic[A]):
    """What answers for a part of the tree. This one refuses everything: subclasses answer what they can."""

    async def attributes(self, address: A) -> Node:
        """What is known of a file or folder. May wait for a series' listing, or a cohort's query.

        Raises:
            NotFound: there is no such file or folder.
            ReadError: what has to be asked cannot be.
        """
        raise NotImplementedError

    async def lookup(self, folder: A, name: bytes) -> Node:
        """What has *name* in *folder*; waits and raises as `attributes`.

        Raises:
            NotAFolder: *folder* is a file.
        """
        raise NotAFolder("a file has nothing in it")

    async def entries(self, folder: A) -> Entries:
        """What is in *folder*; waits and raises as `lookup`."""
        raise NotAFolder("a file has nothing in it")

    async def content(self, file: A) -> OpenFile:
        """A file, opened to be read; waits and raises as `attributes`.

        Raises:
            IsAFolder: *file* is a folder.
        """
        raise IsAFolder("a folder is not read as a file")

    async def extended(self, address: A) -> Mapping[str, object]:
        """The extended attributes of a file or folder; waits and raises as `attributes`."""
        return {}

    def is_of_mirror(self, address: A, name: bytes | None = None) -> bool:
        """Whether a mirror may have to be asked for what is in a folder, or has *name* there, or for a file's bytes."""
        return False

    # The following work in `cohorts/` and on its queries only.

    async def draft(self, file: A, append: bool, truncate: bool) -> OpenFile:
        """Open a query to be written; with *append*, all goes to its end; with *truncate*, it begins empty."""
        raise ReadOnly(READ_ONLY)

    async def resize(self, file: A, size: int) -> None:
        """Cut or lengthen a query to *size* bytes. Raises QueryTooLong, or QueryRefused if the rest does not work."""
        raise ReadOnly(READ_ONLY)

    async def create(self, folder: A, name: bytes) -> Node:
        """Make a cohort with an empty query. Raises NameRefused, NameTooLong, AlreadyThere or NoSpace."""
        raise ReadOnly(READ_ONLY)

    async def delete(self, folder: A, name: bytes) -> None:
        """Remove a cohort. Raises NotThereNow."""
        raise ReadOnly(READ_ONLY)

    async def rename(self, folder: A, old: bytes, new_folder: FolderAddress | FileAddress, new: bytes) -> None:
        """Give a cohort another name. Raises NotThereNow, and as `create`."""
        raise ReadOnly(READ_ONLY)


class MadeFile(Provider[FolderAddress]):
    """A file whose bytes are made each time that its size is asked for or it is opened.

    Args:
        make: returns the bytes, or None if there is no such file, and the time of their last change in nanoseconds.
        permanent: whether they are the same every time, so that the kernel may keep them.
    """

    def __init__(
        self, make: Callable[[FolderAddress], Awaitable[tuple[bytes | None, int]]], permanent: bool = False
    ) -> None:
        self._make = make
        self._permanent = permanent

    async def attributes(self, address: FolderAddress) -> Node:
        """Return what is known of the file, with the size of the bytes that are made now."""
        content, modified_ns = await self._made(address)
        return Node(pack_folder(*address), False, 1, len(content), modified_ns, self._permanent)

    async def content(self, file: FolderAddress) -> OpenFile:
        """Open the file with the bytes that are made now."""
        content, _ = await self._made(file)

        async def read(offset: int, length: int) -> Buffer:
            return content[offset : offset + length]

        return OpenFile(read, self._permanent)

    async def _made(self, file: FolderAddress) -> tuple[bytes, int]:
        content, modified_ns = await self._make(file)
        if content is None:
            raise (NotFound if self._permanent else NotThereNow)("there is no such file here")
        return content, modified_ns
