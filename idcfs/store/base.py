"""The `ObjectStore` protocol: what every mirror can do.

Calls may run concurrently. A call returns verified bytes or raises one of the `ReadError` family, and has no other
effect. Cancelling a call gives up its request.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

from idcfs.errors import ReadError
from idcfs.processes.lease import Lease

MD5_ETAG = re.compile(r'"([0-9a-f]{32})"', re.ASCII)
"""An ETag that is the MD5 of the object; that of an object which was uploaded in parts ends in a dash and a number."""


class ObjectVersion(NamedTuple):
    """The version of an object: `etag` is the ETag header's value with its quotes, `size` is in bytes."""

    etag: str
    size: int


class ObjectInfo(NamedTuple):
    """One object as a listing describes it.

    `size` and `etag` are those of `ObjectVersion`; `modified_ns` is LastModified in nanoseconds since the epoch.
    """

    key: str
    size: int
    etag: str
    modified_ns: int

    @property
    def version(self) -> ObjectVersion:
        """The version that a `Range` of this object is of."""
        return ObjectVersion(self.etag, self.size)


class Range(NamedTuple):
    """Bytes *start* to *stop* (exclusive, at least one) of an object that is listed as *version*."""

    bucket: str
    key: str
    start: int
    stop: int
    version: ObjectVersion

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether these are all bytes of the object."""
        return (self.start, self.stop) == (0, self.version.size)


class ListPage(NamedTuple):
    """One page of a listing, in key order; `token` requests the next page and is None on the last."""

    objects: list[ObjectInfo]
    token: str | None


Body = bytes | Lease
"""The bytes of a range. Whoever gets a lease releases it."""

Progress = Callable[[Lease, int], None]
"""A progress callback: called with the lease that bytes come into, and the number of them that are there and right."""

Finished = Callable[[Body | ReadError], None]
"""A completion callback: called once with the bytes, or with the error."""


class ObjectStore(Protocol):
    """A read-only store of objects in buckets."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: Any) -> None: ...

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """List up to 1,000 objects whose keys start with *prefix*, in key order; waits for the network.

        Raises:
            NotFound: there is no such bucket; a prefix without objects gives an empty page.
            AccessDenied, Unreachable: the mirror refuses, or cannot serve.
            Untrusted: the answer is not a listing, or has a key outside *prefix*.
        """
        ...

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        """Return the *wanted* bytes, if the object still has this version; waits for the network.

        *progress* may be called while bytes arrive; after a failed attempt it may start again at the first byte.

        Raises:
            NotFound: there is no such object.
            ObjectChanged: the object has another ETag.
            AccessDenied, Unreachable: the mirror refuses, or cannot serve.
            Untrusted: the body or its range is not the requested one, or the object has another size under the ETag.
        """
        ...

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """Start one attempt of `get` without waiting; *finished* is called later with its result or error.

        Returns False, and starts nothing, if the attempt cannot start now or this store cannot do it.
        """
        ...


class StoreWrapper:
    """The base of stores that ask *inner*, another store, which is open while the wrapper is."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._inner.__aexit__(*error)

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """See `ObjectStore.get_soon`."""
        return self._inner.get_soon(wanted, finished)
