"""A file system over a store in memory, wired as the daemon wires it but for FUSE."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio
import trio.testing

from idcfs.catalog.index import Index
from idcfs.config import Settings
from idcfs.inode import ROOT
from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.node import Node
from idcfs.store.base import Body, ListPage, ObjectStore, Progress, Range
from idcfs.tree import wiring
from idcfs.tree.provider import ENTRIES_AT_ONCE
from idcfs.tree.wiring import Parts
from tests.index_factory import Row
from tests.memory_store import MemoryStore
from tests.processes import PATIENCE, until_true

LIMIT = 1 << 30

MEMORY_BYTES = 256 << 20


class Opened(Parts):
    """A file system, what it is made of, and ways to use it by path."""

    async def node(self, path: str) -> Node:
        """What has a path below the root."""
        node = await self.getattr(ROOT)
        for name in path.split("/") if path else []:
            node = await self.lookup(node.inode, name.encode())
        return node

    async def getattr(self, inode: int) -> Node:
        """What is known of a file or folder."""
        provider, address = self.filesystem.find(inode)
        return await provider.attributes(address)

    async def lookup(self, parent: int, name: bytes) -> Node:
        """What has a name in a folder."""
        provider, folder = self.filesystem.find(parent)
        return await provider.lookup(folder, name)

    async def open_folder(self, inode: int) -> int:
        """A handle of a folder."""
        provider, folder = self.filesystem.find(inode)
        return self.filesystem.add_folder(await provider.entries(folder))

    async def open(self, inode: int) -> int:
        """A handle of a file that is opened to be read."""
        provider, file = self.filesystem.find(inode)
        return self.filesystem.add_file(await provider.content(file))

    async def open_draft(self, inode: int, append: bool, truncate: bool) -> int:
        """A handle of a query that is opened to be written."""
        provider, file = self.filesystem.find(inode)
        return self.filesystem.add_file(await provider.draft(file, append, truncate))

    async def resize(self, inode: int, size: int) -> None:
        """Cut or lengthen a query."""
        provider, file = self.filesystem.find(inode)
        await provider.resize(file, size)

    async def create(self, parent: int, name: bytes) -> Node:
        """Make a cohort."""
        provider, folder = self.filesystem.find(parent)
        return await provider.create(folder, name)

    async def delete(self, parent: int, name: bytes) -> None:
        """Remove a cohort."""
        provider, folder = self.filesystem.find(parent)
        await provider.delete(folder, name)

    async def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes) -> None:
        """Give a cohort another name."""
        provider, folder = self.filesystem.find(old_parent)
        await provider.rename(folder, old, self.filesystem.find(new_parent)[1], new)

    async def entries(self, inode: int) -> dict[bytes, Node]:
        """The whole content of a folder, asked as the kernel does."""
        handle = await self.open_folder(inode)
        found: list[tuple[bytes, Node]] = []
        while some := await self.filesystem.folders[handle].page(len(found)):
            assert len(some) <= ENTRIES_AT_ONCE
            found += some
        self.filesystem.release_folder(handle)
        names = [name for name, _ in found]
        assert len(set(names)) == len(names)
        return dict(found)

    async def names(self, path: str) -> list[str]:
        """The names in the folder with a path, in the order they are listed."""
        return [name.decode() for name in await self.entries((await self.node(path)).inode)]

    async def read(self, path: str, offset: int = 0, length: int = 1 << 40) -> bytes:
        """Bytes of the file with a path."""
        handle = await self.open((await self.node(path)).inode)
        try:
            return bytes(await self.filesystem.files[handle].read(offset, length))
        finally:
            await self.filesystem.release_file(handle)

    async def kept(self, entries: int) -> None:
        """Wait until the cache of objects has that many entries."""
        with trio.fail_after(PATIENCE):
            while (await self.objects.usage())[0] < entries:  # noqa: ASYNC110  # a cache calls nobody
                await trio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until everything that was asked for is here and kept, also what threads and workers are asked for."""
        with trio.fail_after(PATIENCE):
            while True:
                await trio.testing.wait_all_tasks_blocked()
                await self.objects.finish()
                flights = self.listings._flights, self.fetcher._flights, self.fetcher._disk._learning
                if not any(len(each) for each in flights) and not self.fetcher._limit.under_way:
                    return
                await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def open_filesystem(
    cache: Path,
    index: Index,
    store: ObjectStore,
    mirror_word: str = "aws",
    *,
    layout: str = DEFAULT_TEMPLATE,
    seconds: float = 30,
    memory: int = MEMORY_BYTES,
    cohorts: Path | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> AsyncIterator[Opened]:
    """Open everything that a mount opens; *cache* keeps what is kept between mounts, with *cohorts* if not given.

    One request to *store* may take *seconds*; nothing is tried again.
    """
    settings = Settings(
        mirror=mirror_word,
        cache_dir=cache,
        cache_size=LIMIT,
        memory=memory,
        cohort_dir=cohorts or cache / "cohorts",
        timeout=seconds,
        layout=layout,
    )
    async with wiring.open_filesystem(settings, index, store, report=report) as parts:
        if isinstance(store, MemoryStore):
            store.arena = parts.arena
        yield Opened(**vars(parts))


def path_of(row: Row) -> str:
    """Where a series is in the default layout."""
    return f"{row.collection}/{row.patient}/{row.study}/{row.modality}_{row.series}"


async def until_asked(store: MemoryStore, requests: int) -> None:
    """Wait until a store has been asked so often."""
    await until_true(lambda: len(store.requests) >= requests)


class GatedStore(MemoryStore):
    """Answers when its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        page = await super().list_page(bucket, prefix, token)
        await self.gate.wait()
        return page

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        data = await super().get(wanted, progress)
        await self.gate.wait()
        return data
