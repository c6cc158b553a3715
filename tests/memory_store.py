"""An `ObjectStore` in memory, which counts what it is asked, and one that fails to a script."""

from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from hashlib import md5
from types import TracebackType
from typing import NamedTuple, Self

import trio

from idcfs.errors import NotFound, ObjectChanged, ReadError, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.store.base import Body, Finished, ListPage, ObjectInfo, ObjectStore, ObjectVersion, Progress, Range

_PAGE_LENGTH = 1000
_ARRIVAL_BYTES = 100_000
"""Bytes of a body that come at a time."""


class StoredObject(NamedTuple):
    content: bytes
    etag: str
    modified_ns: int


class Request(NamedTuple):
    """One call of a store; `key` is the prefix of a listing, whose `start` and `stop` are None."""

    operation: str
    bucket: str
    key: str
    start: int | None = None
    stop: int | None = None


class _Soon:
    """`get_soon` for a store that has `get`; while it is open."""

    def __init__(self) -> None:
        # It may be opened again while it is open.
        self._opened: list[tuple[AsyncExitStack, trio.Nursery]] = []

    async def __aenter__(self) -> Self:
        stack = AsyncExitStack()
        self._opened.append((stack, await stack.enter_async_context(trio.open_nursery())))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, nursery = self._opened.pop()
        # Those who still wait are told that it ends.
        nursery.cancel_scope.cancel()
        await stack.__aexit__(kind, error, trace)

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        raise NotImplementedError  # each kind of store has its own

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        if not self._opened:
            return False
        self._opened[-1][1].start_soon(self._get_and_tell, wanted, finished)
        return True

    async def _get_and_tell(self, wanted: Range, finished: Finished) -> None:
        outcome: Body | ReadError = Unreachable("the store has been closed")
        try:
            outcome = await self.get(wanted)
        except ReadError as error:
            outcome = error
        except Exception as error:
            outcome = Unreachable(f"the store failed: {error!r}")
        finally:
            finished(outcome)


class MemoryStore(_Soon):
    """Objects by bucket and key; `requests` has every call in order."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, dict[str, StoredObject]] = {}
        self.requests: list[Request] = []
        # Where bytes that come little by little are put; without one, they come at once.
        self.arena: Arena | None = None

    def put(self, bucket: str, key: str, content: bytes, modified_ns: int = 1_600_000_000_000_000_000) -> ObjectVersion:
        """Store an object and return what a listing says of it."""
        etag = f'"{md5(content, usedforsecurity=False).hexdigest()}"'
        self.objects.setdefault(bucket, {})[key] = StoredObject(content, etag, modified_ns)
        return ObjectVersion(etag, len(content))

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        self.requests.append(Request("list", bucket, prefix))
        await trio.lowlevel.checkpoint()
        objects = self._bucket(bucket)
        keys = sorted(key for key in objects if key.startswith(prefix) and (token is None or key > token))
        page = keys[:_PAGE_LENGTH]
        described = [
            ObjectInfo(key, len(objects[key].content), objects[key].etag, objects[key].modified_ns) for key in page
        ]
        return ListPage(described, page[-1] if len(keys) > len(page) else None)

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        bucket, key, start, stop, version = wanted
        self.requests.append(Request("get", bucket, key, start, stop))
        await trio.lowlevel.checkpoint()
        stored = self._bucket(bucket).get(key)
        if stored is None:
            raise NotFound(f"no object {bucket}/{key}")
        if stored.etag != version.etag:
            raise ObjectChanged(f"{bucket}/{key} has changed")
        if len(stored.content) != version.size:
            raise Untrusted(f"{bucket}/{key} has {len(stored.content)} bytes, not {version.size}")
        if not 0 <= start < stop <= len(stored.content):
            raise Untrusted(f"{bucket}/{key} has no bytes {start} to {stop}")
        if progress is None or self.arena is None:
            return stored.content[start:stop]
        with await self.arena.take(stop - start) as lease:
            for at in range(0, stop - start, _ARRIVAL_BYTES):
                some = stored.content[start + at : min(stop, start + at + _ARRIVAL_BYTES)]
                lease.view[at : at + len(some)] = some
                progress(lease, at + len(some))
                await trio.lowlevel.checkpoint()
            return lease.hold()

    def _bucket(self, bucket: str) -> dict[str, StoredObject]:
        if bucket not in self.objects:
            raise NotFound(f"no bucket {bucket}")
        return self.objects[bucket]


class FailingStore(_Soon):
    """Does what *script* says before each call of *inner*: raise an exception, sleep seconds, or (None) nothing.

    Once the script is used up, all calls pass.
    """

    def __init__(self, inner: ObjectStore, script: Iterable[Exception | float | None]) -> None:
        super().__init__()
        self.calls = 0
        self._inner = inner
        self._script: Iterator[Exception | float | None] = iter(script)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._inner.__aexit__(kind, error, trace)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        await self._act()
        return await self._inner.list_page(bucket, prefix, token)

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        await self._act()
        return await self._inner.get(wanted, progress)

    async def _act(self) -> None:
        self.calls += 1
        step = next(self._script, None)
        if isinstance(step, Exception):
            raise step
        if step is not None:
            await trio.sleep(step)
