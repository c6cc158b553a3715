"""`S3Client`: asks anything that speaks S3's REST interface, unsigned; asyncio.

Requests go through aiobotocore's HTTP session, and not through its client: unsigned GETs of objects and listings need
nothing of what a client does for each call, which took (m) two thirds of the time.

Nothing that the user has configured for AWS matters here (profiles, credentials, endpoints); the variables for
proxies and certificate authorities do.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientError, ClientPayloadError
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ConnectionError as EndpointError
from botocore.exceptions import HTTPClientError
from botocore.utils import get_environ_proxies

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Stalled, Unreachable, Untrusted
from idcfs.printable import printable
from idcfs.store.base import MD5_ETAG, ListPage, ObjectVersion
from idcfs.store.list_parser import check_keys, parse_listing
from idcfs.store.watch import FIRST, HEDGE, Watch

_ERROR_BODY_BYTES = 64 * 1024
_MESSAGE_LENGTH = 500
_BUFFER_BYTES = 32 << 10
"""aiohttp stops reading a connection at twice this, while the body waits for its turn."""

_BODIES = 8
"""Bodies read at a time, first come first served: with all at a time, all of a burst come at its end."""

_TOLD_BYTES = 128 << 10
"""Bytes between two times that somebody who waits is told; the kernel asks for so many."""

_LISTING_BYTES = 16 << 20
"""A page of a thousand of the longest keys, each letter escaped, takes 4 MB."""

_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class S3Client:
    """The objects at *endpoint*, a URL.

    A request may take *timeout* seconds, the wait for a connection included, and is given up earlier if it stalls (see
    `Watch`); *max_connections* are sent at once, others wait. The methods are those of `ObjectStore`, but that bytes go
    into a buffer.
    """

    def __init__(self, endpoint: str, timeout: float, max_connections: int) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._timeout = timeout
        self._max_connections = max_connections
        self._stack = AsyncExitStack()
        self._connections = asyncio.Semaphore(max_connections)
        self._bodies = asyncio.Semaphore(_BODIES)

    async def __aenter__(self) -> Self:
        session = _OneHostSession(
            verify=_authorities(),
            proxies=get_environ_proxies(self._endpoint),
            timeout=None,
            # Some more than requests, for those that are sent a second time.
            max_pool_connections=2 * self._max_connections,
        )
        self._session = await self._stack.enter_async_context(session)
        # Reading the certificate authorities takes 30 ms, for which the first request would wait.
        await self._session.prepare(self._endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def list_page(self, bucket: str, prefix: str, token: str | None) -> ListPage:
        """See `ObjectStore.list_page`. Whether pages ascend is the caller's check."""
        query = {"list-type": "2", "prefix": prefix, **({} if token is None else {"continuation-token": token})}
        async with self._asking(f"{bucket}/{prefix}") as watch:
            answer = await self._send(bucket, f"?{urlencode(query)}", {}, watch)
            async with answer.raw as body:
                watch.expect()
                page = parse_listing(await _read_listing(body.content, watch), prefix)
            check_keys(page.objects, prefix)
            return page

    async def get_into(
        self,
        bucket: str,
        key: str,
        start: int,
        stop: int,
        version: ObjectVersion,
        buffer: memoryview,
        arrived: Callable[[int], None] | None = None,
    ) -> None:
        """See `ObjectStore.get`; *buffer* is as long as the range.

        Its first bytes are right as far as *arrived* was told; others may be rubbish if this raises.
        """
        if not key:
            raise NotFound("an object's key is not empty")
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Match": version.etag}
        async with self._asking(f"{bucket}/{key}") as watch:
            answer = await self._send(bucket, f"/{quote(key)}", headers, watch)
            async with answer.raw as body:
                _check_head(answer.status_code, answer.headers, start, stop, version)
                expected = _md5_of(answer.headers) if (start, stop) == (0, version.size) else None
                watch.pause()
                async with _Turn(self._bodies) as turn:
                    watch.expect(FIRST, turn.give_up)
                    await _read(body.content, buffer, watch, arrived, expected)

    @asynccontextmanager
    async def _asking(self, name: str) -> AsyncIterator[Watch]:
        """Bound a request for *name*, and tell what goes wrong in it as a `ReadError`."""
        what = f"{self._endpoint}: {name}"
        limit = asyncio.timeout(self._timeout)
        watch = Watch(limit, self._timeout)
        try:
            async with limit, self._connections:
                yield watch
        except Exception as error:
            if watch.has_stalled:
                raise Stalled(f"{what}: next to nothing came for {watch.patience:.2g} seconds") from error
            if limit.expired():
                raise Stalled(f"{what}: no complete answer within {self._timeout:g} seconds") from error
            raise _translate(error, what) from error
        finally:
            watch.pause()

    async def _send(self, bucket: str, rest: str, headers: dict[str, str], watch: Watch) -> Any:
        """The head of an answer, whose body is still to be read.

        If that does not come soon, the request is sent again on another connection, and the answer that comes first
        counts. No byte of a body is read before, so that two never go into one buffer.
        """
        if not _BUCKET_NAME.fullmatch(bucket):
            raise NotFound(f"{bucket!r} is not the name of a bucket")
        url = f"{self._endpoint}/{bucket}{rest}"
        waiting, hedge = True, None

        def send_again() -> None:
            nonlocal hedge
            hedge = asyncio.create_task(self._session.send(AWSPreparedRequest("GET", url, headers, None, True)))
            hedge.add_done_callback(overtake)

        def overtake(second: asyncio.Task[Any]) -> None:
            # If it fails, the first may still be answered.
            if waiting and not second.cancelled() and second.exception() is None:
                first.reschedule(asyncio.get_running_loop().time())

        watch.expect(HEDGE, send_again)
        try:
            async with asyncio.timeout(None) as first:
                return await self._session.send(AWSPreparedRequest("GET", url, headers, None, True))
        except TimeoutError:
            if hedge is None or not first.expired():
                raise
            answer, hedge = hedge.result(), None
            return answer
        finally:
            waiting = False
            watch.pause()
            if hedge is not None:
                hedge.cancel()
                hedge.add_done_callback(_discard)


def _discard(request: asyncio.Task[Any]) -> None:
    """Close the connection of an answer that nobody needs any more."""
    with suppress(asyncio.CancelledError, Exception):
        request.result().raw.close()


class _Turn:
    """A turn to have one's body read, which may be given up before the end; others then need not wait."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._has_it = False

    async def __aenter__(self) -> Self:
        await self._turns.acquire()
        self._has_it = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        if self._has_it:
            self._has_it = False
            self._turns.release()


def _check_head(status: int, headers: dict[str, str], start: int, stop: int, version: ObjectVersion) -> None:
    """Raise unless the answer's head promises bytes *start* to *stop* of the object that is stored so."""
    found = headers.get("etag")
    if not found:
        raise Untrusted("the answer has no ETag")
    if found != version.etag:
        raise ObjectChanged(f"the ETag is {found[:_MESSAGE_LENGTH]!r}, not {version.etag!r}")
    length = headers.get("content-length")
    if length is not None and length != str(stop - start):
        raise Untrusted(f"{length[:_MESSAGE_LENGTH]!r} bytes came for {stop - start}")
    is_whole = (start, stop) == (0, version.size)
    if status == 206:
        # Who sends the whole object knows its size; of a part's that may be left open.
        totals = (version.size,) if is_whole else (version.size, "*")
        told = headers.get("content-range", "")
        if told not in {f"bytes {start}-{stop - 1}/{total}" for total in totals}:
            raise Untrusted(f"range {told[:_MESSAGE_LENGTH]!r} came for bytes {start}-{stop - 1} of {version.size}")
    # A server that knows no ranges sends the whole object, which may happen to be what was asked for.
    elif status != 200 or not is_whole:
        raise Untrusted(f"status {status} came for bytes {start}-{stop - 1} of {version.size}")


def _md5_of(headers: dict[str, str]) -> str | None:
    """The MD5 of the whole object, if its ETag is one.

    It is if the object was uploaded in one part, unless S3 encrypts it with a key of KMS or of the customer; answers
    say that.
    """
    encryption = headers.get("x-amz-server-side-encryption", "AES256")
    if encryption != "AES256" or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    found = MD5_ETAG.fullmatch(headers["etag"])
    return None if found is None else found[1]


async def _read(
    body: Any, buffer: memoryview, watch: Watch, arrived: Callable[[int], None] | None, expected: str | None
) -> None:
    """The body, if it is as long as *buffer* and has the *expected* MD5; at most one chunk more is taken from it.

    Bytes with a digest are not told of before it is right.
    MD5 costs (m) 0.8 ms for 526 kB, 650 MB/s, of the worker's core, and so bounds two workers to some 10 Gbit/s. It is
    done as bytes come: a large body, done at its end, would keep others waiting.
    """
    digest = None if expected is None else hashlib.md5(usedforsecurity=False)
    filled = told = 0
    async for chunk in body.iter_any():
        if filled + len(chunk) > len(buffer):
            raise Untrusted(f"more than {len(buffer)} bytes came for {len(buffer)}")
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        watch.filled = filled
        if digest is not None:
            digest.update(chunk)
        if arrived is not None and digest is None and filled - told >= _TOLD_BYTES:
            told = filled
            arrived(filled)
    if filled != len(buffer):
        raise Untrusted(f"{filled} bytes came for {len(buffer)}")
    if digest is not None and digest.hexdigest() != expected:
        raise Untrusted(f"the bytes have MD5 {digest.hexdigest()}, but the ETag is {expected}")


async def _read_listing(body: Any, watch: Watch) -> bytes:
    """A body that is bounded, because nobody knows beforehand how long it is."""
    whole = bytearray()
    async for chunk in body.iter_any():
        whole += chunk
        watch.filled = len(whole)
        if len(whole) > _LISTING_BYTES:
            raise Untrusted(f"a page of a listing has more than {_LISTING_BYTES} bytes")
    return bytes(whole)


class _Refused(Exception):
    """An answer whose status says that it has nothing of what was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


def _translate(error: Exception, what: str) -> ReadError:
    """What *error*, which came out of aiobotocore, means to the caller who asked for *what*."""
    if isinstance(error, ReadError):
        return type(error)(f"{what}: {error}")
    reason = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    if isinstance(reason, _Refused):
        return _refusal(reason, what)
    if isinstance(reason or error, ClientPayloadError):
        return Untrusted(f"{what}: the body ended early")
    # aiohttp quotes all of an answer that is no HTTP, in several lines; a log is no place for what a server sends.
    text = printable(" ".join(str(reason or error or type(error).__name__)[:_MESSAGE_LENGTH].split()))
    if isinstance(error, HTTPClientError | EndpointError | ClientError | OSError):
        return Unreachable(f"{what}: {text}")
    return Untrusted(f"{what}: {type(error).__name__}: {text}")


def _refusal(refused: _Refused, what: str) -> ReadError:
    message = f"{what}: {refused}"
    match refused.status:
        case 404:
            return NotFound(message)
        case 403:
            return AccessDenied(message)
        case 412 | 416:
            return ObjectChanged(message)
        case 407 | 408 | 429:
            return Unreachable(message)
        case status if status >= 500:
            return Unreachable(message)
        case _:
            return Untrusted(message)


def _authorities() -> str | bool:
    """The file of certificate authorities that the environment names, or True for the usual ones."""
    for name in _CA_VARIABLES:
        path = os.environ.get(name, "").strip()
        if path:
            # OpenSSL's own complaint does not say which file it means.
            if not os.access(path, os.R_OK):
                raise OSError(f"{name} names {path}, which cannot be read")
            return path
    return True


class _OneHostSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore ships no types
    """An HTTP session that follows no redirects and hands on successes only.

    IDC's mirrors never redirect, and the body of an error, however long, tells no more than the status.
    """

    async def prepare(self, url: str) -> None:
        """Make what requests to *url* will need."""
        await self._get_session(self._proxy_config.proxy_url_for(url))

    async def _get_session(self, proxy_url: str | None) -> "_Requests":
        return _Requests(await super()._get_session(proxy_url))


class _Requests:
    """The one method of an aiohttp session that aiobotocore's session calls."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> Any:
        response = await self._session.request(method, **options, allow_redirects=False, read_bufsize=_BUFFER_BYTES)
        if response.status < 300:
            return response
        try:
            # A connection whose answer was read to its end can serve the next request.
            await response.content.read(_ERROR_BODY_BYTES)
        finally:
            response.close()
            raise _Refused(response.status)
