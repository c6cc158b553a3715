"""Readers who wait for a mirror that says nothing take nothing from those who need no mirror."""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.cases import RIGHT, STALLED_READS
from tests.faults.programs import HEADER, outcome
from tests.faults.server import FaultServer
from tests.faults.tree import SIZES, Series, series
from tests.index_factory import Row, make_index, objects
from tests.mounting import Commands, status

READERS = 300
"""More than requests that the kernel lets wait in the background, and than connections to the mirror."""

TIMEOUT = 20
"""Seconds that the mount gives a request, so that the readers still wait when the last look is taken."""

PROMPT = 2
"""Seconds that an answer from the cache may take on a busy machine."""

GRACE = 5


@pytest.mark.parametrize(("size", "length"), [(70_000, HEADER), (526_000, 526_000)], ids=["headers", "whole files"])
def test_stuck_readers_hold_up_nobody_else(tmp_path: Path, size: int, length: int) -> None:
    """Headers take little of the memory that all bytes go through; whole files of so many want more than there is."""
    crowd = Series(Row(collection="crowd", patient="patient", sizes=(size,) * READERS))
    # After the crowd, so that nothing of the crowd is read ahead of it.
    cached = series("known")
    rows = [crowd.row, cached.row]
    make_index(tmp_path / "index", rows)
    commands = Commands(tmp_path / "home")
    commands.home.mkdir()
    with FaultServer({f"{bucket}/{key}": data for bucket, key, data in objects(rows)}) as server:
        flags = ("--index", tmp_path / "index", "--mirror", server.url, "--timeout", str(TIMEOUT))
        with commands.mounted(tmp_path / "idc", *flags) as point:
            assert {outcome(look).told for look in looks(point, cached).values()} == {RIGHT}
        # A new daemon has nothing of what is cached in memory.
        with commands.mounted(tmp_path / "idc", *flags) as point:
            assert len(os.listdir(crowd.folder(point))) == READERS
            everybody_asks = threading.Barrier(READERS + 1)

            def read(name: str) -> str:
                with open(crowd.folder(point) / name, "rb", buffering=0) as file:
                    everybody_asks.wait(TIMEOUT)
                    return RIGHT if len(file.read(length)) == length else "too little"

            with ThreadPoolExecutor(READERS) as pool:
                with server.failing(STALLED_READS):
                    readers = [pool.submit(outcome, functools.partial(read, name)) for name in crowd.names]
                    everybody_asks.wait(TIMEOUT)
                    looked = {name: outcome(look) for name, look in looks(point, cached).items()}
                    assert {name: look.told for name, look in looked.items() if look.told != RIGHT} == {}
                    assert {name: look.seconds for name, look in looked.items() if look.seconds > PROMPT} == {}
                    assert not any(reader.done() for reader in readers)
                told = [reader.result() for reader in readers]
            assert max(reader.seconds for reader in told) < TIMEOUT + GRACE
            assert {reader.told for reader in told} <= {RIGHT, "ETIMEDOUT", "EHOSTUNREACH"}


def looks(point: Path, cached: Series) -> dict[str, Callable[[], str]]:
    """Looks at what is known: folders, attributes, every file of a series that is in the cache, and the status."""

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
