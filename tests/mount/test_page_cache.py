"""The kernel's page cache of a mount, filled ahead of readers, and the process that fills it."""

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from idcfs.mount.mountpoint import mounts
from idcfs.pages.client import PAGE, WAITING_PART, PageCache, open_page_cache
from idcfs.processes.arena import Arena
from tests.faults.cases import STALLED_READS
from tests.faults.server import GET, FaultServer
from tests.mounting import CONNECTIONS, Commands, status
from tests.processes import PATIENCE, children_of, is_running, stopped, until, until_at_rest, until_true

SERIES = "527a5965-9a10-477b-863a-3597081538a4"
FILES = 360
SIZE = 200_000
"""Bytes; more than a head, so that reads of heads are recognised, and few enough to be put into pages."""

MEMORY = "64MiB"
"""Less than the size of the series."""

TRIES = 20
"""Mounts until one has a given number: the least that is free, on a machine that makes other mounts."""


@pytest.fixture(scope="module", autouse=True)
def fusectl() -> None:
    if not CONNECTIONS.is_mount():
        pytest.skip(f"{CONNECTIONS} is not mounted, so nobody can abort a mount")
    if os.getuid() == 0 and not os.access(CONNECTIONS, os.W_OK):
        pytest.skip(f"{CONNECTIONS} cannot be written")


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    random = Random(1)
    return {f"{number:04}.dcm": random.randbytes(SIZE + number) for number in range(FILES)}


@pytest.fixture
def server(contents: dict[str, bytes]) -> Iterator[FaultServer]:
    with FaultServer({f"idc-open-data/{SERIES}/{name}": content for name, content in contents.items()}) as server:
        yield server


@pytest.fixture
def point(commands: Commands, server: FaultServer) -> Iterator[Path]:
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--memory", MEMORY) as point:
        page_worker(point)
        # The kernel accepts pages only of files that it has looked up.
        assert len(os.listdir(series(point))) == FILES
        yield point


def series(point: Path) -> Path:
    return point / ".idc" / "by-uuid" / SERIES


def page_worker(point: Path) -> int:
    """The id of the process that fills the pages of a mount."""
    daemon = int(status(point)["pid"])
    until(lambda: len(children_of(daemon, "idcfs.pages.server")) == 1)
    (worker,) = children_of(daemon, "idcfs.pages.server")
    return worker


def read_all(point: Path, contents: dict[str, bytes]) -> None:
    """Read the series file by file, and leave all the time that it takes to fetch ahead."""
    daemon = int(status(point)["pid"])
    for name, content in contents.items():
        assert (series(point) / name).read_bytes() == content
        until_fetched(daemon)


def until_fetched(daemon: int) -> None:
    """Wait until what a mount fetches ahead is there; the server is in this process."""
    until_at_rest(daemon, *children_of(daemon), os.getpid())


def ignores(process: int, number: int) -> bool:
    """Whether a process ignores a signal."""
    found = re.search(r"^SigIgn:\s+([0-9a-f]+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def test_a_series_is_read_right_and_mostly_from_pages(point: Path, contents: dict[str, bytes]) -> None:
    read_all(point, contents)
    facts = status(point)
    total = sum(map(len, contents.values()))
    assert facts["bytes_served"] < total / 2, "most was in the page cache before it was read"
    assert facts["bytes_fetched"] < total * 1.1
    # Read again, although the kernel may have dropped some pages.
    for name, content in contents.items():
        assert (series(point) / name).read_bytes() == content
    for name, content in contents.items():
        with open(series(point) / name, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == content


def test_many_readers_of_files_being_filled_read_the_right_bytes(point: Path, contents: dict[str, bytes]) -> None:
    def read(name: str) -> bool:
        with open(series(point) / name, "rb", buffering=0) as file:
            parts = iter(lambda: file.read(50_000), b"")
            return b"".join(parts) == contents[name]

    with ThreadPoolExecutor(8) as pool:
        # Several readers read each file at a time.
        assert all(pool.map(read, [name for name in contents for _ in range(3)]))


def test_a_reader_that_changes_from_whole_files_to_heads_is_noticed(point: Path, contents: dict[str, bytes]) -> None:
    names, daemon = list(contents), int(status(point)["pid"])
    for name in names[:20]:
        (series(point) / name).read_bytes()
        until_fetched(daemon)
    for name in names[20:]:
        with open(series(point) / name, "rb", buffering=0) as file:
            assert file.read(4096) == contents[name][:4096]
        until_fetched(daemon)
    # Before that, at most the window ahead of the reader is fetched in vain.
    assert status(point)["bytes_fetched"] < 0.75 * sum(map(len, contents.values()))


def test_a_killed_daemon_leaves_a_dead_mount_and_no_process(
    commands: Commands, server: FaultServer, contents: dict[str, bytes]
) -> None:
    point = commands.home / "idc"
    assert commands.idcfs("mount", "--mirror", server.url, "--memory", MEMORY, point).returncode == 0
    try:
        worker, daemon = page_worker(point), int(status(point)["pid"])
        names = os.listdir(series(point))
        for name in names[:10]:
            (series(point) / name).read_bytes()
            until_fetched(daemon)
        workers = children_of(daemon)
        assert worker in workers
        assert len(workers) > 2
        with server.failing(STALLED_READS):
            # A reader waits for a page that will not come.
            asked = server.requests[GET]
            reader = commands.start("cat", series(point) / names[-1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                until(lambda: server.requests[GET] > asked)
                os.kill(daemon, signal.SIGKILL)
                until(lambda: number_of(lambda: os.statvfs(point)) == errno.ENOTCONN)
                reader.wait(PATIENCE)
                assert reader.returncode != 0
            finally:
                reader.kill()
                reader.communicate()
        until(lambda: not any(map(is_running, workers)))
        assert commands.run("fusermount3", "-u", point).returncode == 0
        with commands.mounted(point, "--mirror", server.url):
            assert (series(point) / names[-1]).read_bytes() == contents[names[-1]]
    finally:
        commands.run("fusermount3", "-uz", point)


def number_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_a_stopped_page_worker_blocks_no_other_file(point: Path, contents: dict[str, bytes]) -> None:
    worker = page_worker(point)
    names = list(contents)
    (series(point) / names[0]).read_bytes()
    with stopped(worker):
        # More than the whole arena: leases that wait for the worker may not use up all of it.
        read_all(point, contents)
        assert is_running(worker)
    assert (series(point) / names[0]).read_bytes() == contents[names[0]]


def test_a_killed_page_worker_causes_no_error(point: Path, contents: dict[str, bytes]) -> None:
    worker, daemon = page_worker(point), int(status(point)["pid"])
    for at, (name, content) in enumerate(contents.items()):
        if at == 50:
            os.kill(worker, signal.SIGKILL)
        assert (series(point) / name).read_bytes() == content
        until_fetched(daemon)
    assert page_worker(point) != worker
    assert status(point)["bytes_served"] < 0.7 * sum(map(len, contents.values()))


def test_a_mount_that_ends_late_does_not_end_the_next_one(
    commands: Commands, server: FaultServer, contents: dict[str, bytes]
) -> None:
    """The kernel gives the next mount the number of one that has ended, whose processes may still run."""
    one, other = commands.home / "one", commands.home / "other"
    assert commands.idcfs("mount", "--mirror", server.url, one).returncode == 0
    worker, daemon = page_worker(one), int(status(one)["pid"])
    try:
        with contextlib.ExitStack() as stack:
            with stopped(daemon):
                number = connection_of(one)
                assert commands.run("fusermount3", "-u", "-z", one).returncode == 0
                for _ in range(TRIES):
                    # Meanwhile another test's mount may have it.
                    with contextlib.ExitStack() as mounting:
                        mounting.enter_context(commands.mounted(other, "--mirror", server.url))
                        if connection_of(other) == number:
                            stack.enter_context(mounting.pop_all())
                            break
                else:
                    pytest.skip("this kernel gave the next mounts other numbers")
            until(lambda: not is_running(daemon) and not is_running(worker))
            assert (series(other) / "0000.dcm").read_bytes() == contents["0000.dcm"]
            assert status(other)["pid"]
    finally:
        if is_running(daemon):
            os.kill(daemon, signal.SIGKILL)
        commands.run("fusermount3", "-uz", one)


def connection_of(point: Path) -> str:
    return next(mount.device for mount in reversed(mounts()) if mount.path == point)


def test_a_stopped_page_worker_does_not_keep_the_mount_of_a_killed_daemon(
    commands: Commands, server: FaultServer
) -> None:
    point = commands.home / "idc"
    assert commands.idcfs("mount", "--mirror", server.url, point).returncode == 0
    worker, daemon = page_worker(point), int(status(point)["pid"])
    try:
        # The worker has then set PR_SET_PDEATHSIG.
        until(lambda: ignores(worker, signal.SIGTERM))
        with stopped(worker):
            os.kill(daemon, signal.SIGKILL)
            # The worker holds the device, so while it is stopped the kernel waits for answers.
            until(lambda: not is_running(worker))
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.listdir(point)
    finally:
        commands.run("fusermount3", "-uz", point)


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    with Arena(64 * PAGE) as arena:
        yield arena


@pytest.fixture
async def pages(tmp_path: Path, arena: Arena) -> AsyncIterator[PageCache]:
    """A page cache whose worker has a device that is not mounted, so that the kernel takes nothing."""
    (tmp_path / "abort").touch()
    device = os.open("/dev/fuse", os.O_RDWR)
    with contextlib.closing(os.fdopen(device, "rb", buffering=0)):
        async with open_page_cache(arena) as pages:
            pages.start(tmp_path / "abort")
            await until_true(lambda: children_of(os.getpid(), "idcfs.pages.server"))
            yield pages


@pytest.fixture
def worker(pages: PageCache) -> int:
    (worker,) = children_of(os.getpid(), "idcfs.pages.server")
    return worker


async def test_leases_of_the_reserve_do_not_wait_for_the_page_worker(
    arena: Arena, pages: PageCache, worker: int
) -> None:
    """The worker waits while the kernel waits for a mirror, and reads from the disk need the reserve."""
    with stopped(worker):
        fetched = await arena.take(arena.reserve)
        for _ in range(10):
            with await arena.take(2 * PAGE) as lease:
                pages.fill(7, 0, lease, False, lambda: None)
            assert arena.leased == len(fetched), "a lease that was passed on is held"
        with fetched, fetched.part(0, 2 * PAGE) as part:
            pages.fill(7, 0, part, False, lambda: None)
        assert arena.leased == len(fetched), "what was fetched is held until it is stored"
    await until_true(lambda: arena.leased == 0)


async def test_no_more_than_a_part_of_the_arena_waits_for_a_stopped_page_worker(
    arena: Arena, pages: PageCache, worker: int
) -> None:
    taken: list[None] = []
    for _ in range(2):
        with stopped(worker):
            for _ in range(20):
                with await arena.take(2 * PAGE) as lease:
                    pages.fill(7, 0, lease, False, lambda: taken.append(None))
            assert arena.leased == arena.size * WAITING_PART
        await until_true(lambda: arena.leased == 0)
    assert not taken, "no file was filled"


async def test_leases_are_released_when_the_page_worker_is_killed(arena: Arena, pages: PageCache, worker: int) -> None:
    with stopped(worker):
        with await arena.take(2 * PAGE) as lease:
            pages.fill(7, 0, lease, False, lambda: None)
        os.kill(worker, signal.SIGKILL)
        await until_true(lambda: arena.leased == 0)
    # Another worker takes its place.
    with await arena.take(int(arena.size * WAITING_PART)) as lease:
        pages.fill(7, 0, lease, False, lambda: None)
    assert arena.leased
    await until_true(lambda: arena.leased == 0)


@pytest.mark.parametrize(
    ("length", "all_but_last", "is_stored"),
    [
        (PAGE, False, False),
        (2 * PAGE, False, True),
        (2 * PAGE + 5, True, True),
        (3 * PAGE, True, True),
        (2 * PAGE, True, False),
    ],
)
async def test_a_page_that_saves_readers_no_request_is_not_stored(
    arena: Arena, pages: PageCache, worker: int, length: int, all_but_last: bool, is_stored: bool
) -> None:
    with stopped(worker):
        with await arena.take(length) as lease:
            pages.fill(7, 0, lease, all_but_last, lambda: None)
        assert arena.leased == (length if is_stored else 0)
    await until_true(lambda: arena.leased == 0)
