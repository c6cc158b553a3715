"""The child's end of the socket: takes requests, and answers them.

A connection may be read by one thread, or by one loop that waits for its socket, and answered from any thread.
Programs are started as ``python -m MODULE SOCKET [ARENA SIZE]``: descriptors, and the arena's size in bytes.
"""

import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn, Self, TypeVar

from idcfs.errors import IdcfsError
from idcfs.processes.messages import Decoder, Envelope, Failed, Message, encode

_RECEIVED_BYTES = 64 << 10

R = TypeVar("R", bound=Message)


class Connection:
    """The socket to the process that asks; *requests* are the classes of the messages that it sends."""

    def __init__(self, connected: socket.socket, requests: Iterable[type[Message]]) -> None:
        self._socket = connected
        self._decoder = Decoder(requests)
        self._to_send = bytearray()
        self._sending = threading.Lock()

    @classmethod
    def of_this_process(cls, requests: Iterable[type[Message]]) -> Self:
        """The connection that this process was started with."""
        return cls(socket.socket(fileno=int(sys.argv[1])), requests)

    def fileno(self) -> int:
        """The descriptor to wait for, before `receive`."""
        return self._socket.fileno()

    def first(self, kind: type[R]) -> tuple[int, R]:
        """The number of the first message, and that, which is a *kind*; waits for it.

        Raises:
            SystemExit: the other side is gone.
        """
        received: list[Envelope] = []
        while not received:
            # Only this message: the socket does not announce again what was taken from it.
            ahead = self._receive(_RECEIVED_BYTES, socket.MSG_PEEK)
            if not ahead:
                sys.exit()
            received = self._decoder.feed(self._receive(ahead.find(b"\n") + 1 or len(ahead)))
        ((number, _, message),) = received
        assert isinstance(message, kind)
        return number, message

    def receive(self) -> list[Envelope] | None:
        """The requests that have come, None when the other side is gone; waits for at least some bytes."""
        chunk = self._receive(_RECEIVED_BYTES)
        return self._decoder.feed(chunk) if chunk else None

    def _receive(self, most: int, flags: int = 0) -> bytes:
        try:
            return self._socket.recv(most, flags)
        except ConnectionError:
            # The other side has ended, and left answers behind.
            return b""

    def add(self, number: int, message: Message, is_last: bool = True) -> None:
        """Add an answer to those that the next `flush` sends together: each arrival wakes the other side."""
        with self._sending:
            self._to_send += encode(number, message, is_last)

    def flush(self) -> None:
        """Send the answers that were added; waits for the other side to take them."""
        with self._sending:
            sent, self._to_send = self._to_send, bytearray()
            try:
                self._socket.sendall(sent)
            except OSError:
                # The other side is gone, and `receive` reports it.
                return

    def answer(self, number: int, message: Message, is_last: bool = True) -> None:
        """Send an answer at once."""
        self.add(number, message, is_last)
        self.flush()


def shared_arena() -> memoryview:
    """The arena that this process was started with."""
    return memoryview(mmap.mmap(int(sys.argv[2]), int(sys.argv[3])))


Report = Callable[[Message], None]
"""Sends a message that is not the last one."""


def run_once(kind: type[R], run: Callable[[R, Report], Message]) -> NoReturn:
    """Answer the one request of this process, a *kind*, with what *run* returns or raises, and end the process."""
    connection = Connection.of_this_process([kind])
    number, request = connection.first(kind)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    try:
        answer = run(request, lambda message: connection.answer(number, message, is_last=False))
    except IdcfsError as error:
        answer = Failed.of(error)
    connection.answer(number, answer)
    # A normal exit would take DuckDB's threads some time.
    os._exit(0)


def _end_with_parent(connection: Connection) -> None:
    while connection.receive() is not None:
        pass
    os._exit(1)
