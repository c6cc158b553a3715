"""A process that asks a mirror, so that HTTP, TLS and the copying of bodies do not hold up the event loop; asyncio.

It answers the messages of `idcfs.store.messages`; bodies go into the arena. The end of its socket means that the file
system is gone.
"""

import asyncio
import contextlib
import functools
import os
import signal

from idcfs.errors import ReadError, Unreachable
from idcfs.processes.messages import Cancel, Done, Envelope, Failed, Message
from idcfs.processes.server import Connection, shared_arena
from idcfs.store.base import ObjectVersion, Range
from idcfs.store.messages import ClientOptions, Filled, Get, List, Page
from idcfs.store.s3_client import S3Client

NICENESS = 5


class Server:
    """Answers requests; without a *client*, with the reason *why_not*."""

    def __init__(self, client: S3Client | None, why_not: str, arena: memoryview, connection: Connection) -> None:
        self._client = client
        self._why_not = why_not
        self._arena = arena
        self._connection = connection
        self._tasks: dict[int, asyncio.Task[Message]] = {}
        self._flushes = False

    async def serve(self) -> None:
        """Answer until the other side is gone."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def receive() -> None:
            envelopes = self._connection.receive()
            if envelopes is None:
                loop.remove_reader(self._connection.fileno())
                ended.set_result(None)
            for envelope in envelopes or ():
                self._take(envelope)

        loop.add_reader(self._connection.fileno(), receive)
        await ended

    def _take(self, envelope: Envelope) -> None:
        number, _, request = envelope
        if not isinstance(request, Cancel):
            task = self._tasks[number] = asyncio.create_task(self._answer_to(number, request))
            # Not within the task: one that is cancelled before it begins never runs.
            task.add_done_callback(functools.partial(self._answer, number))
        elif number in self._tasks:
            self._tasks[number].cancel()

    def _answer(self, number: int, task: asyncio.Task[Message]) -> None:
        del self._tasks[number]
        error = asyncio.CancelledError("given up") if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ReadError):
            error = Unreachable(f"the process failed: {error!r}")
        self._send(number, task.result() if error is None else Failed.of(error))

    def _send(self, number: int, message: Message, is_last: bool = True) -> None:
        self._connection.add(number, message, is_last)
        if not self._flushes:
            # What is answered in one turn of the loop is sent together.
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        self._connection.flush()

    async def _answer_to(self, number: int, request: Message) -> Message:
        if self._client is None:
            raise Unreachable(self._why_not)
        if isinstance(request, List):
            return Page(*await self._client.list_page(*request))
        assert isinstance(request, Get)
        bucket, key, start, stop, version = request.wanted
        wanted = Range(bucket, key, start, stop, ObjectVersion(*version))
        buffer = self._arena[request.at : request.at + wanted.length]

        def progress(filled: int) -> None:
            self._send(number, Filled(filled), is_last=False)

        await self._client.get_into(wanted, buffer, progress if request.wants_progress else None)
        return Done()


async def run() -> None:
    """Serve the connection of this process."""
    connection = Connection.of_this_process([ClientOptions, List, Get])
    _, options = connection.first(ClientOptions)
    async with contextlib.AsyncExitStack() as stack:
        why_not = ""
        client: S3Client | None = None
        try:
            client = await stack.enter_async_context(S3Client(*options))
        except Exception as error:
            why_not = f"{options.endpoint}: the S3 client cannot start: {error}"
        await Server(client, why_not, shared_arena(), connection).serve()


def main() -> None:
    """Run as a process."""
    # Answers to what is here already go before what is fetched.
    os.nice(NICENESS)
    # Ctrl-C is for the file system, which ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(run())
    # Requests under way are not worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    main()
