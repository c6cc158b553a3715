"""`S3Store`: an `ObjectStore` over anything that speaks S3's REST interface, asked unsigned by worker processes.

Processes each have a core and an interpreter's lock of their own, so that fetching in bulk and answering the
kernel do not wait for each other. Belongs to one trio run.
"""

from types import TracebackType
from typing import Any, Self

from idcfs.errors import ReadError, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.pool import Workers, error_of
from idcfs.store.base import Done, ListPage, ObjectInfo, ObjectVersion, Progress

WORKERS = 2
"""(m) Three were no faster on four cores; each takes 25 to 40 MB."""


class S3Store:
    """The objects at *endpoint*, a URL.

    What is fetched goes through *arena*. A request may take *timeout* seconds, and is given up earlier if it stalls;
    *max_connections* requests are sent at once, others wait; *workers* processes send them.
    """

    def __init__(
        self,
        endpoint: str,
        arena: Arena,
        *,
        timeout: float = 30.0,
        max_connections: int = 256,
        workers: int = WORKERS,
    ) -> None:
        client = {
            "endpoint": endpoint,
            "timeout": timeout,
            "max_connections": max(1, max_connections // workers),
        }
        self._arena = arena
        self._workers = Workers(workers, "idcfs.store.server", {"client": client}, arena, endpoint)

    async def __aenter__(self) -> Self:
        await self._workers.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._workers.__aexit__(kind, error, trace)

    def start(self) -> None:
        """Start the workers now: the first request would wait for half a second."""
        self._workers.start()

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits for the network. Whether pages ascend is the caller's check."""
        answer = await self._workers.ask({"do": "list", "bucket": bucket, "prefix": prefix, "token": token})
        return ListPage([ObjectInfo(*described) for described in answer["objects"]], answer["token"])

    async def get(
        self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, progress: Progress | None = None
    ) -> bytes | memoryview:
        """See `ObjectStore.get`; waits for the network."""
        request = {**_get(bucket, key, start, stop, version), "tell": progress is not None}
        return await self._workers.fetch(request, stop - start, progress)

    def get_soon(self, bucket: str, key: str, start: int, stop: int, version: ObjectVersion, done: Done) -> bool:
        """See `ObjectStore.get_soon`."""
        buffer = self._arena.take_now(stop - start, self._arena.reserve)
        if buffer is None:
            return False

        def answered(answer: dict[str, Any]) -> None:
            error = error_of(answer)
            if error is None:
                done(buffer)
            else:
                done(error if isinstance(error, ReadError) else Unreachable(str(error)))

        request = {**_get(bucket, key, start, stop, version), "at": self._arena.start(buffer)}
        try:
            self._workers.post(request, answered)
        except Unreachable:
            return False
        return True


def _get(bucket: str, key: str, start: int, stop: int, version: ObjectVersion) -> dict[str, Any]:
    return {"do": "get", "bucket": bucket, "key": key, "start": start, "stop": stop, **version._asdict()}
