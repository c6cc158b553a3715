"""The file system of a mount, built from settings, an index and a store; knows no FUSE.

Each part is made once, in here, from the parts before it, and is not changed afterwards; they close in the opposite
order. All tasks run in one nursery, which ends before what they use is closed.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from idcfs.cache.client import Cache, open_caches
from idcfs.catalog.catalogue import Catalogue, open_catalogue
from idcfs.catalog.index import Index
from idcfs.cohorts import folder as cohort_files
from idcfs.cohorts.registry import Cohorts
from idcfs.cohorts.results import Results
from idcfs.config import Settings
from idcfs.inode import Facet, FolderAddress
from idcfs.metrics import Metrics
from idcfs.pages.client import PageCache, open_page_cache
from idcfs.processes.arena import Arena
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listings
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.store.base import ObjectStore
from idcfs.store.mirror import Mirror
from idcfs.store.opening import Stores, build_stores, find_mirror
from idcfs.tree.attributes import Attributes
from idcfs.tree.cohorts import COHORTS_NAME, CohortFolder, CohortsFolder
from idcfs.tree.control import Control
from idcfs.tree.control_files import CONTROL_FILES
from idcfs.tree.filesystem import FileSystem
from idcfs.tree.instances import Instances
from idcfs.tree.provider import Provider
from idcfs.tree.status import Status
from idcfs.tree.views import Views

LISTING_CACHE_BYTES = 1 << 30
"""A listing takes about 130 bytes an instance, so this is some eight million files' worth."""

LAST_WRITES_TIMEOUT = 5.0
"""Seconds that the cache is given at the end to write what was fetched."""


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
    stores: Stores


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
    mirror, metrics, timeout = find_mirror(settings.mirror), Metrics(), settings.timeout
    read_timeout = read_timeout or (lambda: timeout)
    if store is None:
        mirror.check()
    async with contextlib.AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(
            open_catalogue(settings.cache_dir, index, settings.layout, settings.idc_version, report)
        )
        arena = stack.enter_context(Arena(settings.memory))
        kept = bytes_folder or settings.cache_dir
        limits = {"objects": settings.cache_limit, "listings": LISTING_CACHE_BYTES}
        folders = {name: (kept / name, limit) for name, limit in limits.items()}
        caches = await stack.enter_async_context(open_caches(folders, arena))
        pages = await stack.enter_async_context(open_page_cache(arena))
        stores = build_stores(mirror, arena, timeout) if store is None else Stores(store)
        store = await stack.enter_async_context(stores.outermost)
        nursery = await stack.enter_async_context(trio.open_nursery())
        objects = caches["objects"]
        listings = Listings(store, mirror, caches["listings"], catalogue.series, metrics, nursery, timeout)
        order = SeriesOrder(catalogue)
        fetcher = Fetcher(store, mirror, objects, listings, pages, metrics, nursery, read_timeout, arena)
        reader = Reader(fetcher, listings, metrics, nursery, read_timeout, arena.size, order.following)
        cohorts = Cohorts(settings.cohort_dir, catalogue, Results(catalogue, settings), nursery, timeout)
        tidy = cohort_files.CohortTexts(settings.cohort_dir).remove_leftovers
        nursery.start_soon(partial(trio.to_thread.run_sync, tidy, abandon_on_cancel=True))
        instances = Instances(catalogue, listings, reader, order)
        status = Status(catalogue, mirror, caches, metrics, stores.breakers, limits_failure)
        providers = _providers(catalogue, cohorts, instances, status)
        filesystem = FileSystem(catalogue, cohorts, instances, providers, metrics)
        if settings.xattr:
            report("preparing extended attributes")
            await catalogue.attributes_file()
        yield Parts(filesystem, mirror, catalogue, listings, fetcher, objects, pages, arena, metrics, stores)
        with trio.move_on_after(LAST_WRITES_TIMEOUT, shield=True):
            await objects.finish()
        nursery.cancel_scope.cancel()


def _providers(
    catalogue: Catalogue, cohorts: Cohorts, instances: Instances, status: Status
) -> dict[int, Provider[FolderAddress]]:
    """Return the providers of all but instances, by facet."""
    attributes = Attributes(catalogue)
    cohorts_folder = CohortsFolder(cohorts, catalogue)
    views = Views(catalogue, instances, attributes, {COHORTS_NAME: cohorts_folder.node})
    control = Control(CONTROL_FILES, views, catalogue, attributes, status)
    cohort = CohortFolder(cohorts, catalogue, views)
    return {
        **control.providers,
        Facet.COHORTS: cohorts_folder,
        Facet.COHORT: cohort,
        **dict(cohort.files.values()),
    }
