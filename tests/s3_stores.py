"""An `S3Store` with an arena of its own, of which nothing is leased any more when it has been left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from idcfs.processes.arena import Arena
from idcfs.store.s3 import S3Store

ARENA_BYTES = 8 << 20


@asynccontextmanager
async def s3_store(endpoint: str, *, arena_bytes: int = ARENA_BYTES, **options: Any) -> AsyncIterator[S3Store]:
    """A store that is open; *options* are those of `S3Store`. Whoever gets a body from it releases that."""
    with Arena(arena_bytes) as arena:
        async with S3Store(endpoint, arena, **options) as store:
            yield store
        assert arena.leased == 0, "a lease was not returned"
