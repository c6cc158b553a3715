"""The file system without FUSE: look up, list, read, write; belongs to the event loop.

Each call is answered by the provider of the part of the tree that it is about. What is kept here is what is open, and
how often the kernel refers to the views of cohorts.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from idcfs.cache.format import Buffer
from idcfs.catalog.catalogue import Catalogue
from idcfs.catalog.temporary import FIRST_GENERATION
from idcfs.cohorts.registry import Cohorts
from idcfs.errors import NoSuchAttribute, NotFound
from idcfs.inode import FileAddress, FolderAddress, generation_of, unpack
from idcfs.metrics import Metrics
from idcfs.node import Node
from idcfs.tree.instances import Instances
from idcfs.tree.provider import Entries, Entry, OpenFile, Provider

XATTR_PREFIX = "user.idc."


class FileSystem:
    """The tree, its files and their bytes. What a call waits for and raises is what the methods of `Provider` do.

    Args:
        instances: the provider of files in the folders of series.
        providers: the providers of all else, by facet.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        cohorts: Cohorts,
        instances: Instances,
        providers: Mapping[int, Provider[FolderAddress]],
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._cohorts = cohorts
        self._instances = instances
        self._providers = providers
        self._metrics = metrics
        self._handles = itertools.count()
        self._folders: dict[int, Entries] = {}
        self._files: dict[int, OpenFile] = {}

    async def lookup(self, parent: int, name: bytes) -> Node:
        """What has *name* in the folder *parent*; see `Provider.lookup`."""
        provider, folder = self._find(parent)
        return await provider.lookup(folder, name)

    async def getattr(self, inode: int) -> Node:
        """What is known of a file or folder; see `Provider.attributes`."""
        provider, address = self._find(inode)
        return await provider.attributes(address)

    async def open_folder(self, inode: int) -> int:
        """A handle to list a folder by; see `Provider.entries`."""
        provider, folder = self._find(inode)
        entries = await provider.entries(folder)
        self.remember(entries.inode)
        handle = next(self._handles)
        self._folders[handle] = entries
        return handle

    async def entries(self, handle: int, start: int) -> Sequence[Entry]:
        """Up to `ENTRIES_AT_ONCE` entries of a folder from the one numbered *start* on; fewer at its end only."""
        return await self._folders[handle].page(start)

    def release_folder(self, handle: int) -> None:
        """Forget a handle of a folder."""
        self.forget(self._folders.pop(handle).inode)

    def is_of_mirror(self, inode: int, name: bytes | None = None) -> bool:
        """See `Provider.is_of_mirror`."""
        provider, address = self._find(inode)
        return provider.is_of_mirror(address, name)

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

    async def open(self, inode: int) -> int:
        """A handle to read a file by; see `Provider.content`."""
        provider, file = self._find(inode)
        return self._opened(await provider.content(file))

    async def open_draft(self, inode: int, append: bool, truncate: bool) -> int:
        """A handle to write a query by; see `Provider.draft`."""
        provider, file = self._find(inode)
        return self._opened(await provider.draft(file, append, truncate))

    def is_permanent(self, handle: int) -> bool:
        """Whether the bytes of an open file never change, so that the kernel may keep them."""
        return self._files[handle].permanent

    async def read(self, handle: int, offset: int, length: int) -> Buffer:
        """Bytes of an open file; see `OpenFile.read`."""
        return await self._files[handle].read(offset, length)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write into an open file; see `OpenFile.write`."""
        return self._files[handle].write(offset, data)

    async def resize(self, inode: int, handle: int | None, size: int) -> None:
        """Cut or lengthen a query; through a handle, that counts when the file is closed. See `Provider.resize`."""
        if handle is None:
            provider, file = self._find(inode)
            await provider.resize(file, size)
        else:
            self._files[handle].resize(size)

    async def flush(self, handle: int) -> None:
        """Keep what was written into an open file; see `Draft.flush`."""
        await self._files[handle].flush()

    async def release(self, handle: int) -> None:
        """Forget a handle of a file; see `Draft.close`."""
        file = self._files.pop(handle)
        self._metrics.open_files = len(self._files)
        await file.close()

    async def create(self, parent: int, name: bytes) -> Node:
        """Make a cohort; see `Provider.create`."""
        provider, folder = self._find(parent)
        return await provider.create(folder, name)

    async def delete(self, parent: int, name: bytes) -> None:
        """Remove a cohort; see `Provider.delete`."""
        provider, folder = self._find(parent)
        await provider.delete(folder, name)

    async def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes) -> None:
        """Give a cohort another name; see `Provider.rename`."""
        provider, folder = self._find(old_parent)
        await provider.rename(folder, old, self._find(new_parent)[1], new)

    def counts(self) -> Mapping[str, int]:
        """The totals of the tree: see `Catalogue.counts`."""
        return self._catalogue.counts

    async def xattrs(self, inode: int) -> dict[str, str]:
        """The extended attributes of a file or folder; see `Provider.extended`."""
        provider, address = self._find(inode)
        return {XATTR_PREFIX + name: str(value) for name, value in (await provider.extended(address)).items()}

    async def xattr(self, inode: int, name: str) -> str:
        """One extended attribute; see `Provider.extended`.

        Raises:
            NoSuchAttribute: the file or folder does not have it.
        """
        # Tools ask every file for attributes of the system's; only ours are worth a look at the index.
        if name.startswith(XATTR_PREFIX):
            value = (await self.xattrs(inode)).get(name)
            if value is not None:
                return value
        raise NoSuchAttribute(name)

    async def repair(self) -> None:
        """Build the catalogue and the cohorts again, after something turned out damaged; takes seconds."""
        await self._catalogue.repair()
        await self._cohorts.repair()

    def _find(self, inode: int) -> tuple[Provider[Any], Any]:
        """The provider of an inode number, and the address that it packs."""
        try:
            address = unpack(inode)
        except ValueError as error:
            raise NotFound(*error.args) from None
        if isinstance(address, FileAddress):
            return self._instances, address
        provider = self._providers.get(address.facet)
        if provider is None:
            raise NotFound(f"no inode number {inode}")
        return provider, address

    def _opened(self, file: OpenFile) -> int:
        handle = next(self._handles)
        self._files[handle] = file
        self._metrics.open_files = len(self._files)
        return handle
