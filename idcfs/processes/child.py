"""One child process, and the requests that it has not answered; belongs to one trio run.

What the child was asked fails when it ends. A lease that it may write into is held until it has answered, or is reaped.
"""

import contextlib
import itertools
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import trio

from idcfs.errors import ChildEnded, ChildNotStarted, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Cancel, Decoder, Failed, Message, encode

log = logging.getLogger(__name__)

END_SECONDS = 2.0
"""Seconds that a child has to answer a cancellation, or to end after its socket, before it is killed."""

A = TypeVar("A", bound=Message)


class Program(NamedTuple):
    """What a child runs, and how it is asked."""

    module: str
    answers: Iterable[type[Message]]  # the classes of the messages that it sends
    options: Message | None = None  # its first message, if it wants one
    descriptors: Sequence[int] = ()  # what it inherits besides its socket and the arena
    arena: Arena | None = None  # the memory that it shares
    subject: str = ""  # what it works on, for messages to people


class _Request(NamedTuple):
    """A request that is not answered yet: the arguments of `Child.post`."""

    answered: Callable[[Message], None]
    lease: Lease | None
    progressed: Callable[[Message], None] | None


class Reply:
    """The one last answer to a request, for somebody who waits until it `has_come`."""

    def __init__(self) -> None:
        self.has_come = trio.Event()
        self._message: Message = ()

    def take(self, message: Message) -> None:
        """Take the answer; this is what `Child.post` wants to call."""
        self._message = message
        self.has_come.set()

    def read(self, answer: type[A]) -> A:
        """Return what has come, which is an *answer*, or raise the error that it reports."""
        if isinstance(self._message, Failed):
            raise self._message.error()
        assert isinstance(self._message, answer), f"{self._message!r} came in the place of {answer.__name__}"
        return self._message


class Child:
    """A process that runs *program*; `run` starts it. Requests may be made before it has started."""

    def __init__(self, program: Program) -> None:
        self.has_ended = False
        self.exit_code: int | None = None
        self.unanswered = 0
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._unreaped = contextlib.ExitStack()
        self._to_send = bytearray() if program.options is None else bytearray(encode(0, program.options))
        self._something = trio.Event()

    async def run(self) -> None:
        """Run the process, send requests and take answers until it ends, with an exit code."""
        if self.has_ended:
            return
        try:
            # A child that is given up before it has started ends below, where whoever waits for it is answered.
            with trio.CancelScope(shield=True):
                process, ours = await trio.to_thread.run_sync(self._start)
        except OSError as error:
            reason = f"a process cannot be started: {error}"
            # Not the error, which would hold all that this process was started with.
            log.error(reason)
            self._end(reason)
            return
        self._process = process
        if self.has_ended:
            # It was killed meanwhile, and must not get requests whose regions are free again.
            process.kill()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream)
                await self._receive(stream)
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError as error:
            log.debug("the socket of a process broke: %r", error)
        except* Exception:
            log.exception("a process cannot be understood")
        finally:
            self._end("the process has ended")
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_reap, process)
            if process.returncode is None:
                # The kernel does not end a process that waits for a disk that hangs; until it does, it may write.
                await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            self._unreaped.close()
            self.exit_code = process.returncode

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        program, arena = self._program, self._program.arena
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as if_it_fails:
            if_it_fails.enter_context(ours)
            # -P keeps modules of the current folder from standing in for those of the installation.
            command = [sys.executable, "-P", "-m", program.module, str(theirs.fileno())]
            descriptors = [theirs.fileno(), *program.descriptors]
            if arena is not None:
                command += [str(arena.descriptor), str(arena.size)]
                descriptors.append(arena.descriptor)
            process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
            if_it_fails.pop_all()
        return process, ours

    async def _send(self, stream: trio.SocketStream) -> None:
        while True:
            # Requests that were made together are sent together.
            sent, self._to_send = self._to_send, bytearray()
            await stream.send_all(sent)
            await self._something.wait()
            self._something = trio.Event()

    async def _receive(self, stream: trio.SocketStream) -> None:
        decoder = Decoder(self._program.answers)
        async for chunk in stream:
            for number, is_last, message in decoder.feed(chunk):
                request = self._requests.get(number)
                if request is None:
                    # It has failed already, because this process was killed.
                    continue
                if is_last:
                    del self._requests[number]
                    self.unanswered -= 1
                    _call(request.answered, message)
                    if request.lease is not None:
                        request.lease.release()
                elif request.progressed is not None:
                    _call(request.progressed, message)

    def _end(self, reason: str) -> None:
        self.has_ended = True
        requests, self._requests = self._requests, {}
        failed = Failed.of(Unreachable(f"{self._program.subject}: {reason}"))
        for request in requests.values():
            if request.lease is not None:
                # The process may write into it until it is reaped.
                self._unreaped.push(request.lease)
            _call(request.answered, failed)
        if self._process is None:
            self._unreaped.close()

    def post(
        self,
        request: Message,
        answered: Callable[[Message], None],
        lease: Lease | None = None,
        progressed: Callable[[Message], None] | None = None,
    ) -> int:
        """Send a request and wait for nothing; returns its number.

        Args:
            request: the message.
            answered: called with the one last answer, which may be `Failed`.
            lease: what the process may write into, or read, for this request; it is held until the answer.
            progressed: called with the answers before the last one.

        Raises:
            Unreachable: the process has ended.
        """
        if self.has_ended:
            raise Unreachable(f"{self._program.subject}: the process has ended")
        number = next(self._numbers)
        self._requests[number] = _Request(answered, None if lease is None else lease.hold(), progressed)
        self.unanswered += 1
        self._send_soon(number, request)
        return number

    async def ask(
        self,
        request: Message,
        answer: type[A],
        lease: Lease | None = None,
        progressed: Callable[[Message], None] | None = None,
    ) -> A:
        """Send a request and wait for its answer, which is an *answer*; the other arguments are those of `post`.

        A caller who is cancelled gives up the request, and the process if that does not answer then.

        Raises:
            IdcfsError: what the process reports, or that it has ended.
        """
        reply = Reply()
        number = self.post(request, reply.take, lease, progressed)
        try:
            await reply.has_come.wait()
        except trio.Cancelled:
            self._send_soon(number, Cancel())
            with trio.move_on_after(END_SECONDS, shield=True):
                await reply.has_come.wait()
            if not reply.has_come.is_set():
                self.kill("the process did not answer")
            raise
        return reply.read(answer)

    def kill(self, reason: str) -> None:
        """End the process, which is stuck or no longer needed; what it was asked fails with *reason* at once.

        One that has ended by itself is left to `run`.
        """
        if not self.has_ended:
            if self._process is not None:
                self._process.kill()
            self._end(reason)

    def _send_soon(self, number: int, message: Message) -> None:
        self._to_send += encode(number, message)
        self._something.set()


async def run_program(
    module: str,
    request: Message,
    answer: type[A],
    steps: Iterable[type[Message]] = (),
    progressed: Callable[[Message], None] | None = None,
) -> A:
    """Run *module*, a program of one request (`idcfs.processes.server.run_once`), and wait for its *answer*.

    Messages of the classes *steps* may come before; *progressed* is called with each of them.

    Raises:
        IdcfsError: what the program reports.
        ChildNotStarted, ChildEnded: it could not be started, or has ended without an answer.
    """
    child = Child(Program(module, [answer, *steps], subject=module))
    reply = Reply()
    child.post(request, reply.take, progressed=progressed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        try:
            await reply.has_come.wait()
        finally:
            # A program of one request takes no `Cancel`, and nothing waits for what it still does.
            child.kill("it is not needed any more")
    try:
        return reply.read(answer)
    except Unreachable as error:
        if child.exit_code is None:
            raise ChildNotStarted(str(error)) from error
        raise ChildEnded(f"{module} ended with exit code {child.exit_code}; is memory short?") from error


def _call(function: Callable[[Message], None], message: Message) -> None:
    """Hand a message to whoever waits; an error in there is no fault of the process, and others wait for it too."""
    try:
        function(message)
    except Exception:
        log.exception("an answer of a process could not be taken")


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose socket is closed, and kill it if it goes on."""
    for _ in range(2):
        try:
            process.wait(END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            process.kill()
