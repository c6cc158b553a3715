"""Connections that stall: the client ends them or sends a second request, within the time of a request."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from idcfs.errors import NotFound, Stalled
from idcfs.store.base import ObjectStore, ObjectVersion
from idcfs.store.retry import RetryingStore
from idcfs.store.s3 import S3Store
from tests.bodies import read
from tests.raw_server import http, read_head
from tests.s3_stores import s3_store

ETAG = '"0123456789abcdef"'
LENGTH = 100_000

TIMEOUT = 6.0
"""Seconds; a sixth of this without bytes is a stall, and a request without an answer is sent again after 0.4 s."""

STALL = TIMEOUT / 6


def answer(letter: bytes) -> bytes:
    headers = {"Content-Length": str(LENGTH), "Content-Range": f"bytes 0-{LENGTH - 1}/{LENGTH}", "ETag": ETAG}
    return http("206 Partial Content", headers, letter * LENGTH)


LISTING = http(
    "200 OK",
    {},
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/a</Key><Size>7</Size>"
    b"<LastModified>2024-01-02T03:04:05.678Z</LastModified><ETag>&quot;e&quot;</ETag></Contents></ListBucketResult>",
)

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


async def silence(stream: trio.SocketStream) -> None:
    # receive_some returns when the client closes the connection.
    await stream.receive_some()


def right(letter: bytes = b"r") -> Behaviour:
    return lambda stream: stream.send_all(answer(letter))


def late(seconds: float, letter: bytes) -> Behaviour:
    async def behave(stream: trio.SocketStream) -> None:
        await trio.sleep(seconds)
        await stream.send_all(answer(letter))

    return behave


def dripping(start: int, whole: bytes) -> Behaviour:
    """Send *start* bytes at once, and the rest one by one."""

    async def behave(stream: trio.SocketStream) -> None:
        await stream.send_all(whole[:start])
        for at in range(start, len(whole)):
            await trio.sleep(STALL / 10)
            await stream.send_all(whole[at : at + 1])

    return behave


async def slow(stream: trio.SocketStream) -> None:
    whole = answer(b"r")
    for at in range(0, len(whole), 5000):
        await stream.send_all(whole[at : at + 5000])
        await trio.sleep(STALL / 10)


async def half(stream: trio.SocketStream) -> None:
    await stream.send_all(answer(b"h")[: LENGTH // 2])
    await silence(stream)


class Script:
    """A server with a behaviour for each connection; further connections have the last one's."""

    def __init__(self, port: int, behaviours: list[Behaviour]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.behaviours = behaviours
        self.requests: list[bytes] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        try:
            head = await read_head(stream)
            if head is None:
                return
            at = min(len(self.requests), len(self.behaviours) - 1)
            self.requests.append(head)
            await self.behaviours[at](stream)
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def served(*behaviours: Behaviour, seconds: float = TIMEOUT) -> AsyncIterator[tuple[Script, S3Store]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Script(listener.socket.getsockname()[1], list(behaviours))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        async with s3_store(server.url, processes=1, timeout=seconds) as store:
            # The process takes a while to start, which is not what is measured here.
            store.start()
            with pytest.raises(NotFound):
                await store.list_page("", "refused before anything is sent")
            yield server, store
        nursery.cancel_scope.cancel()


async def get(store: ObjectStore) -> bytes:
    return await read(store, "bucket", "k", 0, LENGTH, ObjectVersion(ETAG, LENGTH))


async def test_a_request_without_an_answer_is_sent_again_on_another_connection() -> None:
    async with served(silence, right()) as (server, store):
        with trio.fail_after(TIMEOUT):
            assert await get(store) == b"r" * LENGTH
        assert len(server.requests) == 2
        assert server.requests[0] == server.requests[1]


async def test_a_listing_without_an_answer_is_requested_again_on_another_connection() -> None:
    async with served(silence, lambda stream: stream.send_all(LISTING)) as (server, store):
        with trio.fail_after(TIMEOUT):
            (found,) = (await store.list_page("bucket", "p/")).objects
        assert found.key == "p/a"
        assert len(server.requests) == 2


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.3, 1.6])
async def test_the_answers_to_two_requests_are_not_mixed(seconds: float) -> None:
    is_asked_again = trio.Event()

    async def first(stream: trio.SocketStream) -> None:
        await is_asked_again.wait()
        await late(seconds * STALL, b"a")(stream)

    async def second(stream: trio.SocketStream) -> None:
        is_asked_again.set()
        await late(0.1 * STALL, b"b")(stream)

    async with served(first, second, right(b"c")) as (server, store):
        with trio.fail_after(TIMEOUT):
            assert await get(store) in (b"a" * LENGTH, b"b" * LENGTH)
        await trio.sleep(2 * STALL)
        assert len(server.requests) == 2
        assert await get(store) == b"c" * LENGTH


STALLING = {
    "after half of the body": half,
    "one byte of a body at a time": dripping(len(answer(b"")) - LENGTH + 2000, answer(b"d")),
    "one byte of a head at a time": dripping(2, answer(b"d")),
    "one byte of all at a time": dripping(0, answer(b"d")),
}


@pytest.mark.parametrize("behaviour", STALLING.values(), ids=STALLING)
async def test_a_connection_that_stalls_is_given_up_early(behaviour: Behaviour) -> None:
    async with served(behaviour) as (server, store):
        with (
            trio.fail_after(TIMEOUT - STALL),
            pytest.raises(Stalled, match="next to nothing came for 1 seconds") as raised,
        ):
            await get(store)
        assert server.url in str(raised.value)


@pytest.mark.parametrize("behaviour", STALLING.values(), ids=STALLING)
async def test_a_stalled_request_is_repeated_within_the_deadline(behaviour: Behaviour) -> None:
    # Requests without an answer are sent again before that.
    async with served(behaviour, behaviour, right()) as (_, store):
        with trio.fail_after(TIMEOUT):
            assert await get(RetryingStore(store)) == b"r" * LENGTH


@pytest.mark.parametrize("behaviour", [silence, *STALLING.values()], ids=["silence", *STALLING])
@pytest.mark.parametrize("seconds", [1.5, 3.0])
async def test_a_mirror_that_always_stalls_is_an_error_within_a_short_deadline(
    behaviour: Behaviour, seconds: float
) -> None:
    async with served(behaviour, seconds=seconds) as (server, store):
        with trio.fail_after(seconds), pytest.raises(Stalled, match="next to nothing"):
            await get(RetryingStore(store))
        assert len(server.requests) >= 2


async def test_a_slow_mirror_is_waited_for() -> None:
    async with served(slow) as (server, store):
        with trio.fail_after(2 * TIMEOUT):
            assert await get(store) == b"r" * LENGTH
        assert len(server.requests) == 1


async def test_bodies_that_stall_do_not_block_others() -> None:
    async with served(*[half] * 30, right()) as (server, store), trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(stalled, store)
        with trio.fail_after(20):
            while len(server.requests) < 30:  # noqa: ASYNC110  # the server calls nobody
                await trio.sleep(0.01)
        # Without that, each eight of them would take the time of a stall.
        with trio.fail_after(2 * STALL):
            assert await get(store) == b"r" * LENGTH
        nursery.cancel_scope.cancel()


async def stalled(store: S3Store) -> None:
    with pytest.raises(Stalled):
        await get(store)
