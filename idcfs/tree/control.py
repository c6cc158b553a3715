"""The `.idc` folders: a table of their entries, and the providers of these; belongs to the event loop.

Every folder of a view has one. It is found by name and listed nowhere, as ZFS does with `.zfs`, so `cp -r`, `find` and
DICOM scanners do not meet it. What is in it stands in `idcfs.tree.control_files`; how that is looked up, listed and
opened is the same for all entries, and stands here.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.catalog.view import View
from idcfs.errors import NotFound
from idcfs.inode import MAX_FACET, Facet, FolderAddress, pack_folder
from idcfs.node import Node
from idcfs.tree.attributes import LEVELS, Attributes, deepest_level, named_columns
from idcfs.tree.provider import Entries, Entry, MadeFile, Provider, fixed
from idcfs.tree.status import Status
from idcfs.tree.views import CONTROL_NAME, ROOT_FOLDER, Views


@dataclass(frozen=True)
class Folder:
    """A folder of a view, whose `.idc` somebody looks into, and what the entries of that are made from."""

    address: FolderAddress
    view: View
    catalogue: Catalogue
    attributes: Attributes
    status: Status

    def is_root(self) -> bool:
        """Whether it is the root of the mount."""
        return self.address == ROOT_FOLDER

    def is_series(self) -> bool:
        """Whether it is the folder of a series, which holds instances."""
        return self.address.level == self.view.depth

    def level(self) -> str | None:
        """The deepest of `LEVELS` that its path names: it is the folder of a collection, a patient, a study, ..."""
        return LEVELS[-1] if self.is_series() else deepest_level(named_columns(self.view, self.address.level))


Where = Callable[[Folder], bool]
"""Whether the `.idc` of a folder has an entry; decided from the catalogue alone, without waiting."""

Names = Mapping[bytes, FolderAddress]
"""The names in a folder, each with the address of a file or folder, of whatever provider."""

MakeContent = Callable[[Folder], Awaitable[bytes | None]]
MakeNames = Callable[[Folder], Awaitable[Names]]


def everywhere(folder: Folder) -> bool:
    """Where most entries are: in the `.idc` of every folder."""
    return True


class ControlTable:
    """The entries of `.idc`, in the order in which they are listed.

    Each has a facet, which is a part of its inode number: it never changes, and no other entry gets it again.
    """

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[Where, Callable[[FolderAddress], FolderAddress]]] = {}
        """Where an entry is, and its address in the `.idc` with an address."""
        self.providers: dict[int, Callable[[Control], Provider[FolderAddress]]] = {}
        """What makes the provider of a facet."""

    def file(
        self, name: str, facet: int, where: Where = everywhere, permanent: bool = False
    ) -> Callable[[MakeContent], MakeContent]:
        """Add a file: the decorated function makes its bytes, or None if the folder has no such file after all.

        Bytes that are the same for the life of a mount are *permanent*, so that the kernel may keep them.
        """

        def add(make: MakeContent) -> MakeContent:
            self._add(name, facet, where)
            self.providers[facet] = lambda control: MadeFile(partial(control.make, make), permanent)
            return make

        return add

    def folder(self, name: str, facet: int, where: Where = everywhere) -> Callable[[MakeNames], MakeNames]:
        """Add a folder: the decorated function returns the names in it."""

        def add(names: MakeNames) -> MakeNames:
            self._add(name, facet, where)
            self.providers[facet] = lambda control: _ControlFolder(control, names)
            return names

        return add

    def view(self, name: str, generation: int, where: Where = everywhere) -> None:
        """Add the root of a view."""
        self.entries[name.encode()] = where, lambda control: FolderAddress(generation, 0, 0)

    def _add(self, name: str, facet: int, where: Where) -> None:
        if name.encode() in self.entries:
            raise ValueError(f"the name {name} is taken")
        if facet in (*Facet, *self.providers) or not 0 <= facet <= MAX_FACET:
            raise ValueError(f"the facet {facet} of {name} is taken, or not from 0 to {MAX_FACET}")
        self.entries[name.encode()] = where, lambda control: control._replace(facet=facet)


class Control:
    """The providers of `.idc` folders and of their entries, by facet."""

    def __init__(
        self, table: ControlTable, views: Views, catalogue: Catalogue, attributes: Attributes, status: Status
    ) -> None:
        self._table = table
        self._sources = catalogue, attributes, status
        self.views = views
        self.providers: dict[int, Provider[FolderAddress]] = {
            Facet.FOLDER: views,
            Facet.CONTROL: _ControlFolder(self, self._names),
            **{facet: make(self) for facet, make in table.providers.items()},
        }

    async def folder(self, address: FolderAddress) -> Folder:
        """Return the folder whose `.idc`, or an entry of that, has an address; waits and raises as `Views.open`."""
        address = address._replace(facet=Facet.FOLDER)
        return Folder(address, await self.views.open(address), *self._sources)

    async def make(self, content: MakeContent, file: FolderAddress) -> tuple[bytes | None, int]:
        """Return what *content* makes for the folder that *file* is about, and the time of that; for `MadeFile`."""
        return await content(await self.folder(file)), self.views.release_time(MAIN_GENERATION)

    async def _names(self, folder: Folder) -> Names:
        control = folder.address._replace(facet=Facet.CONTROL)
        return {name: address(control) for name, (where, address) in self._table.entries.items() if where(folder)}


class _ControlFolder(Provider[FolderAddress]):
    """`.idc` itself, or a folder in it."""

    def __init__(self, control: Control, names: MakeNames) -> None:
        self._control = control
        self._names = names

    async def attributes(self, address: FolderAddress) -> Node:
        return self._control.views.plain_folder(address)

    async def lookup(self, folder: FolderAddress, name: bytes) -> Node:
        address = (await self._names(await self._control.folder(folder))).get(name)
        if address is None:
            raise NotFound(f"no {name!r} in {CONTROL_NAME.decode()}")
        return await self._control.providers[address.facet].attributes(address)

    async def entries(self, folder: FolderAddress) -> Entries:
        entries: list[Entry] = []
        for name, address in (await self._names(await self._control.folder(folder))).items():
            # A file that this folder does not have after all is not listed.
            with contextlib.suppress(NotFound):
                entries.append((name, await self._control.providers[address.facet].attributes(address)))
        return fixed(pack_folder(*folder), entries)
