"""A TCP server on loopback that answers every HTTP request with the bytes a test gives it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class RawServer:
    """Answers with `answer`, then closes the connection, or holds it open while `stalls`.

    `requests` has the head of every request. Attributes may be changed between requests.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.answer = b""
        self.stalls = False
        self.requests: list[bytes] = []
        self.connections = 0

    async def handle(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            head = await read_head(stream)
            if head is None:
                return
            self.requests.append(head)
            await stream.send_all(self.answer)
            if self.stalls:
                # Returns when the client gives up.
                await stream.receive_some()
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def raw_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = RawServer("https" if tls else "http", listener.socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, [trio.SSLListener(listener, tls) if tls else listener])
        yield server
        nursery.cancel_scope.cancel()


async def read_head(stream: trio.abc.ReceiveStream) -> bytes | None:
    """The head of a request, or None if the client has none."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = await stream.receive_some()
        if not received:
            return None
        head += received
    return head


def http(status: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """An HTTP answer with exactly these headers."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body
