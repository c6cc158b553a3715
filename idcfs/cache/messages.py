"""What the cache server is asked, and what it answers; pure.

`cache` is the name of one of the server's caches. Values are in the arena, from `at` on; after its answer the server
neither reads nor writes them. What could not be done is answered by `Failed`.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Folders(NamedTuple):
    """The server's options: for each cache its name, its folder, and the bytes that it may take."""

    caches: Sequence[tuple[str, str, int]]


class Get(NamedTuple):
    """Find the value under *key* and put it into *capacity* bytes; answered by `Found`."""

    cache: str
    key: str
    capacity: int
    at: int


class Found(NamedTuple):
    """The length of a value, None if there is none; if it is longer than the capacity, it is not in the arena."""

    length: int | None
    file: str | None  # the entry's, if it has one of its own


class Put(NamedTuple):
    """Keep *length* bytes under *key*; answered by `Done` when that is done."""

    cache: str
    key: str
    length: int
    at: int


class Delete(NamedTuple):
    """Drop the entries under *keys*, after every `Put` that came before; answered by `Done`."""

    cache: str
    keys: Sequence[str]


class HasAny(NamedTuple):
    """Is there a key that starts with *prefix*? Answered by `Has`."""

    cache: str
    prefix: str


class Has(NamedTuple):
    """Whether there is one."""

    any: bool


class GetUsage(NamedTuple):
    """How large is the cache? Answered by `Usage`."""

    cache: str


class Usage(NamedTuple):
    """The number of entries, and the bytes that they take on disk."""

    entries: int
    bytes: int


class TryDisk(NamedTuple):
    """Answered by `Done` when the disk answers, or by `CacheUnusable` if a folder cannot be used."""
