"""The file system without FUSE; belongs to the event loop.

`FileSystem.find` returns the provider of an inode number, whose methods answer for it. What is kept here is what is
open, and how often the kernel refers to the views of cohorts.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from idcfs.catalog.catalogue import Catalogue
from idcfs.catalog.temporary import FIRST_GENERATION
from idcfs.cohorts.registry import Cohorts
from idcfs.errors import NoSuchAttribute, NotFound
from idcfs.inode import FileAddress, FolderAddress, generation_of, unpack
from idcfs.metrics import Metrics
from idcfs.tree.instances import Instances
from idcfs.tree.provider import Entries, OpenFile, Provider

XATTR_PREFIX = "user.idc."


class FileSystem:
    """The providers of the tree, and its open files and folders by their handles.

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
        self.catalogue = catalogue
        self.folders: dict[int, Entries] = {}
        self.files: dict[int, OpenFile] = {}
        self._cohorts = cohorts
        self._instances = instances
        self._providers = providers
        self._metrics = metrics
        self._handles = itertools.count()

    def find(self, inode: int) -> tuple[Provider[Any], Any]:
        """Return the provider of an inode number, and the address to call its methods with.

        Raises:
            NotFound: no file or folder can have this number.
        """
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

    def add_folder(self, entries: Entries) -> int:
        """Return a handle for an open folder, whose view is kept until `release_folder`."""
        self.remember(entries.inode)
        handle = next(self._handles)
        self.folders[handle] = entries
        return handle

    def release_folder(self, handle: int) -> None:
        """Forget an open folder."""
        self.forget(self.folders.pop(handle).inode)

    def add_file(self, file: OpenFile) -> int:
        """Return a handle for an open file."""
        handle = next(self._handles)
        self.files[handle] = file
        self._metrics.open_files = len(self.files)
        return handle

    async def release_file(self, handle: int) -> None:
        """Forget an open file, and close it; see `OpenFile.close`."""
        file = self.files.pop(handle)
        self._metrics.open_files = len(self.files)
        await file.close()

    def remember(self, inode: int, times: int = 1) -> None:
        """Count that the kernel, or an open folder, refers to an inode number."""
        generation = generation_of(inode)
        if generation >= FIRST_GENERATION:
            self.catalogue.temporary.hold(generation, times)

    def forget(self, inode: int, times: int = 1) -> None:
        """Count that fewer refer to an inode number; a cohort's view goes with the last."""
        generation = generation_of(inode)
        if generation >= FIRST_GENERATION:
            self.catalogue.temporary.release(generation, times)

    async def xattrs(self, inode: int) -> dict[str, str]:
        """Return the extended attributes of a file or folder; see `Provider.extended`."""
        provider, address = self.find(inode)
        return {XATTR_PREFIX + name: str(value) for name, value in (await provider.extended(address)).items()}

    async def xattr(self, inode: int, name: str) -> str:
        """Return one extended attribute; see `Provider.extended`.

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
        await self.catalogue.repair()
        await self._cohorts.repair()
