"""`S3Store`: an `ObjectStore` over anything that speaks S3's REST interface, asked unsigned.

The client is aiobotocore, which needs asyncio, while idcfs runs on trio. So there is one daemon thread with
one asyncio event loop and one client: started by the first call, since importing aiobotocore takes half a
second and 40 MB; ended with the store. Trio callers post a coroutine to that loop and are woken through
trio's token; one that is cancelled cancels its request. If the thread has ended, callers get `Unreachable`: they
are registered and woken on the trio side, so nobody can miss the end. All public methods belong to one trio
run.

Nothing that the user has configured for AWS matters here (profiles, credentials, endpoints); the variables
for proxies and certificate authorities do.
"""

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Unreachable, Untrusted
from idcfs.store.base import ListPage
from idcfs.store.list_parser import check_keys, parse_listing

_Answer = TypeVar("_Answer")
# aiobotocore ships no types.
_Client = Any

_STOP_SECONDS = 5.0
_ERROR_BODY_BYTES = 64 * 1024
_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# Anything else makes botocore think of an ARN or another service, with endpoints of their own.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)


class S3Store:
    """The objects at *endpoint*, a URL.

    *connect_timeout* and *read_timeout* are seconds to connect and between two arrivals of bytes;
    *max_connections* requests are sent at once, others wait.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        max_connections: int = 64,
    ) -> None:
        self._endpoint = endpoint
        self._thread = _ClientThread(
            endpoint, lambda: _open_client(endpoint, connect_timeout, read_timeout, max_connections)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.stop()

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        """See `ObjectStore.list_page`; waits for the network. Whether pages ascend is the caller's check."""
        return await self._ask(f"{bucket}/{prefix}", bucket, lambda client: _list(client, bucket, prefix, token))

    async def get(self, bucket: str, key: str, start: int, stop: int, etag: str) -> bytes:
        """See `ObjectStore.get`; waits for the network."""
        if not key:
            raise NotFound("an object's key is not empty")
        return await self._ask(f"{bucket}/{key}", bucket, lambda client: _get(client, bucket, key, start, stop, etag))

    async def _ask(self, name: str, bucket: str, request: Callable[[_Client], Coroutine[Any, Any, _Answer]]) -> _Answer:
        if not _BUCKET_NAME.fullmatch(bucket):
            raise NotFound(f"{bucket!r} is not the name of a bucket")

        async def translated(client: _Client) -> _Answer:
            try:
                return await request(client)
            except Exception as error:
                raise _translate(error, f"{self._endpoint}: {name}") from error

        return await self._thread.run(translated)


class _ClientThread:
    """One thread that runs one asyncio event loop and holds one client open; belongs to one trio run."""

    def __init__(self, name: str, connect: Callable[[], AbstractAsyncContextManager[_Client]]) -> None:
        self._name = name
        self._connect = connect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = trio.Event()
        self._callers: set[trio.Event] = set()
        # Used by the loop's thread alone.
        self._client: _Client = None
        self._failure: str | None = None  # why there is no client
        self._connected = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self, work: Callable[[_Client], Coroutine[Any, Any, _Answer]]) -> _Answer:
        """What *work* returns or raises in the thread.

        Raises:
            Unreachable: the thread or its client could not start, or has ended.
        """
        token = trio.lowlevel.current_trio_token()
        woken = trio.Event()
        answer = self._post(work)
        self._callers.add(woken)
        answer.add_done_callback(lambda _: _run_in_trio(token, woken.set))
        try:
            await woken.wait()
        finally:
            self._callers.discard(woken)
            answer.cancel()
        if not answer.done() or answer.cancelled():
            raise self._gone()
        return answer.result()

    async def stop(self) -> None:
        """Give up all requests, close the client and wait, not for ever, for the thread to end."""
        if self._loop is None:
            self._ended.set()
            return
        with suppress(RuntimeError):  # the loop has been closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        # A thread that is stuck in a name look-up must not keep the file system from being unmounted.
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await self._ended.wait()

    def _post(self, work: Callable[[_Client], Coroutine[Any, Any, _Answer]]) -> Future[_Answer]:
        if self._ended.is_set():
            raise self._gone()
        if self._loop is None:
            self._loop = self._start()
        request = self._with_client(work)
        try:
            return asyncio.run_coroutine_threadsafe(request, self._loop)
        except RuntimeError as error:  # the loop is closed, and its thread about to tell
            request.close()
            raise self._gone() from error

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        token = trio.lowlevel.current_trio_token()
        try:
            threading.Thread(target=self._serve, args=(loop, token), name="s3-client", daemon=True).start()
        except RuntimeError as error:
            loop.close()
            raise self._gone() from error
        return loop

    def _gone(self) -> Unreachable:
        return Unreachable(f"{self._name}: the S3 client's thread has ended or cannot start")

    def _serve(self, loop: asyncio.AbstractEventLoop, token: trio.lowlevel.TrioToken) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._hold_client())
        finally:
            loop.close()
            _run_in_trio(token, self._end)

    def _end(self) -> None:
        """In trio's thread, once the loop is closed: wakes callers whose answers will not come."""
        self._ended.set()
        for caller in self._callers:
            caller.set()

    async def _hold_client(self) -> None:
        try:
            async with self._connect() as self._client:
                self._connected.set()
                try:
                    await self._stop.wait()
                finally:
                    self._failure = f"{self._name}: the S3 client has ended"
        except Exception as error:
            self._failure = f"{self._name}: the S3 client cannot start: {error}"
            self._connected.set()
            await self._stop.wait()

    async def _with_client(self, work: Callable[[_Client], Coroutine[Any, Any, _Answer]]) -> _Answer:
        await self._connected.wait()
        try:
            if self._failure is None:
                return await work(self._client)
        except ReadError:
            # A client that is closed meanwhile fails in ways that tell nothing of the mirror's answer.
            if self._failure is None:
                raise
        raise Unreachable(self._failure)


def _run_in_trio(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(call)


async def _list(client: _Client, bucket: str, prefix: str, token: str | None) -> ListPage:
    continuation = {} if token is None else {"ContinuationToken": token}
    answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, **continuation)
    page = parse_listing(answer["body"])
    check_keys(page.objects, prefix)
    return page


async def _get(client: _Client, bucket: str, key: str, start: int, stop: int, etag: str) -> bytes:
    answer = await client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag)
    async with answer["body"] as body:
        _check_head(answer["status"], answer["headers"], start, stop, etag)
        return await _read(body, stop - start)


def _check_head(status: int, headers: dict[str, str], start: int, stop: int, etag: str) -> None:
    """Raise unless the answer's head promises bytes *start* to *stop* of the object with *etag*."""
    found = headers.get("etag")
    if not found:
        raise Untrusted("the answer has no ETag")
    if found != etag:
        raise ObjectChanged(f"the ETag is {found}, not {etag}")
    length = headers.get("content-length")
    if length is not None and length != str(stop - start):
        raise Untrusted(f"{length} bytes came for {stop - start}")
    if status == 206:
        asked = (start, stop - 1)
        given = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if given is None or (int(given[1]), int(given[2])) != asked:
            raise Untrusted(f"range {headers.get('content-range')!r} came for bytes {start}-{stop - 1}")
    # A server that knows no ranges sends the whole object, which may happen to be what was asked for.
    elif status != 200 or start != 0 or length is None:
        raise Untrusted(f"status {status} came for bytes {start}-{stop - 1}")


async def _read(body: Any, length: int) -> bytes:
    """The body, if it has exactly *length* bytes; at most one byte more is taken from it."""
    chunks = []
    missing = length
    while missing >= 0:
        chunk = await body.read(missing + 1)
        if not chunk:
            break
        chunks.append(chunk)
        missing -= len(chunk)
    if missing:
        raise Untrusted(f"{length - missing} bytes or more came for {length}")
    return b"".join(chunks)


class _Refused(Exception):
    """An answer whose status says that it has nothing of what was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


def _translate(error: Exception, what: str) -> ReadError:
    """What *error*, which came out of aiobotocore, means to the caller who asked for *what*."""
    # Loaded before, with the client that raised the error.
    from aiohttp import ClientError, ClientPayloadError
    from botocore.exceptions import ConnectionError as EndpointError
    from botocore.exceptions import HTTPClientError

    if isinstance(error, ReadError):
        return type(error)(f"{what}: {error}")
    reason = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    if isinstance(reason, _Refused):
        return _refusal(reason, what)
    if isinstance(reason or error, ClientPayloadError):
        return Untrusted(f"{what}: the body ended early")
    if isinstance(error, HTTPClientError | EndpointError | ClientError | OSError):
        return Unreachable(f"{what}: {reason or error or type(error).__name__}")
    return Untrusted(f"{what}: {type(error).__name__}: {error}")


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


@asynccontextmanager
async def _open_client(
    endpoint: str, connect_timeout: float, read_timeout: float, max_connections: int
) -> AsyncIterator[_Client]:
    """An aiobotocore client that depends on its arguments, proxies and certificate authorities alone."""
    import botocore
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.configprovider import ConfigValueStore, ConstantProvider
    from botocore.handlers import BUILTIN_HANDLERS

    session = AioSession()
    session.register_component("response_parser_factory", _NoParser())
    values = {name: default for name, (_, _, default, _) in AioSession.SESSION_VARIABLES.items()}
    values |= {"config_file": os.devnull, "credentials_file": os.devnull}
    providers = {name: ConstantProvider(value) for name, value in values.items()}
    session.register_component("config_store", ConfigValueStore(providers))
    # They rewrite answers for botocore's parsers, and parse each listing once to look for an error in it.
    for event, handler, *_ in BUILTIN_HANDLERS:
        if event == "before-parse.s3.*":
            session.unregister(event, handler)
    config = AioConfig(
        signature_version=botocore.UNSIGNED,
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        max_pool_connections=max_connections,
        http_session_cls=_session_class(),
    )
    async with session.create_client(
        "s3", region_name="us-east-1", endpoint_url=endpoint, verify=_authorities(), config=config
    ) as client:
        yield client


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


def _session_class() -> type:
    """An HTTP session that follows no redirects and hands botocore successes only.

    botocore would follow a redirect to other hosts and ask around for a bucket's region; IDC's mirrors never
    need either. Its reading of an error's body, however long, tells no more than the status.
    """
    from aiobotocore.httpsession import AIOHTTPSession

    class OneHostSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore ships no types
        async def _get_session(self, proxy_url: str | None) -> "_Requests":
            return _Requests(await super()._get_session(proxy_url))

    return OneHostSession


class _Requests:
    """The one method of an aiohttp session that aiobotocore calls."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> Any:
        response = await self._session.request(method, **options, allow_redirects=False)
        if response.status < 300:
            return response
        try:
            # A connection whose answer was read to its end can serve the next request.
            await response.content.read(_ERROR_BODY_BYTES)
        finally:
            response.close()
            raise _Refused(response.status)


class _NoParser:
    """Stands in for botocore's parsers and their factory: hands on the answer as it came.

    botocore would take 50 µs for a key of a listing, and stumble over headers that nobody asked for.
    """

    def create_parser(self, protocol_name: str) -> "_NoParser":
        return self

    async def parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        return {"status": response["status_code"], "headers": response["headers"], "body": response["body"]}
