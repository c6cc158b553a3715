"""The folders of views, down to those of series; belongs to the event loop.

They are answered from the catalogue without waiting, except where a view has to be built first, and in the folder of a
series, whose content comes from `Instances`.
"""

import datetime
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

from idcfs.catalog.catalogue import MAIN_GENERATION, Catalogue
from idcfs.catalog.temporary import FIRST_GENERATION
from idcfs.catalog.view import View
from idcfs.errors import NotFound
from idcfs.inode import Facet, FolderAddress, pack_folder
from idcfs.node import Node
from idcfs.reading.listings import may_be_instance
from idcfs.tree.attributes import Attributes
from idcfs.tree.instances import Instances
from idcfs.tree.provider import ENTRIES_AT_ONCE, Entries, Entry, Provider

CONTROL_NAME = b".idc"

ROOT_FOLDER = FolderAddress(MAIN_GENERATION, 0, 0)


class Views(Provider[FolderAddress]):
    """The provider of the folders of views.

    Args:
        attributes: the index's columns, for extended attributes.
        in_root: what the root of the mount has beside the folders of its view, in the order in which it is listed.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        instances: Instances,
        attributes: Attributes,
        in_root: Mapping[bytes, Callable[[], Node]],
    ) -> None:
        self._catalogue = catalogue
        self._instances = instances
        self._attributes = attributes
        self._in_root = in_root
        self._released: dict[int, int] = {}

    async def lookup(self, folder: FolderAddress, name: bytes) -> Node:
        if name == CONTROL_NAME:
            return self.plain_folder(folder._replace(facet=Facet.CONTROL))
        if folder == ROOT_FOLDER and name in self._in_root:
            return self._in_root[name]()
        view = await self._view(folder.generation)
        if folder.level == view.depth:
            return await self._instances.find(view.series_row(folder.group), folder, name)
        group = view.find(folder.level, folder.group, name)
        if group is None:
            raise NotFound(f"no folder {name!r} here")
        return self._node(view, folder.generation, folder.level + 1, group)

    async def attributes(self, address: FolderAddress) -> Node:
        # A look at the root of a view that may have to be built does not build it.
        if not address.level and self._catalogue.view(address.generation) is None:
            return self.plain_folder(address)
        view = await self.open(address)
        return self._node(view, address.generation, address.level, address.group)

    async def entries(self, folder: FolderAddress) -> Entries:
        view = await self._view(folder.generation)
        if folder.level == view.depth:
            return await self._instances.all(view.series_row(folder.group), folder)
        return Entries(pack_folder(*folder), functools.partial(self._page, folder))

    async def extended(self, address: FolderAddress) -> Mapping[str, object]:
        if not address.level:
            return {}
        return await self._attributes.of_folder(await self.open(address), address.level, address.group)

    def is_of_mirror(self, address: FolderAddress, name: bytes | None = None) -> bool:
        if name is not None and not may_be_instance(name):
            return False
        view = self._catalogue.view(address.generation)
        return view is not None and address.level == view.depth

    async def open(self, folder: FolderAddress) -> View:
        """The view that *folder* is in, built first if it has to be.

        Raises:
            NotFound: there is no such folder.
            IndexUnusable, CacheUnusable: the view cannot be built.
        """
        view = await self._view(folder.generation)
        if folder.level > view.depth or folder.group >= view.groups(folder.level):
            raise NotFound(f"there is no folder {folder}")
        return view

    def plain_folder(self, address: FolderAddress) -> Node:
        """A folder of which no more is known than that it is there and never changes."""
        return Node(pack_folder(*address), True, 2, 0, self.release_time(MAIN_GENERATION))

    def release_time(self, generation: int) -> int:
        """When the IDC version that a view shows was released, in nanoseconds since the epoch."""
        if generation not in self._released:
            midnight = datetime.datetime.fromisoformat(f"{self._catalogue.release_date(generation)}T00:00Z")
            self._released[generation] = int(midnight.timestamp()) * 10**9
        return self._released[generation]

    async def _page(self, folder: FolderAddress, start: int) -> Sequence[Entry]:
        view = await self._view(folder.generation)
        children = view.children(folder.level, folder.group)
        stop = start + ENTRIES_AT_ONCE
        groups = children[start:stop]
        last: list[Entry] = []
        if folder == ROOT_FOLDER:
            # After all others, so that their numbers stay those of their groups.
            in_root = itertools.islice(self._in_root.items(), *(max(0, at - len(children)) for at in (start, stop)))
            last = [(name, node()) for name, node in in_root]
        if not groups:
            return last
        level = folder.level + 1
        # The groups of a run are numbered one after the other, and so are their inodes.
        first = pack_folder(folder.generation, level, groups.start)
        numbers = range(first, first + len(groups))
        counts = view.child_counts(level, groups)
        released = self.release_time(folder.generation)
        permanent = _is_permanent(folder.generation, level)
        nodes = (
            Node(number, True, 2 + count, 0, released, permanent) for number, count in zip(numbers, counts, strict=True)
        )
        return [*zip(view.names(level, groups), nodes, strict=True), *last]

    async def _view(self, generation: int) -> View:
        return self._catalogue.view(generation) or await self._catalogue.open_view(generation)

    def _node(self, view: View, generation: int, level: int, group: int) -> Node:
        inside = len(view.children(level, group))
        if (generation, level) == (MAIN_GENERATION, 0):
            inside += sum(node().is_folder for node in self._in_root.values())
        number, permanent = pack_folder(generation, level, group), _is_permanent(generation, level)
        return Node(number, True, 2 + inside, 0, self.release_time(generation), permanent)


def _is_permanent(generation: int, level: int) -> bool:
    """Whether a folder is what its name will always mean; what is directly in a cohort is not."""
    return level != 1 or generation < FIRST_GENERATION
