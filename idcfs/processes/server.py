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
        self._received: list[Envelope] = []

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
        while not self._received:
            if not self._receive_more():
                sys.exit()
        number, _, message = self._received.pop(0)
        assert isinstance(message, kind)
        return number, message

    def receive(self) -> list[Envelope] | None:
        """The requests that have come, None when the other side is gone; waits for at least some bytes."""
        if not self._received and not self._receive_more():
            return None
        return self.received()

    def received(self) -> list[Envelope]:
        """The requests that came together with the first message; the socket does not announce them again."""
        received, self._received = self._received, []
        return received

    def _receive_more(self) -> bool:
        try:
            chunk = self._socket.recv(_RECEIVED_BYTES)
        except ConnectionError:
            # The other side has ended, and left answers behind.
            chunk = b""
        self._received += self._decoder.feed(chunk)
        return bool(chunk)

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
