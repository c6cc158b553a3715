"""`S3Store`: an `ObjectStore` over anything that speaks S3's REST interface, asked unsigned by child processes.

Processes each have a core and an interpreter's lock of their own, so that fetching in bulk and answering the
kernel do not wait for each other. Belongs to one trio run.
"""

from typing import Any, Self

from idcfs.errors import ReadError, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.child import Program
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Done, Failed, Message
from idcfs.processes.pool import Pool
from idcfs.store.base import Finished, ListPage, ObjectInfo, Progress, Range
from idcfs.store.messages import ClientOptions, Filled, Get, List, Page

PROCESSES = 2
"""Measured: three were no faster on four cores; each takes 25 to 40 MB."""


class S3Store:
    """The objects at *endpoint*, a URL.

    What is fetched goes through *arena*. A request may take *timeout* seconds, and is given up earlier if it stalls;
    *max_connections* requests are sent at once, others wait; *processes* send them.
    """

    def __init__(
        self,
        endpoint: str,
        arena: Arena,
        *,
        timeout: float = 30.0,
        max_connections: int = 256,
        processes: int = PROCESSES,
    ) -> None:
        self._arena = arena
        options = ClientOptions(endpoint, timeout, max(1, max_connections // processes))
        program = Program("idcfs.store.server", [Page, Filled], options, arena=arena, subject=endpoint)
        self._pool = Pool(processes, program)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._pool.__aexit__(*error)

    def start(self) -> None:
        """Start the processes now: the first request would wait for half a second."""
        self._pool.start()

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits for the network. Whether pages ascend is the caller's check."""
        page = await self._pool.child().ask(List(bucket, prefix, token), Page)
        return ListPage([ObjectInfo(*described) for described in page.objects], page.token)

    async def get(self, wanted: Range, progress: Progress | None = None) -> Lease:
        """See `ObjectStore.get`; waits for the network, and for memory."""
        with await self._arena.take(wanted.length, self._arena.reserve) as lease:

            def progressed(filled: Message) -> None:
                assert isinstance(filled, Filled)
                assert progress is not None
                progress(lease, filled.length)

            await self._pool.child().ask(Get(wanted, lease.start, progress is not None), Done, lease, progressed)
            return lease.hold()

    def get_soon(self, wanted: Range, finished: Finished) -> bool:
        """See `ObjectStore.get_soon`."""
        lease = self._arena.take_now(wanted.length, self._arena.reserve)
        if lease is None:
            return False

        def answered(message: Message) -> None:
            if not isinstance(message, Failed):
                finished(lease)
                return
            lease.release()
            error = message.error()
            finished(error if isinstance(error, ReadError) else Unreachable(str(error)))

        try:
            self._pool.child().post(Get(wanted, lease.start, False), answered, lease)
        except Unreachable:
            lease.release()
            return False
        return True
