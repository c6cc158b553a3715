"""The stores of a mount, built as the drawing in `idcfs.store` shows them; the caller opens the outermost one."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from idcfs.processes.arena import Arena
from idcfs.store.base import ObjectStore
from idcfs.store.breaker import BreakerStore
from idcfs.store.failover import FailoverStore, Member
from idcfs.store.folder import FolderStore
from idcfs.store.mirror import Mirror, parse_mirror
from idcfs.store.retry import ATTEMPTS, RetryingStore
from idcfs.store.s3 import S3Store


class Stores(NamedTuple):
    """The stores of a mount: `outermost` asks all mirrors as one, each of `breakers` asks one.

    `start` starts the processes of the first mirror, which its first request would otherwise wait for: half a second.
    """

    outermost: ObjectStore
    breakers: Sequence[BreakerStore] = ()
    start: Callable[[], None] = lambda: None


def find_mirror(word: str) -> Mirror:
    """Return the mirror that *word* names; a folder with a README has cache entries of its own for that README.

    The README of the sample says what it holds. Real objects that take the sample's place in a folder must not meet
    what was cached of the sample.

    Raises:
        UsageError: *word* names none.
    """
    mirror = parse_mirror(word)
    if mirror.folder is None:
        return mirror
    try:
        label = hashlib.sha256((mirror.folder / "README.txt").read_bytes()).hexdigest()[:8]
    except OSError:
        return mirror
    namespace = f"{mirror.bytes_namespace}-{label}"
    return replace(mirror, bytes_namespace=namespace, listing_namespace=namespace)


def build_stores(mirror: Mirror, arena: Arena, timeout: float) -> Stores:
    """Return the stores of *mirror*, which put bytes into *arena*; one call to them takes up to *timeout* seconds."""
    members = mirror.members or (mirror,)
    # A mirror that is no folder has an endpoint.
    sources = [
        FolderStore(member.folder) if member.folder else S3Store(str(member.endpoint), arena, timeout=timeout)
        for member in members
    ]
    # With another mirror to ask, that is tried sooner.
    attempts = max(2, ATTEMPTS // len(sources))
    breakers = [
        BreakerStore(RetryingStore(source, attempts=attempts), member.word)
        for source, member in zip(sources, members, strict=True)
    ]
    several = [Member(*pair) for pair in zip(members, breakers, strict=True)] if mirror.members else []
    start = sources[0].start if isinstance(sources[0], S3Store) else lambda: None
    return Stores(FailoverStore(several) if several else breakers[0], breakers, start)
