"""Worker processes, from trio: programs that answer lines of JSON on a socket and share an arena with this process.

A worker has a core and an interpreter's lock of its own. One that dies is replaced when the next request comes; what
it had been asked for fails as `Unreachable`. Workers are started by exec, and end when their socket does, so also
when this process is killed. Belongs to one trio run.
"""

import contextlib
import functools
import itertools
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import trio

from idcfs import errors
from idcfs.errors import Unreachable
from idcfs.processes.arena import Arena

log = logging.getLogger(__name__)

_END_SECONDS = 2.0

T = TypeVar("T")


class Workers:
    """Processes that do the same.

    Args:
        count: how many there are.
        program: the module that they run, with its options as JSON in its one argument: *options*, and `socket`,
            `arena` (descriptors) and `arena_size`.
        subject: what they work on, for messages.

    `options` and `descriptors`, which they inherit, may be changed until they are started.
    """

    def __init__(self, count: int, program: str, options: dict[str, Any], arena: Arena, subject: str) -> None:
        self.options = options
        self.descriptors: list[int] = []
        self._arena = arena
        self._new: Callable[[], _Worker] = lambda: _Worker(program, self.options, self.descriptors, arena, subject)
        self._subject = subject
        self._workers: list[_Worker | None] = [None] * count
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
        """Start the processes now, before the first request waits for that."""
        for at in range(len(self._workers)):
            self._worker_at(at)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer of the least busy worker to a request.

        Raises:
            IdcfsError: what the worker says, or Unreachable if it has ended.
        """
        worker = self._least_busy()
        worker.busy += 1
        try:
            return await worker.ask(message)
        finally:
            worker.busy -= 1

    def post(self, message: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Send a request and wait for nothing; *answered* is given the answer, which may have an `error`.

        Raises:
            Unreachable: no worker can be asked.
        """
        worker = self._least_busy()
        worker.busy += 1

        def take(answer: dict[str, Any]) -> None:
            worker.busy -= 1
            answered(answer)

        worker.post(message, take)

    async def fetch(
        self, message: dict[str, Any], length: int, progress: Callable[[memoryview, int], None] | None = None
    ) -> memoryview:
        """The *length* bytes that a request has put into the arena, but for its reserve.

        Args:
            message: the request; where the bytes go is added as `at`.
            length: how many bytes.
            progress: told that of the buffer so many bytes are filled.

        Raises:
            As `ask`.
        """
        buffer = await self._arena.take(length, self._arena.reserve)
        worker = self._least_busy()
        worker.busy += 1
        try:
            request = {**message, "at": self._arena.start(buffer)}
            told = None if progress is None else functools.partial(progress, buffer)
            await worker.ask(request, told)
        except BaseException:
            # The error's traceback would hold it.
            buffer.release()
            raise
        finally:
            worker.busy -= 1
        return buffer

    def end_all(self, reason: str) -> None:
        """End the processes, which are stopped or stuck: who waits is told *reason*, the next request starts others."""
        for worker in self._workers:
            if worker is not None and not worker.ended:
                worker.kill(reason)

    def _least_busy(self) -> "_Worker":
        return min((self._worker_at(at) for at in range(len(self._workers))), key=lambda worker: worker.busy)

    def _worker_at(self, at: int) -> "_Worker":
        worker = self._workers[at]
        if self._nursery is None:
            raise Unreachable(f"{self._subject}: it is not open")
        if worker is None or worker.ended:
            worker = self._workers[at] = self._new()
            self._nursery.start_soon(worker.run)
        return worker


class _Request(NamedTuple):
    """A request under way, and who is told of its bytes and of its answer."""

    answered: Callable[[dict[str, Any]], None]
    filled: Callable[[int], None] | None


class _Worker:
    """One worker process, and what it was asked."""

    def __init__(
        self, program: str, options: dict[str, Any], descriptors: list[int], arena: Arena, subject: str
    ) -> None:
        self.ended = False
        self.busy = 0
        self._program = program
        self._options = options
        self._descriptors = descriptors
        self._arena = arena
        self._subject = subject
        self._process: subprocess.Popen[bytes] | None = None
        self._ids = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._to_send = bytearray()
        self._something = trio.Event()

    async def run(self) -> None:
        """Start the process, send requests and take answers until it ends."""
        if self.ended:
            return
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
        except* trio.BrokenResourceError as error:
            log.debug("a worker's socket broke: %r", error)
        except* Exception:
            log.exception("a worker cannot be understood")
        finally:
            self._end("the worker process has ended")
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_reap, process)

    def _start(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        with contextlib.ExitStack() as if_it_fails, contextlib.ExitStack() as at_once:
            ours, theirs = socket.socketpair()
            if_it_fails.enter_context(ours)
            at_once.enter_context(theirs)
            options = {
                **self._options,
                "socket": theirs.fileno(),
                "arena": self._arena.descriptor,
                "arena_size": self._arena.size,
            }
            command = [sys.executable, "-P", "-m", self._program, json.dumps(options)]
            descriptors = theirs.fileno(), self._arena.descriptor, *self._descriptors
            process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
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
                self._take(json.loads(line))

    def _take(self, answer: dict[str, Any]) -> None:
        if "filled" in answer:
            request = self._requests.get(answer["id"])
            if request is not None and request.filled is not None:
                _tell(request.filled, answer["filled"])
            return
        request = self._requests.pop(answer["id"], None)
        if request is not None:
            _tell(request.answered, answer)

    def _end(self, reason: str) -> None:
        self.ended = True
        requests, self._requests = self._requests, {}
        for request in requests.values():
            _tell(request.answered, {"error": "Unreachable", "message": f"{self._subject}: {reason}"})

    def post(
        self,
        message: dict[str, Any],
        answered: Callable[[dict[str, Any]], None],
        filled: Callable[[int], None] | None = None,
    ) -> int:
        """Send a request; its number."""
        if self.ended:
            raise Unreachable(f"{self._subject}: the worker process has ended")
        number = next(self._ids)
        self._requests[number] = _Request(answered, filled)
        self._send_soon({**message, "id": number})
        return number

    async def ask(self, message: dict[str, Any], filled: Callable[[int], None] | None = None) -> dict[str, Any]:
        """The answer to a request; *filled* is told how many bytes are there as they come.

        Raises:
            IdcfsError: what the worker says, or that it has ended.
        """
        has_come = trio.Event()
        answer: dict[str, Any] = {}

        def answered(found: dict[str, Any]) -> None:
            answer.update(found)
            has_come.set()

        number = self.post(message, answered, filled)
        try:
            await has_come.wait()
        except trio.Cancelled:
            self._send_soon({"cancel": number})
            # Until it answers, it may write into the region.
            with trio.move_on_after(_END_SECONDS, shield=True):
                await has_come.wait()
            if not has_come.is_set():
                self.kill("the worker process did not answer")
            raise
        error = error_of(answer)
        if error is not None:
            raise error
        return answer

    def kill(self, reason: str) -> None:
        """End a worker that is stopped or stuck: nobody who waits for it is to wait for ever."""
        if self._process is not None:
            self._process.kill()
        self._end(reason)

    def _send_soon(self, message: dict[str, Any]) -> None:
        self._to_send += json.dumps(message).encode() + b"\n"
        self._something.set()


def _tell(who: Callable[[T], None], what: T) -> None:
    """Tell who asked; what goes wrong there is no fault of the worker's, and others wait for it too."""
    try:
        who(what)
    except Exception:
        log.exception("what a worker answered could not be taken")


def error_of(answer: dict[str, Any]) -> errors.IdcfsError | None:
    """What an answer says went wrong."""
    if "error" not in answer:
        return None
    error: errors.IdcfsError = getattr(errors, answer["error"])(answer["message"])
    return error


def _reap(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # The kernel does not let go of one that waits for a disk that hangs.
            process.wait(_END_SECONDS)
