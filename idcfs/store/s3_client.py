"""`S3Client`: sends unsigned requests to any server with S3's REST interface; asyncio.

Requests go through aiobotocore's HTTP session and not through its client. Measured: what the client does for each call
took two thirds of the time, and unsigned GETs of objects and listings need none of it.

The user's AWS configuration (profiles, credentials, endpoints) is ignored; the variables for proxies and certificate
authorities count.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import quote, urlencode

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientError, ClientPayloadError, ClientResponse
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ConnectionError as EndpointError
from botocore.exceptions import HTTPClientError
from botocore.utils import get_environ_proxies

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Stalled, Unreachable, Untrusted
from idcfs.printable import printable
from idcfs.store.base import MD5_ETAG, ListPage, Range
from idcfs.store.list_parser import check_keys, parse_listing
from idcfs.store.watch import HEDGE_AFTER, RELEASE_AFTER, Watch

_ERROR_BODY_BYTES = 64 * 1024
_MESSAGE_LENGTH = 500
_BUFFER_BYTES = 32 << 10
"""aiohttp stops reading a connection at twice this, while the body waits for one of the `_BODIES`."""

_BODIES = 8
"""Bodies read at a time, in order of arrival. If all were read at a time, all of a burst would end together, late."""

_PROGRESS_BYTES = 128 << 10
"""Bytes between two progress callbacks: the kernel reads so many at once."""

_LISTING_BYTES = 16 << 20
"""The most bytes of a page; a thousand of the longest keys, each letter escaped, take 4 MB."""

_REFUSALS: dict[int, type[ReadError]] = {
    403: AccessDenied,
    404: NotFound,
    407: Unreachable,
    408: Unreachable,
    412: ObjectChanged,
    416: ObjectChanged,
    429: Unreachable,
}
"""Errors by HTTP status; others below 500 are `Untrusted`, and from 500 on `Unreachable`."""

_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class S3Client:
    """The objects at *endpoint*, a URL.

    A request may take *timeout* seconds, the wait for a connection included, and fails earlier if it stalls (see
    `Watch`). At most *max_connections* requests are sent at a time; others wait.
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
            # More than requests, because some are sent a second time.
            max_pool_connections=2 * self._max_connections,
        )
        self._session = await self._stack.enter_async_context(session)
        # Otherwise the first request would wait 30 ms for the certificate authorities to be read.
        await self._session.prepare(self._endpoint)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def list_page(self, bucket: str, prefix: str, token: str | None) -> ListPage:
        """See `ObjectStore.list_page`. The caller checks whether keys ascend from page to page."""
        query = {"list-type": "2", "prefix": prefix, **({} if token is None else {"continuation-token": token})}
        async with self._request(f"{bucket}/{prefix}") as watch:
            answer = await self._send(bucket, f"?{urlencode(query)}", {}, watch)
            async with answer.raw as body:
                watch.expect()
                page = parse_listing(await _read_listing(body.content, watch), prefix)
            check_keys(page.objects, prefix)
            return page

    async def get_into(self, wanted: Range, buffer: memoryview, progress: Callable[[int], None] | None = None) -> None:
        """See `ObjectStore.get`; the bytes go into *buffer*, which is as long as the range.

        *progress* is called with the number of bytes, from the first, that are right. If this raises, the others may be
        wrong.
        """
        bucket, key, start, stop, version = wanted
        if not key:
            raise NotFound("an object's key is not empty")
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Match": version.etag}
        async with self._request(f"{bucket}/{key}") as watch:
            answer = await self._send(bucket, f"/{quote(key)}", headers, watch)
            async with answer.raw as body:
                _check_head(answer.status_code, answer.headers, wanted)
                expected = _md5_of(answer.headers) if wanted.is_whole else None
                watch.pause()
                await self._bodies.acquire()
                with ExitStack() as permit:
                    permit.callback(self._bodies.release)
                    watch.expect(RELEASE_AFTER, permit.close)
                    await _read(body.content, buffer, watch, progress, expected)

    @asynccontextmanager
    async def _request(self, name: str) -> AsyncIterator[Watch]:
        """Limit the time of a request for *name*, and raise its errors as `ReadError`s."""
        what = f"{self._endpoint}: {name}"
        limit = asyncio.timeout(self._timeout)
        watch = Watch(limit, self._timeout)
        try:
            async with limit, self._connections:
                yield watch
        except Exception as error:
            if watch.has_stalled:
                raise Stalled(f"{what}: next to nothing came for {watch.stall_seconds:.2g} seconds") from error
            if limit.expired():
                raise Stalled(f"{what}: no complete answer within {self._timeout:g} seconds") from error
            raise _translate(error, what) from error
        finally:
            watch.pause()

    async def _send(self, bucket: str, rest: str, headers: dict[str, str], watch: Watch) -> Any:
        """Return an answer whose body is still to be read.

        If the head does not arrive soon, the request is sent again on another connection, and the answer that arrives
        first counts. The body is read from that answer only, so that two never go into one buffer.
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
            # If the second request fails, the first may still be answered.
            if waiting and not second.cancelled() and second.exception() is None:
                first.reschedule(asyncio.get_running_loop().time())

        watch.expect(HEDGE_AFTER, send_again)
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
    """Close the connection of an answer that is not needed any more."""
    with suppress(asyncio.CancelledError, Exception):
        request.result().raw.close()


def _check_head(status: int, headers: dict[str, str], wanted: Range) -> None:
    """Make sure that the answer's head announces the *wanted* bytes."""
    _, _, start, stop, version = wanted
    found = headers.get("etag")
    if not found:
        raise Untrusted("the answer has no ETag")
    if found != version.etag:
        raise ObjectChanged(f"the ETag is {found[:_MESSAGE_LENGTH]!r}, not {version.etag!r}")
    length = headers.get("content-length")
    if length is not None and length != str(wanted.length):
        raise Untrusted(f"{length[:_MESSAGE_LENGTH]!r} bytes came for {wanted.length}")
    if status == 206:
        # A server that sends a whole object knows its size; for a part it may leave the size open.
        totals = (version.size,) if wanted.is_whole else (version.size, "*")
        came = headers.get("content-range", "")
        if came not in {f"bytes {start}-{stop - 1}/{total}" for total in totals}:
            raise Untrusted(f"range {came[:_MESSAGE_LENGTH]!r} came for bytes {start}-{stop - 1} of {version.size}")
    # A server without ranges sends the whole object, which may happen to be the requested range.
    elif status != 200 or not wanted.is_whole:
        raise Untrusted(f"status {status} came for bytes {start}-{stop - 1} of {version.size}")


def _md5_of(headers: dict[str, str]) -> str | None:
    """The MD5 of the whole object, if its ETag is one.

    It is one if the object was uploaded in one part, unless S3 encrypts it with a KMS key or a customer's key, which
    these headers report.
    """
    encryption = headers.get("x-amz-server-side-encryption", "AES256")
    if encryption != "AES256" or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    found = MD5_ETAG.fullmatch(headers["etag"])
    return None if found is None else found[1]


async def _read(
    body: Any, buffer: memoryview, watch: Watch, progress: Callable[[int], None] | None, expected: str | None
) -> None:
    """Read a body that is as long as *buffer* and has the *expected* MD5; take at most one chunk too many from it.

    With an expected MD5, *progress* is not called, because no byte is known to be right before the last.
    Measured: MD5 takes 0.8 ms of the worker's core for 526 kB (650 MB/s), which limits two workers to about 10 Gbit/s.
    It is updated with each chunk: hashing a large body at its end would make other requests wait.
    """
    digest = None if expected is None else hashlib.md5(usedforsecurity=False)
    filled = reported = 0
    async for chunk in body.iter_any():
        if filled + len(chunk) > len(buffer):
            raise Untrusted(f"more than {len(buffer)} bytes came for {len(buffer)}")
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        watch.filled = filled
        if digest is not None:
            digest.update(chunk)
        if progress is not None and digest is None and filled - reported >= _PROGRESS_BYTES:
            reported = filled
            progress(filled)
    if filled != len(buffer):
        raise Untrusted(f"{filled} bytes came for {len(buffer)}")
    if digest is not None and digest.hexdigest() != expected:
        raise Untrusted(f"the bytes have MD5 {digest.hexdigest()}, but the ETag is {expected}")


async def _read_listing(body: Any, watch: Watch) -> bytes:
    """Read a body of unknown length, up to a limit."""
    whole = bytearray()
    async for chunk in body.iter_any():
        whole += chunk
        watch.filled = len(whole)
        if len(whole) > _LISTING_BYTES:
            raise Untrusted(f"a page of a listing has more than {_LISTING_BYTES} bytes")
    return bytes(whole)


def _translate(error: Exception, what: str) -> ReadError:
    """The `ReadError` for *error*, which aiobotocore raised for a request for *what*."""
    reason = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    cause = reason or error
    if isinstance(cause, ReadError):
        return type(cause)(f"{what}: {cause}")
    if isinstance(cause, ClientPayloadError):
        return Untrusted(f"{what}: the body ended early")
    # aiohttp quotes an answer that is not HTTP in full, in several lines, which do not belong in a log.
    text = printable(" ".join(str(cause)[:_MESSAGE_LENGTH].split()))
    if isinstance(error, HTTPClientError | EndpointError | ClientError | OSError):
        return Unreachable(f"{what}: {text}")
    return Untrusted(f"{what}: {type(error).__name__}: {text}")


def _authorities() -> str | bool:
    """The file of certificate authorities that the environment names, or True for the default ones."""
    for name in _CA_VARIABLES:
        path = os.environ.get(name, "").strip()
        if path:
            # OpenSSL's error does not name the file.
            if not os.access(path, os.R_OK):
                raise OSError(f"{name} names {path}, which cannot be read")
            return path
    return True


class _OneHostSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore ships no types
    """An HTTP session that follows no redirects and returns successful answers only.

    IDC's mirrors never redirect, and the body of an error adds nothing to its status.
    """

    async def prepare(self, url: str) -> None:
        """Create the session for requests to *url*."""
        await self._get_session(self._proxy_config.proxy_url_for(url))

    async def _get_session(self, proxy_url: str | None) -> SimpleNamespace:
        """Return what `send` calls: an aiohttp session's `request`, with options of ours."""
        session = await super()._get_session(proxy_url)
        options = {"allow_redirects": False, "read_bufsize": _BUFFER_BYTES, "raise_for_status": _check_status}
        return SimpleNamespace(request=partial(session.request, **options))


async def _check_status(response: ClientResponse) -> None:
    """Raise the error that an answer without the requested bytes stands for."""
    if response.status < 300:
        return
    with closing(response), suppress(ClientError):
        # The connection can be used again once the answer has been read to its end.
        await response.content.read(_ERROR_BODY_BYTES)
    kind = _REFUSALS.get(response.status, Unreachable if response.status >= 500 else Untrusted)
    raise kind(f"HTTP status {response.status}")
