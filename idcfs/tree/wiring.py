"""The file system of a mount, built from settings, an index and a store; knows no FUSE.

Each part is made once, in here, from the parts before it, and is not changed afterwards; they close in the opposite
order. All tasks run in one nursery, which ends before what they use is closed.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from idcfs.cache.client import Cache, open_caches
from idcfs.catalog.catalogue import Catalogue, open_catalogue
from idcfs.catalog.index import Index
from idcfs.cohorts.folder import CohortFolder
from idcfs.cohorts.registry import Cohorts
from idcfs.cohorts.results import Results
from idcfs.config import Settings
from idcfs.inode import FolderAddress
from idcfs.metrics import Metrics
from idcfs.pages.client import PageCache, open_page_cache
from idcfs.processes.arena import Arena
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listings
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.store.base import ObjectStore
from idcfs.store.breaker import BreakerStore
from idcfs.store.failover import FailoverStore, Member
from idcfs.store.folder import FolderStore
from idcfs.store.mirror import Mirror, parse_mirror
from idcfs.store.retry import ATTEMPTS, RetryingStore
from idcfs.store.s3 import S3Store
from idcfs.tree.attributes import Attributes
from idcfs.tree.cohorts import COHORTS_NAME, CohortsFolder, cohort_providers
from idcfs.tree.control import Control
from idcfs.tree.control_files import IDC
from idcfs.tree.filesystem import FileSystem
from idcfs.tree.instances import Instances
from idcfs.tree.provider import Provider
from idcfs.tree.status import Status
from idcfs.tree.views import Views

LISTING_CACHE_BYTES = 1 << 30
"""A listing takes about 130 bytes an instance, so this is some eight million files' worth."""

LAST_WRITES_TIMEOUT = 5.0
"""Seconds that the cache is given at the end to write what was fetched."""


class Mirrors(NamedTuple):
    """What asks mirrors: `store` all as one, each of `breakers` one in several attempts, each of `sources` one once."""

    store: ObjectStore
    breakers: Sequence[BreakerStore] = ()
    sources: Sequence[ObjectStore] = ()


@dataclass
class Parts:
    """A file system, and what it is made of."""

    filesystem: FileSystem
    mirror: Mirror
    catalogue: Catalogue
    listings: Listings
    fetcher: Fetcher
    objects: Cache
    pages: PageCache
    arena: Arena
    metrics: Metrics
    mirrors: Mirrors

    def start_asking(self) -> None:
        """Start the processes that ask the first mirror now: the first request would wait for half a second."""
        for source in self.mirrors.sources[:1]:
            if isinstance(source, S3Store):
                source.start()


@contextlib.asynccontextmanager
async def open_filesystem(
    settings: Settings,
    index: Index,
    store: ObjectStore | None = None,
    *,
    bytes_folder: Path | None = None,
    read_timeout: Callable[[], float] | None = None,
    limits_failure: Callable[[], str | None] = lambda: None,
    report: Callable[[str], None] = lambda step: None,
) -> AsyncIterator[Parts]:
    """Open a file system, and close it at the end. Takes seconds where a catalogue has to be built.

    Args:
        settings: what it shows, and what it may use.
        index: the index of what it shows.
        store: where the objects are; the mirror of the settings if None.
        bytes_folder: where bytes and listings are kept; the cache folder of the settings if None.
        read_timeout: the seconds that a read may take; those of the settings if None.
        limits_failure: why the kernel lets few reads wait, for the status.
        report: called with a line of text at each step that takes long.

    Raises:
        UsageError, IndexUnusable, CacheUnusable: it cannot be opened.
    """
    mirror, metrics, timeout = _told_apart(parse_mirror(settings.mirror)), Metrics(), settings.timeout
    read_timeout = read_timeout or (lambda: timeout)
    if store is None:
        mirror.check()
    async with contextlib.AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(
            open_catalogue(settings.cache_dir, index, settings.layout, settings.idc_version, report)
        )
        arena = stack.enter_context(Arena(settings.memory))
        kept = bytes_folder or settings.cache_dir
        folders = {
            "objects": (kept / "objects", settings.cache_limit),
            "listings": (kept / "listings", LISTING_CACHE_BYTES),
        }
        caches = await stack.enter_async_context(open_caches(folders, arena))
        pages = await stack.enter_async_context(open_page_cache(arena))
        mirrors = Mirrors(store) if store is not None else _mirrors(mirror, arena, timeout)
        store = mirrors.store
        await stack.enter_async_context(store)
        nursery = await stack.enter_async_context(trio.open_nursery())
        objects = caches["objects"]
        listings = Listings(store, mirror, caches["listings"], catalogue.series, metrics, nursery, timeout)
        order = SeriesOrder(catalogue)
        fetcher = Fetcher(store, mirror, objects, listings, pages, metrics, nursery, read_timeout, arena)
        reader = Reader(fetcher, listings, metrics, nursery, read_timeout, arena.size, order.following)
        cohorts = Cohorts(settings.cohort_dir, catalogue, Results(catalogue, settings), nursery, timeout)
        tidy = CohortFolder(settings.cohort_dir).remove_leftovers
        nursery.start_soon(partial(trio.to_thread.run_sync, tidy, abandon_on_cancel=True))
        instances = Instances(catalogue, listings, reader, order)
        status = Status(catalogue, mirror, caches, metrics, mirrors.breakers, limits_failure)
        providers = _providers(catalogue, cohorts, instances, status)
        filesystem = FileSystem(catalogue, cohorts, instances, providers, metrics)
        if settings.xattr:
            report("preparing extended attributes")
            await catalogue.attributes_file()
        yield Parts(filesystem, mirror, catalogue, listings, fetcher, objects, pages, arena, metrics, mirrors)
        with trio.move_on_after(LAST_WRITES_TIMEOUT, shield=True):
            await objects.finish()
        nursery.cancel_scope.cancel()


def _providers(
    catalogue: Catalogue, cohorts: Cohorts, instances: Instances, status: Status
) -> dict[int, Provider[FolderAddress]]:
    """The providers of all but instances, by facet."""
    attributes = Attributes(catalogue)
    cohorts_folder = CohortsFolder(cohorts, catalogue)
    views = Views(catalogue, instances, attributes, {COHORTS_NAME: cohorts_folder.node})
    control = Control(IDC, views, catalogue, attributes, status)
    return control.providers | cohort_providers(cohorts, catalogue, views, cohorts_folder)


def _told_apart(mirror: Mirror) -> Mirror:
    """A folder that says what it holds in a README, as the sample does, has cache entries of its own for that.

    Real objects that take the sample's place in a folder must not meet what was cached of the sample.
    """
    if mirror.folder is None:
        return mirror
    try:
        label = hashlib.sha256((mirror.folder / "README.txt").read_bytes()).hexdigest()[:8]
    except OSError:
        return mirror
    namespace = f"{mirror.bytes_namespace}-{label}"
    return replace(mirror, bytes_namespace=namespace, listing_namespace=namespace)


def _mirrors(mirror: Mirror, arena: Arena, timeout: float) -> Mirrors:
    """What asks a mirror: each member, or the one that it is, with attempts and a breaker of its own."""
    members = mirror.members or [mirror]
    sources = [_source(member, arena, timeout) for member in members]
    # Where another can be asked instead, that is tried sooner.
    attempts = max(2, ATTEMPTS // len(sources))
    breakers = [
        BreakerStore(RetryingStore(source, attempts=attempts), member.word)
        for source, member in zip(sources, members, strict=True)
    ]
    if not mirror.members:
        return Mirrors(breakers[0], breakers, sources)
    store = FailoverStore([Member(*pair) for pair in zip(members, breakers, strict=True)])
    return Mirrors(store, breakers, sources)


def _source(mirror: Mirror, arena: Arena, timeout: float) -> ObjectStore:
    """What asks one mirror, once."""
    if mirror.folder is not None:
        return FolderStore(mirror.folder)
    assert mirror.endpoint is not None
    return S3Store(mirror.endpoint, arena, timeout=timeout)
