"""A file system over a store in memory, wired as the daemon wires it but for FUSE."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import trio
import trio.testing

from idcfs.cache.client import Cache, open_caches
from idcfs.catalog.catalogue import Catalogue, open_catalogue
from idcfs.catalog.index import Index
from idcfs.cohorts.registry import Cohorts
from idcfs.cohorts.results import Results
from idcfs.config import Settings
from idcfs.inode import ROOT
from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.metrics import Metrics
from idcfs.node import Node
from idcfs.pages.client import open_page_cache
from idcfs.processes.arena import Arena
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listings
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.store.base import Body, ListPage, ObjectStore, ObjectVersion, Progress
from idcfs.store.mirror import parse_mirror
from idcfs.tree.control import Control
from idcfs.tree.filesystem import ENTRIES_AT_ONCE, FileSystem
from tests.index_factory import Row
from tests.memory_store import MemoryStore
from tests.processes import PATIENCE, until_true

LIMIT = 1 << 30

MEMORY_BYTES = 256 << 20


@dataclass
class Opened:
    """A file system, what it is made of, and ways to use it by path."""

    filesystem: FileSystem
    catalogue: Catalogue
    listings: Listings
    fetcher: Fetcher
    objects: Cache
    arena: Arena
    metrics: Metrics
    cohorts: Cohorts

    async def node(self, path: str) -> Node:
        """What has a path below the root."""
        node = await self.filesystem.getattr(ROOT)
        for name in path.split("/") if path else []:
            node = await self.filesystem.lookup(node.inode, name.encode())
        return node

    async def entries(self, inode: int) -> dict[bytes, Node]:
        """The whole content of a folder, asked as the kernel does."""
        handle = await self.filesystem.open_folder(inode)
        found: list[tuple[bytes, Node]] = []
        while some := await self.filesystem.entries(handle, len(found)):
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
        handle = await self.filesystem.open((await self.node(path)).inode)
        try:
            return bytes(await self.filesystem.read(handle, offset, length))
        finally:
            await self.filesystem.release(handle)

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
                if not any(len(each) for each in flights) and not self.fetcher._window.under_way:
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
    tell: Callable[[str], None] = lambda step: None,
) -> AsyncIterator[Opened]:
    """Open everything that a mount opens; *cache* keeps what is kept between mounts, with *cohorts* if not given.

    One request to *store* may take *seconds*; nothing is tried again.
    """
    mirror, metrics = parse_mirror(mirror_word), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(open_catalogue(cache, index, layout, report=tell))
        arena = stack.enter_context(Arena(memory))
        folders = {name: (cache / name, LIMIT) for name in ("objects", "listings")}
        caches = await stack.enter_async_context(open_caches(folders, arena))
        objects = caches["objects"]
        # Does nothing, for nothing is mounted.
        pages = await stack.enter_async_context(open_page_cache(arena))
        if isinstance(store, MemoryStore):
            store.arena = arena
        await stack.enter_async_context(store)
        nursery = await stack.enter_async_context(trio.open_nursery())
        listings = Listings(store, mirror, caches["listings"], catalogue.series, metrics, nursery, seconds)
        order = SeriesOrder(catalogue)
        fetcher = Fetcher(store, mirror, objects, listings, pages, metrics, nursery, lambda: seconds, arena)
        reader = Reader(fetcher, listings, metrics, nursery, lambda: seconds, arena.size, order.following)
        control = Control(catalogue, mirror, caches, metrics)
        settings = Settings(layout=layout, cohort_dir=cohorts or cache / "cohorts", timeout=seconds)
        registry = Cohorts(settings.cohort_dir, catalogue, Results(catalogue, settings), nursery, seconds)
        filesystem = FileSystem(catalogue, listings, reader, control, registry, order, metrics)
        yield Opened(filesystem, catalogue, listings, fetcher, objects, arena, metrics, registry)
        nursery.cancel_scope.cancel()


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

    async def get(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, progress: Progress | None = None
    ) -> Body:
        data = await super().get(bucket, key, start, stop, version, progress)
        await self.gate.wait()
        return data
