"""The processes of `S3Store`: their end, and what waiting callers get when they end."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from idcfs.errors import ReadError, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Cancel, Decoder, Envelope, Failed, encode
from idcfs.processes.server import Connection
from idcfs.store.base import Body, ObjectVersion, Range
from idcfs.store.messages import ClientOptions, Get, List, Page
from idcfs.store.s3 import S3Store
from idcfs.store.server import Server
from tests.bodies import copied, outcome_of, read
from tests.conftest import WarningsLogged
from tests.processes import children_of, is_reaped, is_running, stopped
from tests.raw_server import RawServer, http
from tests.s3_stores import s3_store

ETAG = '"e"'

PARENT = """
import sys, trio
from idcfs.store.base import ObjectVersion, Range
from tests.s3_stores import s3_store

async def main():
    async with s3_store(sys.argv[1], processes=2) as store:
        store.start()
        try:
            await store.get(Range("bucket", "k", 0, 5, ObjectVersion('"e"', 5)))
        except Exception as error:
            print(error, flush=True)
        print("asked", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


class Letters(RawServer):
    """Answers a request for *key* with as many of its first letter as were requested, or with *more* of "x"."""

    more = 0
    promise = True

    async def handle(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        head = await stream.receive_some()
        if not head:
            return
        self.requests.append(bytes(head))
        key = head.split(b" ")[1].rpartition(b"/")[2]
        span = head.lower().partition(b"range: bytes=")[2].partition(b"\r\n")[0]
        start, end = map(int, span.split(b"-"))
        length = end - start + 1
        wrong = self.more if key.startswith(b"x") else 0
        headers = {"Content-Range": f"bytes {start}-{end}/{end + 1}", "ETag": ETAG}
        if wrong == 0:
            headers["Content-Length"] = str(length)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(http("206 Partial Content", headers, bytes(key[:1]) * (length + wrong)))
            if self.stalls:
                await stream.receive_some()


@asynccontextmanager
async def letters() -> AsyncIterator[Letters]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Letters("http", listener.socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        yield server
        nursery.cancel_scope.cancel()


def processes_of(parent: int) -> list[int]:
    """The ids of the processes that ask mirrors for *parent*."""
    return children_of(parent, "idcfs.store.server")


def arenas_open() -> int:
    """The number of descriptors of arenas that this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "idcfs-arena" in str(link.readlink())
    return found


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await trio.sleep(0.01)


async def get(store: S3Store, key: str = "a", length: int = 5) -> bytes:
    return await read(store, "bucket", key, 0, length, ObjectVersion(ETAG, length))


async def test_a_process_that_is_killed_fails_its_requests_and_is_replaced() -> None:
    async with letters() as server, s3_store(server.url, processes=1) as store:
        assert await get(store) == b"aaaaa"
        (process,) = processes_of(os.getpid())
        before = len(server.requests)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(Unreachable, match="the process has ended"):
                    await get(store, "x")

            server.more, server.stalls = -1, True
            for _ in range(3):
                nursery.start_soon(wait)
            await until(lambda: len(server.requests) == before + 3)
            os.kill(process, signal.SIGKILL)
        server.more, server.stalls = 0, False
        with trio.fail_after(20):
            assert await get(store) == b"aaaaa"
        (new,) = processes_of(os.getpid())
        assert new != process


async def test_a_closed_store_leaves_no_process() -> None:
    async with letters() as server:
        async with s3_store(server.url, processes=2) as store:
            store.start()
            assert await get(store) == b"aaaaa"
            processes = processes_of(os.getpid())
            assert len(processes) == 2
        assert not any(map(is_running, processes))
        with pytest.raises(Unreachable, match="not open"):
            await get(store)
    async with s3_store("http://127.0.0.1:1") as unused:
        assert processes_of(os.getpid()) == []
    with pytest.raises(Unreachable, match="not open"):
        await get(unused)


async def test_closing_a_store_at_once_or_while_a_caller_waits_does_not_hang() -> None:
    async with letters() as server:
        with trio.fail_after(20):
            async with s3_store(server.url, processes=2) as store:
                store.start()
            server.more, server.stalls = -1, True
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(ReadError):
                        await get(store, "x")

                async with s3_store(server.url, processes=1) as store:
                    nursery.start_soon(wait)
                    await until(lambda: server.requests)
    assert processes_of(os.getpid()) == []


async def test_processes_end_when_their_parent_is_killed() -> None:
    async with letters() as server:
        command = [sys.executable, "-c", PARENT, server.url]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # it takes no time
        try:
            assert parent.stdout is not None
            assert await trio.to_thread.run_sync(parent.stdout.readline) == b"asked\n"
            processes = processes_of(parent.pid)
            assert len(processes) == 2
        finally:
            parent.kill()
            parent.communicate()
        await until(lambda: not any(map(is_running, processes)))


async def test_a_process_ignores_what_the_keyboard_sends() -> None:
    async with letters() as server, s3_store(server.url, processes=1) as store:
        await get(store)
        (process,) = processes_of(os.getpid())
        os.kill(process, signal.SIGINT)
        assert await get(store) == b"aaaaa"
        assert processes_of(os.getpid()) == [process]


async def test_a_cancelled_request_is_given_up_and_its_memory_is_free_again() -> None:
    with Arena(120_000) as arena:
        async with letters() as server, S3Store(server.url, arena, processes=1, max_connections=1) as store:
            server.more, server.stalls = -1, True
            for _ in range(5):
                before = len(server.requests)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(get, store, "x", 100_000)
                    await until(lambda before=before: len(server.requests) > before)  # type: ignore[misc]
                    assert arena.leased == 100_000
                    nursery.cancel_scope.cancel()
                assert arena.leased == 0
            server.more, server.stalls = 0, False
            with trio.fail_after(20):
                assert await get(store, "b", 100_000) == b"b" * 100_000


async def test_memory_that_a_killed_process_may_write_into_is_not_free_before_it_is_reaped() -> None:
    with Arena(120_000) as arena:
        async with letters() as server, S3Store(server.url, arena, processes=1) as store:
            assert await get(store) == b"aaaaa"
            (process,) = processes_of(os.getpid())
            before = len(server.requests)
            server.more, server.stalls = -1, True
            threads = trio.to_thread.current_default_thread_limiter()
            threads.total_tokens = 1
            # The process cannot be reaped for want of a thread.
            async with threads:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(get, store, "x", 100_000)
                    await until(lambda: len(server.requests) > before)
                    # It does not answer that it has given up, and is killed.
                    os.kill(process, signal.SIGSTOP)
                    nursery.cancel_scope.cancel()
                await until(lambda: not is_running(process))
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert arena.leased == 100_000
            await until(lambda: arena.leased == 0)
            assert is_reaped(process)
            server.more, server.stalls = 0, False
            assert await get(store, "b", 100_000) == b"b" * 100_000


async def test_a_process_that_answers_a_cancellation_late_is_not_killed() -> None:
    async with letters() as server, s3_store(server.url, processes=1) as store:
        assert await get(store) == b"aaaaa"
        (process,) = processes_of(os.getpid())
        with stopped(process):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, store, "b")
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
                os.kill(process, signal.SIGCONT)
        assert await get(store) == b"aaaaa"
        assert processes_of(os.getpid()) == [process]


async def test_a_request_that_is_cancelled_before_it_is_sent_leaves_nobody_waiting() -> None:
    async with letters() as server, s3_store(server.url, processes=1) as store:
        assert await get(store) == b"aaaaa"
        with trio.fail_after(20):
            for _ in range(50):
                with trio.move_on_after(0):
                    await get(store)
            assert await get(store) == b"aaaaa"
        (child,) = store._pool._children
        assert child is not None
        assert child.unanswered == 0


@pytest.mark.parametrize("more", [-1, 1, 70_000, 3_000_000])
async def test_a_body_that_is_too_long_or_too_short_leaves_other_bytes_alone(more: int) -> None:
    async with letters() as server, s3_store(server.url, processes=1) as store:
        server.more = more
        kept: dict[str, Body] = {}

        async def good(key: str) -> None:
            kept[key] = await store.get(Range("bucket", key, 0, 20_000, ObjectVersion(ETAG, 20_000)))

        async def bad() -> None:
            with pytest.raises(Untrusted):
                await get(store, "x", 20_000)

        async with trio.open_nursery() as nursery:
            for key in "abcdefgh":
                nursery.start_soon(good, key)
                nursery.start_soon(bad)
        assert {key: copied(body) for key, body in kept.items()} == {key: key.encode() * 20_000 for key in "abcdefgh"}


async def test_requests_for_more_memory_than_there_is_wait_and_are_served() -> None:
    async with letters() as server, s3_store(server.url, processes=1, arena_bytes=100_000) as store:
        done: list[str] = []

        async def ask(key: str) -> None:
            assert await get(store, key, 40_000) == key.encode() * 40_000
            done.append(key)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for key in "abcdefghijklmnop":
                    nursery.start_soon(ask, key)
        assert len(done) == 16


async def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged) -> None:
    gc.collect()
    # pytest keeps the arenas of tests that failed before, with their tracebacks.
    before = arenas_open()
    async with letters() as server, s3_store(server.url, processes=1) as store:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/no/such/python")
            for _ in range(3):
                with pytest.raises(Unreachable, match="cannot be started"):
                    await get(store)
                assert warnings_logged.take("cannot be started")
        assert await get(store) == b"aaaaa"
    del store
    gc.collect()
    assert arenas_open() <= before


async def test_a_callback_that_fails_is_logged_and_takes_nothing_from_others(
    warnings_logged: WarningsLogged,
) -> None:
    stumbled: list[object] = []

    def stumble(outcome: Body | ReadError) -> None:
        stumbled.append(outcome_of(outcome))
        raise ZeroDivisionError

    def stumble_early(lease: Lease, filled: int) -> None:
        stumbled.append(filled)
        raise ZeroDivisionError

    async with letters() as server, s3_store(server.url, processes=1) as store:
        assert await get(store) == b"aaaaa"
        processes = processes_of(os.getpid())
        server.stalls = True
        assert store.get_soon(Range("bucket", "a", 0, 5, ObjectVersion(ETAG, 5)), stumble)
        await until(lambda: stumbled)
        assert warnings_logged.take("could not be taken")
        version = ObjectVersion(ETAG, 300_000)
        assert await read(store, "bucket", "b", 0, 300_000, version, stumble_early) == b"b" * 300_000
        while warnings_logged.messages:
            assert warnings_logged.take("could not be taken")
        assert len(stumbled) > 1
        assert processes_of(os.getpid()) == processes
        # So is a callback that gets the error when a process has ended.
        server.more = -1
        before = len(server.requests)
        outcomes: list[object] = []
        assert store.get_soon(Range("bucket", "x", 0, 5, ObjectVersion(ETAG, 5)), stumble)
        assert store.get_soon(Range("bucket", "x", 0, 5, ObjectVersion(ETAG, 5)), outcomes.append)
        await until(lambda: len(server.requests) == before + 2)
        os.kill(processes[0], signal.SIGKILL)
        await until(lambda: outcomes)
        assert warnings_logged.take("could not be taken")
        server.more, server.stalls = 0, False
        assert await get(store) == b"aaaaa"


REFUSING = """#!{python}
import json, socket, sys

connection = socket.socket(fileno=int(sys.argv[-3]))
for line in connection.makefile():
    answer = [json.loads(line)[0], True, "Failed", "CacheUnusable", "what no mirror says"]
    connection.sendall(json.dumps(answer).encode() + b"\\n")
"""
"""A program that takes a process' place."""


async def test_an_error_of_any_kind_gives_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(REFUSING.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    outcomes: list[object] = []
    async with s3_store("http://127.0.0.1:1", processes=1) as store:
        assert store.get_soon(Range("bucket", "a", 0, 5, ObjectVersion(ETAG, 5)), outcomes.append)
        await until(lambda: outcomes)
    (outcome,) = outcomes
    assert isinstance(outcome, Unreachable)
    assert str(outcome) == "what no mirror says"


async def test_one_connection_for_several_processes_is_not_without_bound() -> None:
    with Arena(1) as arena:
        store = S3Store("http://127.0.0.1:1", arena, processes=2, max_connections=1)
    options = store._pool._program.options
    assert isinstance(options, ClientOptions)
    assert options.max_connections == 1


def test_a_request_that_is_cancelled_before_it_begins_is_answered() -> None:
    async def answers() -> list[Envelope]:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            ours.sendall(encode(7, List("b", "p", None)) + encode(7, Cancel()))
            server = Server(None, "why", memoryview(b""), Connection(theirs, [List, Get]))
            serving = asyncio.create_task(server.serve())
            loop = asyncio.get_running_loop()
            received = await loop.sock_recv(ours, 1 << 16)
            ours.shutdown(socket.SHUT_WR)
            await serving
            theirs.close()
            while chunk := await loop.sock_recv(ours, 1 << 16):
                received += chunk
        return Decoder([Page]).feed(received)

    ((number, is_last, message),) = asyncio.run(answers())
    assert (number, is_last) == (7, True)
    assert isinstance(message, Failed)
