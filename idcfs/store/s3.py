"""`S3Store`: an `ObjectStore` over anything that speaks S3's REST interface, asked unsigned by worker processes.

Two processes each have a core and an interpreter's lock of their own, so that fetching in bulk and answering the
kernel do not wait for each other. A worker that dies is replaced when the next request comes; what it had been asked
for fails as `Unreachable`, which is tried again. Belongs to one trio run; workers are started by exec, and end when
their socket does, so also when this process is killed.
"""

import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import trio

from idcfs import errors
from idcfs.errors import Unreachable
from idcfs.store.arena import Arena
from idcfs.store.base import ListPage, ObjectInfo

log = logging.getLogger(__name__)

WORKERS = 2
"""Two are as quick as more on the machines that were measured, and each takes 40 MB."""

ARENA_BYTES = 128 << 20
"""Address space for what one worker fetches and the reader keeps; what was never used takes no memory."""

COPIED_BYTES = 64 << 10
"""Up to this size bytes are copied out of the arena: heads, which are kept while wholes come and go."""

_END_SECONDS = 2.0


class S3Store:
    """The objects at *endpoint*, a URL.

    *connect_timeout* and *read_timeout* are seconds to connect and between two arrivals of bytes; *max_connections*
    requests are sent at once, others wait; *workers* processes send them.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        max_connections: int = 256,
        workers: int = WORKERS,
    ) -> None:
        self._options = {
            "endpoint": endpoint,
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "max_connections": max(1, max_connections // workers),
        }
        self._workers: list[_Worker | None] = [None] * workers
        self._stack = contextlib.AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, trace)

    def start(self) -> None:
        """Start the workers now: the first request would wait for half a second."""
        for at in range(len(self._workers)):
            self._worker_at(at)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits for the network. Whether pages ascend is the caller's check."""
        request = {"do": "list", "bucket": bucket, "prefix": prefix, "token": token}
        with self._least_busy() as worker:
            answer = await worker.ask(request)
        return ListPage([ObjectInfo(*described) for described in answer["objects"]], answer["token"])

    async def get(self, bucket: str, key: str, start: int, stop: int, etag: str) -> bytes | memoryview:
        """See `ObjectStore.get`; waits for the network."""
        request = {"do": "get", "bucket": bucket, "key": key, "start": start, "stop": stop, "etag": etag}
        with self._least_busy() as worker:
            return await worker.fetch(request, stop - start)

    @contextlib.contextmanager
    def _least_busy(self) -> "Iterator[_Worker]":
        worker = min((self._worker_at(at) for at in range(len(self._workers))), key=lambda worker: worker.busy)
        # From now on, so that those who wait for memory count too.
        worker.busy += 1
        try:
            yield worker
        finally:
            worker.busy -= 1

    def _worker_at(self, at: int) -> "_Worker":
        worker = self._workers[at]
        if self._nursery is None:
            raise Unreachable(f"{self._options['endpoint']}: the mirror is not open")
        if worker is None or worker.ended:
            worker = self._workers[at] = _Worker(self._options)
            self._nursery.start_soon(worker.run)
        return worker


class _Request:
    """A request under way."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: dict[str, Any] | None = None


class _Worker:
    """One worker process, and what it was asked."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.ended = False
        self.busy = 0
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._arena = Arena(ARENA_BYTES)
        self._ids = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._to_send = bytearray()
        self._something = trio.Event()

    async def run(self) -> None:
        """Start the process, send requests and take answers until it ends."""
        try:
            process, ours = self._start()
        except OSError as error:
            reason = f"a worker cannot be started: {error}"
            log.error(reason)
            self._end(reason)
            return
        self._process = process
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream)
                await self._receive(stream)
                nursery.cancel_scope.cancel()
        except (trio.BrokenResourceError, ExceptionGroup) as error:
            log.debug("a worker's socket broke: %r", error)
        finally:
            self._end("the worker process has ended")
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_reap, process)

    def _start(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        descriptor = self._arena.descriptor
        with contextlib.ExitStack() as if_it_fails, contextlib.ExitStack() as at_once:
            at_once.callback(os.close, descriptor)
            ours, theirs = socket.socketpair()
            if_it_fails.enter_context(ours)
            at_once.enter_context(theirs)
            options = {
                "client": self._options,
                "socket": theirs.fileno(),
                "arena": descriptor,
                "arena_size": self._arena.size,
            }
            command = [sys.executable, "-P", "-m", "idcfs.store.worker", json.dumps(options)]
            process = subprocess.Popen(command, pass_fds=(theirs.fileno(), descriptor), stdin=subprocess.DEVNULL)
            if_it_fails.pop_all()
        return process, ours

    async def _send(self, stream: trio.SocketStream) -> None:
        while True:
            await self._something.wait()
            self._something = trio.Event()
            # What came together goes together.
            sent, self._to_send = self._to_send, bytearray()
            await stream.send_all(sent)

    async def _receive(self, stream: trio.SocketStream) -> None:
        received = bytearray()
        async for chunk in stream:
            received += chunk
            *lines, rest = received.split(b"\n")
            received = bytearray(rest)
            for line in lines:
                answer = json.loads(line)
                request = self._requests.pop(answer["id"], None)
                if request is not None:
                    request.answer = answer
                    request.answered.set()

    def _end(self, reason: str) -> None:
        self.ended = True
        for request in self._requests.values():
            request.answer = {"error": "Unreachable", "message": f"{self._options['endpoint']}: {reason}"}
            request.answered.set()
        self._requests.clear()

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ReadError: what the worker says, or that it has ended.
        """
        if self.ended:
            raise Unreachable(f"{self._options['endpoint']}: the worker process has ended")
        number = next(self._ids)
        request = self._requests[number] = _Request()
        self._post({**message, "id": number})
        try:
            await request.answered.wait()
        except trio.Cancelled:
            self._post({"cancel": number})
            # Until it answers, it may write into the region.
            with trio.move_on_after(_END_SECONDS, shield=True):
                await request.answered.wait()
            if not request.answered.is_set():
                self._kill()
            raise
        assert request.answer is not None
        if "error" in request.answer:
            raise getattr(errors, request.answer["error"])(request.answer["message"])
        return request.answer

    async def fetch(self, message: dict[str, Any], length: int) -> bytes | memoryview:
        """The *length* bytes that a request puts into the arena.

        Raises:
            As `ask`.
        """
        region = await self._arena.take(length)
        try:
            await self.ask({**message, "at": region.start})
        except BaseException:
            self._arena.give_back(region)
            raise
        buffer = self._arena.buffer(region)
        # Kept for long, the small ones would leave no room for large ones between them.
        return bytes(buffer) if length <= COPIED_BYTES else buffer

    def _kill(self) -> None:
        """End a worker that is stopped or stuck: nobody who waits for it is to wait for ever."""
        if self._process is not None:
            self._process.kill()
        self._end("the worker process did not answer")

    def _post(self, message: dict[str, Any]) -> None:
        self._to_send += json.dumps(message).encode() + b"\n"
        self._something.set()


def _reap(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
