"""A process that asks a mirror, so that HTTP, TLS and the copying of bodies do not stand in the file system's way.

    python -m idcfs.store.server OPTIONS

OPTIONS is JSON: the arguments of `S3Client`, the descriptors of a socket and of an arena (`idcfs.processes.arena`).
Requests and answers are lines of JSON on the socket; bodies go into the arena. A request has an `id` and

    list    bucket, prefix, token           answered with `objects` and `token`
    get     bucket, key, start, stop, etag, size, and `at`, where the bytes are to be in the arena; if it has `tell`,
            answers with `filled` say now and then how many bytes are there
    cancel  the `id` of another request, which is then answered at once

Each request but cancel has just one answer; after it the worker writes no more to its region. An answer that has an
`error` (a class of `idcfs.errors`) has a `message` too. The end of the socket means that the file system is gone.
"""

import asyncio
import contextlib
import functools
import json
import mmap
import os
import signal
import socket
import sys
from typing import Any

from idcfs.errors import ReadError, Unreachable
from idcfs.store.base import ObjectVersion
from idcfs.store.s3_client import S3Client

NICENESS = 5

LONGEST_REQUEST = 1 << 20
"""Bytes of a request's line; keys and tokens are far shorter."""


class Worker:
    """Answers requests."""

    def __init__(self, client: S3Client | None, why_not: str, arena: memoryview, writer: asyncio.StreamWriter) -> None:
        self._client = client
        self._why_not = why_not
        self._arena = arena
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[dict[str, Any]]] = {}
        self._answers = b""

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer until the other side is gone."""
        async for line in reader:
            request = json.loads(line)
            if "cancel" in request:
                task = self._tasks.get(request["cancel"])
                if task is not None:
                    task.cancel()
            else:
                task = self._tasks[request["id"]] = asyncio.create_task(self._do(request))
                # Not within the task: one that is cancelled before it begins never runs.
                task.add_done_callback(functools.partial(self._answer, request["id"]))

    def _answer(self, number: int, task: asyncio.Task[dict[str, Any]]) -> None:
        del self._tasks[number]
        error = asyncio.CancelledError("given up") if task.cancelled() else task.exception()
        if error is None:
            answer = task.result()
        elif isinstance(error, ReadError):
            answer = {"error": type(error).__name__, "message": str(error)}
        else:
            answer = {"error": "Unreachable", "message": f"the worker failed: {error!r}"}
        self._send(json.dumps({"id": number, **answer}).encode() + b"\n")

    def _send(self, line: bytes) -> None:
        if not self._answers:
            # Together with what else is done in this turn of the loop: each arrival wakes the file system.
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers += line

    def _flush(self) -> None:
        self._writer.write(self._answers)
        self._answers = b""

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._client is None:
            raise Unreachable(self._why_not)
        if request["do"] == "list":
            page = await self._client.list_page(request["bucket"], request["prefix"], request["token"])
            return {"objects": page.objects, "token": page.token}
        start, stop, at = request["start"], request["stop"], request["at"]
        buffer = self._arena[at : at + stop - start]
        arrived = functools.partial(self._tell, request["id"]) if request.get("tell") else None
        version = ObjectVersion(request["etag"], request["size"])
        await self._client.get_into(request["bucket"], request["key"], start, stop, version, buffer, arrived)
        return {}

    def _tell(self, number: int, filled: int) -> None:
        self._send(json.dumps({"id": number, "filled": filled}).encode() + b"\n")


async def run(options: dict[str, Any]) -> None:
    """Serve the socket that *options* names."""
    arena = memoryview(mmap.mmap(options["arena"], options["arena_size"]))
    connection = socket.socket(fileno=options["socket"])
    reader, writer = await asyncio.open_connection(sock=connection, limit=LONGEST_REQUEST)
    async with contextlib.AsyncExitStack() as stack:
        why_not = ""
        client: S3Client | None = None
        try:
            client = await stack.enter_async_context(S3Client(**options["client"]))
        except Exception as error:
            why_not = f"{options['client']['endpoint']}: the S3 client cannot start: {error}"
        await Worker(client, why_not, arena, writer).serve(reader)


def main() -> None:
    """Run as a process."""
    # Answers to what is here already go before what is fetched.
    os.nice(NICENESS)
    # Ctrl-C is for the file system, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError):
        asyncio.run(run(json.loads(sys.argv[1])))
    # Requests under way are not worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    main()
