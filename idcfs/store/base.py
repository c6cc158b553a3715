"""The `ObjectStore` protocol: what every mirror can do.

Calls may run concurrently. A call that returns has verified what it returns; a call that cannot raises one of
the `ReadError` family and has no other effect. Cancelling a call gives up its request.
"""

import re
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from idcfs.errors import ReadError
from idcfs.processes.arena import Lease

MD5_ETAG = re.compile(r'"([0-9a-f]{32})"', re.ASCII)
"""An ETag that is the MD5 of the object; that of one that was uploaded in parts has a dash and their number."""


class ObjectVersion(NamedTuple):
    """How a listing says that an object is stored: `etag` is its ETag with its quotes, `size` is in bytes."""

    etag: str
    size: int


class ObjectInfo(NamedTuple):
    """One object as a listing describes it.

    `size` is in bytes, `modified_ns` is the LastModified time in nanoseconds since the epoch, `etag` is the
    ETag header's value with its quotes.
    """

    key: str
    size: int
    etag: str
    modified_ns: int

    @property
    def version(self) -> ObjectVersion:
        """What `ObjectStore.get` holds an answer against."""
        return ObjectVersion(self.etag, self.size)


class ListPage(NamedTuple):
    """One page of a listing, in key order; `token` asks for the next page and is None on the last."""

    objects: list[ObjectInfo]
    token: str | None


Body = bytes | Lease
"""The bytes of a range. Whoever gets a lease releases it."""

Progress = Callable[[Lease, int], None]
"""Takes the lease that a range comes into, which its caller holds, and how many of its first bytes are there."""

Finished = Callable[[Body | ReadError], None]
"""Takes the bytes, or the reason why there are none."""


class ObjectStore(Protocol):
    """A read-only store of objects in buckets."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """List up to 1,000 objects whose keys start with *prefix*, in key order.

        A prefix without objects gives an empty page. Waits for the network.

        Raises:
            NotFound: there is no such bucket.
            AccessDenied, Unreachable: as their names say.
            Untrusted: the answer is not a listing, or holds a key outside *prefix*.
        """
        ...

    async def get(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, progress: Progress | None = None
    ) -> Body:
        """Bytes *start* to *stop* (exclusive, at least one) of the object, if it is still stored as *version* says.

        Waits for the network. Exactly ``stop - start`` bytes come back. *progress* may be told of them as they come;
        if they stop coming, it may be told of them from the start again.

        Raises:
            NotFound: there is no such object.
            ObjectChanged: the object's ETag is another one.
            AccessDenied, Unreachable: as their names say.
            Untrusted: the body or its range is not what was asked for, or the object has another size under the ETag.
        """
        ...

    def get_soon(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, finished: Finished
    ) -> bool:
        """As `get`, once, but wait for nothing: *finished* is later called with what it would return or raise.

        False, and nothing is started, if that cannot be done now, or not by this store.
        """
        ...


class StoreAround:
    """What stores have in common that stand around *inner*, another one: it is open while they are."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
