"""One child process, and the requests that it has not answered; belongs to one trio run.

The child is started by exec: a forked one would hold the FUSE device open. It ends when its socket does, so also when
this process is killed. What it was asked fails when it ends. A lease that it may write into is held until it has
answered, or is reaped.
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
    """What a child runs, and how it is asked.

    Args:
        module: the module that is its program.
        answers: the classes of the messages that it sends.
        options: its first message, if it wants one.
        descriptors: what it inherits besides its socket and the arena.
        arena: the memory that it shares.
        subject: what it works on, for messages to people.
    """

    module: str
    answers: Iterable[type[Message]]
    options: Message | None = None
    descriptors: Sequence[int] = ()
    arena: Arena | None = None
    subject: str = ""


class _Request(NamedTuple):
    """A request that is not answered yet; *answered* and *progressed* take its messages, *lease* is written into."""

    answered: Callable[[Message], None]
    progressed: Callable[[Message], None] | None
    lease: Lease | None


class Child:
    """A process that runs *program*; `run` starts it. Requests may be made before it has started."""

    def __init__(self, program: Program) -> None:
        self.has_ended = False
        self.unanswered = 0
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._unreaped: list[Lease] = []
        self._to_send = bytearray() if program.options is None else bytearray(encode(0, program.options))
        self._something = trio.Event()

    async def run(self) -> int | None:
        """Run the process, send requests and take answers until it ends; returns its exit code."""
        if self.has_ended:
            return None
        try:
            # A child that is given up before it has started ends below, where whoever waits for it is answered.
            with trio.CancelScope(shield=True):
                process, ours = await trio.to_thread.run_sync(self._start)
        except OSError as error:
            reason = f"a process cannot be started: {error}"
            # Not the error, which would hold all that this process was started with.
            log.error(reason)
            self._end(reason)
            return None
        self._process = process
        if self.has_ended:
            # It was killed meanwhile, and must not get requests whose regions are free again.
            process.kill()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            async with stream, trio.open_nursery() as nursery:
                if self._to_send:
                    self._something.set()
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
            if process.returncode is not None:
                self._release_unreaped()
        if process.returncode is None:
            # The kernel does not end a process that waits for a disk that hangs; until it does, it may write.
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            self._release_unreaped()
        return process.returncode

    def _start(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        arena = self._program.arena
        with contextlib.ExitStack() as if_it_fails, contextlib.ExitStack() as at_once:
            ours, theirs = socket.socketpair()
            if_it_fails.enter_context(ours)
            at_once.enter_context(theirs)
            # -P keeps modules of the current folder from standing in for those of the installation.
            command = [sys.executable, "-P", "-m", self._program.module, str(theirs.fileno())]
            descriptors = [theirs.fileno(), *self._program.descriptors]
            if arena is not None:
                command += [str(arena.descriptor), str(arena.size)]
                descriptors.append(arena.descriptor)
            process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
            if_it_fails.pop_all()
        return process, ours

    async def _send(self, stream: trio.SocketStream) -> None:
        while True:
            await self._something.wait()
            self._something = trio.Event()
            # Requests that were made together are sent together.
            sent, self._to_send = self._to_send, bytearray()
            await stream.send_all(sent)

    async def _receive(self, stream: trio.SocketStream) -> None:
        decoder = Decoder(self._program.answers)
        async for chunk in stream:
            for number, is_last, message in decoder.feed(chunk):
                if is_last:
                    self._answer(number, message)
                elif (request := self._requests.get(number)) is not None and request.progressed is not None:
                    _call(request.progressed, message)

    def _answer(self, number: int, message: Message) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            return
        self.unanswered -= 1
        _call(request.answered, message)
        if request.lease is not None:
            request.lease.release()

    def _end(self, reason: str) -> None:
        self.has_ended = True
        requests, self._requests = self._requests, {}
        # It may write into them until it is reaped.
        self._unreaped += [request.lease for request in requests.values() if request.lease is not None]
        failed = Failed.of(Unreachable(f"{self._program.subject}: {reason}"))
        for request in requests.values():
            _call(request.answered, failed)
        if self._process is None:
            self._release_unreaped()

    def _release_unreaped(self) -> None:
        leases, self._unreaped = self._unreaped, []
        for lease in leases:
            lease.release()

    def post(
        self,
        request: Message,
        answered: Callable[[Message], None],
        progressed: Callable[[Message], None] | None = None,
        lease: Lease | None = None,
    ) -> int:
        """Send a request and wait for nothing; returns its number.

        Args:
            request: the message.
            answered: called with the one last answer, which may be `Failed`.
            progressed: called with the answers before it.
            lease: what the process may write into, or read, for this request; it is held until the answer.

        Raises:
            Unreachable: the process has ended.
        """
        if self.has_ended:
            raise Unreachable(f"{self._program.subject}: the process has ended")
        number = next(self._numbers)
        self._requests[number] = _Request(answered, progressed, None if lease is None else lease.hold())
        self.unanswered += 1
        self._send_soon(number, request)
        return number

    async def ask(
        self,
        request: Message,
        answer: type[A],
        progressed: Callable[[Message], None] | None = None,
        lease: Lease | None = None,
    ) -> A:
        """Send a request and wait for its answer, which is an *answer*; the other arguments are those of `post`.

        A caller who is cancelled gives up the request, and the process if that does not answer then.

        Raises:
            IdcfsError: what the process reports, or that it has ended.
        """
        has_come = trio.Event()
        found: Message = ()

        def answered(message: Message) -> None:
            nonlocal found
            found = message
            has_come.set()

        number = self.post(request, answered, progressed, lease)
        try:
            await has_come.wait()
        except trio.Cancelled:
            self._send_soon(number, Cancel())
            with trio.move_on_after(END_SECONDS, shield=True):
                await has_come.wait()
            if not has_come.is_set():
                self.kill("the process did not answer")
            raise
        return _expect(found, answer)

    def kill(self, reason: str) -> None:
        """End the process, which is stuck or no longer needed; what it was asked fails with *reason* at once.

        One that has ended by itself is left to `run`.
        """
        if self.has_ended:
            return
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
    """Run a program of one request (`idcfs.processes.server.run_once`) in a child; waits for its answer.

    Args:
        module: the program.
        request: what it is asked.
        answer: the class of its answer.
        steps: the classes of what it reports before.
        progressed: called with each of those.

    Raises:
        IdcfsError: what the program reports.
        ChildNotStarted, ChildEnded: it could not be started, or has ended without an answer.
    """
    child = Child(Program(module, [answer, *steps], subject=module))
    found: list[Message] = []
    has_come = trio.Event()
    code: int | None = None

    def answered(message: Message) -> None:
        found.append(message)
        has_come.set()

    async def run() -> None:
        nonlocal code
        code = await child.run()

    child.post(request, answered, progressed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            await has_come.wait()
        finally:
            # A program of one request takes no `Cancel`, and nothing waits for what it still does.
            child.kill("it is not needed any more")
    try:
        return _expect(found[0], answer)
    except Unreachable as error:
        if code is None:
            raise ChildNotStarted(str(error)) from error
        raise ChildEnded(f"{module} ended with exit code {code}; is memory short?") from error


def _expect(message: Message, answer: type[A]) -> A:
    """A last message, which is an *answer*, or the error that it reports, raised."""
    if isinstance(message, Failed):
        raise message.error()
    assert isinstance(message, answer), f"{message!r} came in the place of {answer.__name__}"
    return message


def _call(function: Callable[[Message], None], message: Message) -> None:
    """Hand a message to whoever waits; an error in there is no fault of the process, and others wait for it too."""
    try:
        function(message)
    except Exception:
        log.exception("an answer of a process could not be taken")


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process whose socket is closed, and kill it if it goes on."""
    for _ in range(2):
        try:
            process.wait(END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            process.kill()
