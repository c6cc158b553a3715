"""An S3 server over TCP on loopback that can be made to fail.

It answers idcfs' requests: pages of listings, and ranges of objects with an ETag. A `Fault` replaces
the right answer, or a whole connection, as long as the context `failing` lasts.

All connections are served by an asyncio loop in its own thread. `failing` is called in other threads, by one at a
time; the functions of a fault run in the loop.
"""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

LIST, GET = "LIST", "GET"

EVERYTHING = frozenset({LIST, GET})

_START_SECONDS = 10
_MODIFIED = "2026-01-02T03:04:05.000Z"


def md5_etag(data: bytes) -> str:
    """S3's ETag of an object that was uploaded in one part."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class Request(NamedTuple):
    """The request of a client: LIST of a prefix, or GET of bytes *start* to *stop* of a key."""

    kind: str
    bucket: str
    key: str
    token: str
    start: int
    stop: int
    etag: str


@dataclass
class Answer:
    """An answer before it is sent, which a fault may change."""

    status: str
    headers: dict[str, str]
    body: bytes = b""

    def head(self) -> bytes:
        """The bytes before the body; the headers may have another Content-Length than the body's."""
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        return "\r\n".join(
            [f"HTTP/1.1 {self.status}", *(f"{name}: {headers[name]}" for name in headers), "", ""]
        ).encode()

    def encoded(self) -> bytes:
        """All bytes of the answer."""
        return self.head() + self.body


class Connection:
    """One connection, and what a fault can do to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the client does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def receive_head(self) -> bytes:
        """The head of the next request."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def until_gone(self) -> None:
        """Send nothing until the client closes the connection."""
        await self._reader.read()

    async def encrypt(self, tls: ssl.SSLContext) -> None:
        """Start TLS as the server."""
        await self._writer.start_tls(tls)

    def close(self) -> None:
        """Close the connection after what was sent."""
        self._writer.close()

    async def reset(self) -> None:
        """Reset the connection, as a router that has forgotten it; what was sent may be lost."""
        # The pause lets the client receive what was sent before.
        await asyncio.sleep(0.05)
        self.abort()

    def abort(self) -> None:
        """Reset the connection at once."""
        connected: socket.socket = self._writer.get_extra_info("socket")
        # With a linger time of 0, close() sends a reset (socket(7)).
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Exchange(NamedTuple):
    """A request, the connection that it came on, and the right answer to it."""

    request: Request
    connection: Connection
    right: Answer
    server: "FaultServer"


@dataclass(frozen=True)
class Fault:
    """A fault of the server.

    Attributes:
        answer: replaces the right answer.
        hits: the kinds of requests that it affects.
        accept: replaces all handling of a connection.
        refuses: whether connections are refused.
    """

    answer: Callable[[Exchange], Awaitable[None]] | None = None
    hits: frozenset[str] = EVERYTHING
    accept: Callable[[Connection], Awaitable[None]] | None = None
    refuses: bool = False


@dataclass
class FaultServer:
    """Serves *objects*, from ``bucket/key`` to bytes, until the context ends.

    Attributes:
        objects: the bytes of each object.
        tls: the TLS context, if it serves TLS.
        page_keys: keys in a page of a listing.
        etag: returns the ETag of an object.
        requests: the number of requests of each kind.
        port: the port that it listens on.
    """

    objects: Mapping[str, bytes]
    tls: ssl.SSLContext | None = None
    page_keys: int = 1000
    etag: Callable[[bytes], str] = md5_etag
    requests: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._fault: Fault | None = None
        self._etags: dict[bytes, str] = {}
        # Also held while connections are refused, so that nobody else gets the port meanwhile.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port: int = self._port.getsockname()[1]
        self._listener: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault server")

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._switch(None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._port.close()

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Have a fault in this context; connections are cut when it begins and ends."""
        self._run(self._switch(fault))
        try:
            yield
        finally:
            self._run(self._switch(None))

    def right_answer(self, request: Request) -> Answer:
        """The answer of a server without faults."""
        if not any(name.startswith(f"{request.bucket}/") for name in self.objects):
            return Answer("404 Not Found", {}, b"<Error><Code>NoSuchBucket</Code></Error>")
        return self._listing(request) if request.kind == LIST else self._object(request)

    def _listing(self, request: Request) -> Answer:
        keys = sorted(name.partition("/")[2] for name in self.objects if name.startswith(f"{request.bucket}/"))
        found = [key for key in keys if key.startswith(request.key) and key > request.token]
        return listing(
            [(key, self.objects[f"{request.bucket}/{key}"]) for key in found[: self.page_keys]],
            found[self.page_keys - 1] if len(found) > self.page_keys else None,
            etag=self._etag_of,
        )

    def _object(self, request: Request) -> Answer:
        data = self.objects.get(f"{request.bucket}/{request.key}")
        if data is None:
            return Answer("404 Not Found", {}, b"<Error><Code>NoSuchKey</Code></Error>")
        etag = self._etag_of(data)
        if request.etag not in ("", etag):
            return Answer("412 Precondition Failed", {})
        stop = min(request.stop, len(data))
        headers = {"ETag": etag, "Content-Range": f"bytes {request.start}-{stop - 1}/{len(data)}"}
        return Answer("206 Partial Content", headers, data[request.start : stop])

    def _etag_of(self, data: bytes) -> str:
        # Of a large object it takes longer than all else that a request needs.
        if data not in self._etags:
            self._etags[data] = self.etag(data)
        return self._etags[data]

    # In the loop.

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    async def _switch(self, fault: Fault | None) -> None:
        self._fault = fault
        refuses = fault is not None and fault.refuses
        if refuses and self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._connections:
            connection.abort()
        if not refuses and self._listener is None:
            # The largest test has so many connections at a time.
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=512)

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        tasks = list(self._connections.values())
        for connection, task in list(self._connections.items()):
            connection.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        try:
            await self._serve(connection)
        except (asyncio.IncompleteReadError, OSError):
            # The client has closed the connection.
            pass
        finally:
            del self._connections[connection]
            connection.close()

    async def _serve(self, connection: Connection) -> None:
        if self._fault is not None and self._fault.accept is not None:
            await self._fault.accept(connection)
            return
        if self.tls is not None:
            await connection.encrypt(self.tls)
        while True:
            request = parsed(await connection.receive_head())
            self.requests[request.kind] += 1
            exchange = Exchange(request, connection, self.right_answer(request), self)
            if self._fault is not None and self._fault.answer is not None and request.kind in self._fault.hits:
                await self._fault.answer(exchange)
            else:
                await connection.send(exchange.right.encoded())


def parsed(head: bytes) -> Request:
    """The request in a head; its target may be a whole URL, as for a proxy."""
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    target = urlsplit(first.split(" ")[1])
    bucket, _, key = unquote(target.path).lstrip("/").partition("/")
    query = parse_qs(target.query)
    if "list-type" in query:
        return Request(LIST, bucket, query["prefix"][0], query.get("continuation-token", [""])[0], 0, 0, "")
    start, _, last = headers["range"].removeprefix("bytes=").partition("-")
    return Request(GET, bucket, key, "", int(start), int(last) + 1, headers.get("if-match", ""))


def listing(
    entries: list[tuple[str, bytes]],
    token: str | None = None,
    truncated: str | None = None,
    etag: Callable[[bytes], str] = md5_etag,
) -> Answer:
    """A page of a listing of keys with their bytes, and with the *token* of the next page.

    IsTruncated is *truncated*, or by default whether there is a token.
    """
    truncated = ("false" if token is None else "true") if truncated is None else truncated
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{_MODIFIED}</LastModified>"
        f"<ETag>{escape(etag(data))}</ETag><Size>{len(data)}</Size></Contents>"
        for key, data in entries
    )
    following = "" if token is None else f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
    body = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{truncated}</IsTruncated>{following}{contents}</ListBucketResult>"
    )
    return Answer("200 OK", {"Content-Type": "application/xml"}, body.encode())
