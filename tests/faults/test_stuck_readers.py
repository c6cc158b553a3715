"""Readers that wait for a mirror without an answer do not hold up readers that need no mirror."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idcfs.mount.connection import SHORT_TIMEOUT
from tests.faults.cases import RIGHT, STALLED_READS
from tests.faults.programs import HEADER, outcome
from tests.faults.tree import SIZES, SMALL, Series, series
from tests.faults.world import World, drop_pages, world
from tests.index_factory import Row
from tests.mounting import CONNECTIONS, status
from tests.processes import is_running, until

READERS = 300
"""More readers than background requests in the kernel, and than connections to the mirror."""

TIMEOUT = 100
"""Seconds that the mount gives a request, so that the readers still wait when the last look is taken."""

GRACE = 30
"""Seconds more that a busy machine may take."""

KERNELS_MOST = 12
"""The kernel's default of background requests (max_background)."""


def crowd_of(readers: int, size: int) -> Series:
    """A series with a file for each reader; it comes before the cached series, so it is not read ahead."""
    return Series(Row(collection="crowd", patient="patient", sizes=(size,) * readers))


@pytest.mark.parametrize(("size", "length"), [(70_000, HEADER), (526_000, 526_000)], ids=["headers", "whole files"])
def test_waiting_readers_do_not_hold_up_others(tmp_path: Path, size: int, length: int) -> None:
    """Headers need little of the arena; whole files of so many readers need more than there is."""
    crowd, cached = crowd_of(READERS, size), series("known")
    with world(tmp_path, [crowd.row, cached.row], "--timeout", str(TIMEOUT)) as place:
        point = place.point
        with place.mounted():
            assert {outcome(look).result for look in looks(point, cached).values()} == {RIGHT}
        # A new daemon has nothing in memory of what is cached.
        with place.mounted():
            assert len(os.listdir(crowd.folder(point))) == READERS
            everybody_asks = threading.Barrier(READERS + 1)

            def read(name: str) -> str:
                with open(crowd.folder(point) / name, "rb", buffering=0) as file:
                    everybody_asks.wait(TIMEOUT)
                    return RIGHT if len(file.read(length)) == length else "too little"

            with ThreadPoolExecutor(READERS) as pool:
                with place.server.failing(STALLED_READS):
                    readers = [pool.submit(outcome, functools.partial(read, name)) for name in crowd.names]
                    everybody_asks.wait(TIMEOUT)
                    looked = {name: outcome(look) for name, look in looks(point, cached).items()}
                    assert {name: look.result for name, look in looked.items() if look.result != RIGHT} == {}
                    assert not any(reader.done() for reader in readers)
                outcomes = [reader.result() for reader in readers]
            assert max(reader.seconds for reader in outcomes) < TIMEOUT + GRACE
            assert {reader.result for reader in outcomes} <= {RIGHT, "ETIMEDOUT", "EHOSTUNREACH"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hide the kernel's limits")
def test_where_few_reads_may_wait_they_have_a_shorter_timeout(tmp_path: Path) -> None:
    crowd, cached = crowd_of(KERNELS_MOST, 70_000), series("known")
    with (
        world(tmp_path, [crowd.row, cached.row], "--timeout", str(TIMEOUT)) as place,
        mounted_without_limits(place) as point,
    ):
        assert "max_background" in status(point)["limits_failure"]
        look = looks(point, cached)[f"read of {SMALL} bytes"]
        assert look() == RIGHT
        drop_pages(cached.folder(point) / cached.instance(SMALL).name)
        assert len(os.listdir(crowd.folder(point))) == KERNELS_MOST
        waiting = CONNECTIONS / str(os.minor(os.stat(point).st_dev)) / "waiting"
        read = [functools.partial(read_header, crowd.folder(point) / name) for name in crowd.names]
        with ThreadPoolExecutor(KERNELS_MOST) as pool, place.server.failing(STALLED_READS):
            readers = [pool.submit(outcome, each) for each in read]
            until(lambda: int(waiting.read_text()) >= KERNELS_MOST)
            looked = outcome(look)
            outcomes = [reader.result() for reader in readers]
        assert looked.result == RIGHT
        assert {reader.result for reader in outcomes} <= {"ETIMEDOUT", "EHOSTUNREACH"}
        assert max(each.seconds for each in (looked, *outcomes)) < SHORT_TIMEOUT + GRACE


@contextlib.contextmanager
def mounted_without_limits(place: World) -> Iterator[Path]:
    """A mount in its own mount namespace, in which the kernel's limits cannot be raised, as in many containers."""
    if not CONNECTIONS.is_mount():
        pytest.skip(f"{CONNECTIONS} is not mounted, so the number of waiting requests is unknown")
    script = f"""
        umount {CONNECTIONS} && idcfs mount "$@" >&2 && idcfs status "$0" >&2 &&
        grep -Po '"pid": \\K\\d+' "$0/.idc/status.json"
    """
    done = place.commands.run("unshare", "--mount", "sh", "-c", script, place.point, *place.flags, place.point)
    assert done.returncode == 0, done.stderr
    daemon = int(done.stdout)
    try:
        assert "limited" in done.stderr
        yield Path(f"/proc/{daemon}/root{place.point}")
    finally:
        os.kill(daemon, signal.SIGTERM)
        until(lambda: not is_running(daemon))


def read_header(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return RIGHT if len(file.read(HEADER)) == HEADER else "too little"


def looks(point: Path, cached: Series) -> dict[str, Callable[[], str]]:
    """Looks at what needs no mirror: folders, attributes, every file of a cached series, and the status."""

    def same(found: object, wanted: object) -> str:
        return RIGHT if found == wanted else f"wrong: {found!r:.100}"

    def read(size: int) -> str:
        name, content = cached.instance(size)
        return same((cached.folder(point) / name).read_bytes(), content)

    return {
        "ls of the root": lambda: same(set(os.listdir(point)), {"crowd", "known", "cohorts"}),
        "ls of a series": lambda: same(sorted(os.listdir(cached.folder(point))), cached.names),
        "stat of a file": lambda: same(os.stat(cached.folder(point) / cached.names[0]).st_mode, 0o100444),
        "stat of a patient": lambda: same(os.stat(point / "crowd" / "patient").st_nlink, 3),
        **{f"read of {size} bytes": functools.partial(read, size) for size in SIZES},
        "status": lambda: same(status(point)["mirror"][:4], "http"),
    }
