"""The worker processes of `S3Store`: their end, and what waiting callers get when they end."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from idcfs.errors import ReadError, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.store.base import ObjectVersion
from idcfs.store.s3 import S3Store
from idcfs.store.server import Worker
from tests.conftest import WarningsLogged
from tests.processes import children_of, is_running
from tests.raw_server import RawServer, http
from tests.s3_stores import s3_store

ETAG = '"e"'

PARENT = """
import sys, trio
from idcfs.store.base import ObjectVersion
from tests.s3_stores import s3_store

async def main():
    async with s3_store(sys.argv[1], workers=2) as store:
        store.start()
        try:
            await store.get("bucket", "k", 0, 5, ObjectVersion('"e"', 5))
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


def workers_of(parent: int) -> list[int]:
    """The process ids of the workers of a process."""
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
    return bytes(await store.get("bucket", key, 0, length, ObjectVersion(ETAG, length)))


async def test_callers_of_a_killed_worker_get_an_error_and_it_is_replaced() -> None:
    async with letters() as server, s3_store(server.url, workers=1) as store:
        assert await get(store) == b"aaaaa"
        (worker,) = workers_of(os.getpid())
        before = len(server.requests)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(Unreachable, match=r"worker .*ended"):
                    await get(store, "x")

            server.more, server.stalls = -1, True
            for _ in range(3):
                nursery.start_soon(wait)
            await until(lambda: len(server.requests) == before + 3)
            os.kill(worker, signal.SIGKILL)
        server.more, server.stalls = 0, False
        with trio.fail_after(20):
            assert await get(store) == b"aaaaa"
        (new,) = workers_of(os.getpid())
        assert new != worker


async def test_a_closed_store_leaves_no_process() -> None:
    async with letters() as server:
        async with s3_store(server.url, workers=2) as store:
            store.start()
            assert await get(store) == b"aaaaa"
            workers = workers_of(os.getpid())
            assert len(workers) == 2
        assert not any(map(is_running, workers))
        with pytest.raises(Unreachable, match="not open"):
            await get(store)
    async with s3_store("http://127.0.0.1:1") as unused:
        assert workers_of(os.getpid()) == []
    with pytest.raises(Unreachable, match="not open"):
        await get(unused)


async def test_closing_a_store_at_once_or_while_a_caller_waits_does_not_hang() -> None:
    async with letters() as server:
        with trio.fail_after(20):
            async with s3_store(server.url, workers=2) as store:
                store.start()
            server.more, server.stalls = -1, True
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(ReadError):
                        await get(store, "x")

                async with s3_store(server.url, workers=1) as store:
                    nursery.start_soon(wait)
                    await until(lambda: server.requests)
    assert workers_of(os.getpid()) == []


async def test_workers_end_when_their_parent_is_killed() -> None:
    async with letters() as server:
        command = [sys.executable, "-c", PARENT, server.url]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # it takes no time
        try:
            assert parent.stdout is not None
            assert await trio.to_thread.run_sync(parent.stdout.readline) == b"asked\n"
            workers = workers_of(parent.pid)
            assert len(workers) == 2
        finally:
            parent.kill()
            parent.communicate()
        await until(lambda: not any(map(is_running, workers)))


async def test_a_worker_ignores_sigint() -> None:
    async with letters() as server, s3_store(server.url, workers=1) as store:
        await get(store)
        (worker,) = workers_of(os.getpid())
        os.kill(worker, signal.SIGINT)
        assert await get(store) == b"aaaaa"
        assert workers_of(os.getpid()) == [worker]


async def test_a_cancelled_request_frees_its_memory() -> None:
    options = {"workers": 1, "max_connections": 1, "arena_bytes": 120_000}
    async with letters() as server, s3_store(server.url, **options) as store:
        server.more, server.stalls = -1, True
        for _ in range(5):
            before = len(server.requests)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, store, "x", 100_000)
                await until(lambda before=before: len(server.requests) > before)  # type: ignore[misc]
                nursery.cancel_scope.cancel()
        server.more, server.stalls = 0, False
        with trio.fail_after(20):
            assert await get(store, "b", 100_000) == b"b" * 100_000


async def test_a_request_that_is_cancelled_before_it_is_sent_leaves_the_worker_idle() -> None:
    async with letters() as server, s3_store(server.url, workers=1) as store:
        assert await get(store) == b"aaaaa"
        with trio.fail_after(20):
            for _ in range(50):
                with trio.move_on_after(0):
                    await get(store)
            assert await get(store) == b"aaaaa"
        (worker,) = store._workers._workers
        assert worker is not None
        assert worker.busy == 0


@pytest.mark.parametrize("more", [-1, 1, 70_000, 3_000_000])
async def test_a_body_that_is_too_long_or_too_short_changes_no_other_bytes(more: int) -> None:
    async with letters() as server, s3_store(server.url, workers=1) as store:
        server.more = more
        kept: dict[str, bytes | memoryview] = {}

        async def good(key: str) -> None:
            kept[key] = await store.get("bucket", key, 0, 20_000, ObjectVersion(ETAG, 20_000))

        async def bad() -> None:
            with pytest.raises(Untrusted):
                await get(store, "x", 20_000)

        async with trio.open_nursery() as nursery:
            for key in "abcdefgh":
                nursery.start_soon(good, key)
                nursery.start_soon(bad)
        assert {key: bytes(data) for key, data in kept.items()} == {key: key.encode() * 20_000 for key in "abcdefgh"}


async def test_requests_for_more_than_the_arena_holds_wait_and_are_answered() -> None:
    async with letters() as server, s3_store(server.url, workers=1, arena_bytes=100_000) as store:
        done: list[str] = []

        async def ask(key: str) -> None:
            assert await get(store, key, 40_000) == key.encode() * 40_000
            done.append(key)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for key in "abcdefghijklmnop":
                    nursery.start_soon(ask, key)
        assert len(done) == 16


async def test_a_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged) -> None:
    gc.collect()
    # pytest keeps the arenas of tests that failed before, with their tracebacks.
    before = arenas_open()
    async with letters() as server, s3_store(server.url, workers=1) as store:
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


async def test_who_cannot_take_an_answer_is_logged_and_takes_nothing_from_others(
    warnings_logged: WarningsLogged,
) -> None:
    stumbled: list[object] = []

    def stumble(*told: object) -> None:
        stumbled.append(told)
        raise ZeroDivisionError

    async with letters() as server, s3_store(server.url, workers=1) as store:
        assert await get(store) == b"aaaaa"
        workers = workers_of(os.getpid())
        server.stalls = True
        assert store.get_soon("bucket", "a", 0, 5, ObjectVersion(ETAG, 5), stumble)
        await until(lambda: stumbled)
        assert warnings_logged.take("could not be taken")
        assert (
            bytes(await store.get("bucket", "b", 0, 300_000, ObjectVersion(ETAG, 300_000), stumble)) == b"b" * 300_000
        )
        while warnings_logged.messages:
            assert warnings_logged.take("could not be taken")
        assert len(stumbled) > 1
        assert workers_of(os.getpid()) == workers
        # Of those who are told that a worker has ended, too.
        server.more = -1
        before = len(server.requests)
        outcomes: list[object] = []
        assert store.get_soon("bucket", "x", 0, 5, ObjectVersion(ETAG, 5), stumble)
        assert store.get_soon("bucket", "x", 0, 5, ObjectVersion(ETAG, 5), outcomes.append)
        await until(lambda: len(server.requests) == before + 2)
        os.kill(workers[0], signal.SIGKILL)
        await until(lambda: outcomes)
        assert warnings_logged.take("could not be taken")
        server.more, server.stalls = 0, False
        assert await get(store) == b"aaaaa"


REFUSING = """#!{python}
import json, socket, sys

connection = socket.socket(fileno=json.loads(sys.argv[-1])["socket"])
for line in connection.makefile():
    answer = {{"id": json.loads(line)["id"], "error": "CacheUnusable", "message": "what no mirror says"}}
    connection.sendall(json.dumps(answer).encode() + b"\\n")
"""
"""A program in place of a worker, which answers with an error that no mirror has."""


async def test_an_unknown_error_of_a_worker_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "worker"
    program.write_text(REFUSING.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    outcomes: list[object] = []
    async with s3_store("http://127.0.0.1:1", workers=1) as store:
        assert store.get_soon("bucket", "a", 0, 5, ObjectVersion(ETAG, 5), outcomes.append)
        await until(lambda: outcomes)
    (outcome,) = outcomes
    assert isinstance(outcome, Unreachable)
    assert str(outcome) == "what no mirror says"


async def test_each_of_several_workers_has_at_least_one_connection() -> None:
    with Arena(1) as arena:
        store = S3Store("http://127.0.0.1:1", arena, workers=2, max_connections=1)
    assert store._workers.options["client"]["max_connections"] == 1


def test_a_request_that_is_cancelled_before_it_begins_is_answered() -> None:
    answers: list[bytes] = []

    class Writer:
        def write(self, answer: bytes) -> None:
            answers.append(answer)

    async def run() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b'{"do": "list", "bucket": "b", "prefix": "p", "token": null, "id": 7}\n{"cancel": 7}\n')
        reader.feed_eof()
        await Worker(None, "why", memoryview(b""), Writer()).serve(reader)  # type: ignore[arg-type]  # what it uses of one
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert len(answers) == 1
    assert b'"id": 7' in answers[0]
