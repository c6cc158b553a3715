"""Series in a store in memory, and what lists and keeps them, without a tree."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import trio

from idcfs.cache.client import Cache, open_caches
from idcfs.catalog.catalogue import Series
from idcfs.metrics import Metrics
from idcfs.processes.arena import Arena
from idcfs.reading.listings import Listings
from idcfs.store.base import ObjectStore
from idcfs.store.mirror import Mirror, parse_mirror
from tests.memory_store import MemoryStore

BUCKET = "idc-open-data"
UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(4)]
"""A series' number is its place here."""

_LIMIT = 1 << 30


class Listed(NamedTuple):
    """What `open_listed` makes; `objects` is the cache of objects."""

    mirror: Mirror
    arena: Arena
    objects: Cache
    listings: Listings
    metrics: Metrics
    nursery: trio.Nursery


@contextlib.asynccontextmanager
async def open_listed(folder: Path, store: ObjectStore, seconds: float = 30) -> AsyncIterator[Listed]:
    """Listings of the series of *store*, whose caches are in *folder*; at the end, all memory must be free."""
    mirror, metrics = parse_mirror("aws"), Metrics()
    with Arena(16 << 20) as arena:
        folders = {name: (folder / name, _LIMIT) for name in ("objects", "listings")}
        async with open_caches(folders, arena) as caches, store, trio.open_nursery() as nursery:

            def series(number: int) -> Series:
                return Series(UUIDS[number], BUCKET, 0, 0)

            listings = Listings(store, mirror, caches["listings"], series, metrics, nursery, seconds)
            yield Listed(mirror, arena, caches["objects"], listings, metrics, nursery)
            for cache in caches.values():
                await cache.finish()
            nursery.cancel_scope.cancel()
        assert arena.leased == 0


def put(store: MemoryStore, series: int, name: str, content: bytes, bucket: str = BUCKET) -> None:
    """Store an instance."""
    store.put(bucket, f"{UUIDS[series]}/{name}", content)
