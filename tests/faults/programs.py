"""What programs do with a mount in these tests, and what they are told."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.cases import RIGHT, Operation
from tests.faults.tree import LARGE, SMALL, Series
from tests.index_factory import instances

HEADER = 4096

_READ_MAP = """
import mmap, sys
try:
    with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sys.stdout.buffer.write(mapped[int(sys.argv[2]) : int(sys.argv[3])])
except OSError as error:
    sys.exit(error.errno)
"""


class Outcome(NamedTuple):
    """What a program was told (`RIGHT`, the name of an errno or signal, or what was wrong), after how many seconds."""

    told: str
    seconds: float


def outcome(call: Callable[[], str]) -> Outcome:
    """What *call* says or raises."""
    began = time.monotonic()
    try:
        told = call()
    except OSError as error:
        told = errno.errorcode[error.errno or 0]
    return Outcome(told, time.monotonic() - began)


def do(operation: Operation, point: Path, series: Series, cohort: str) -> str:
    """Do it to a series of the mount on *point*, or write the query of a new *cohort* that names the series."""
    match operation:
        case Operation.LS:
            return same(sorted(os.listdir(series.folder(point))), series.names)
        case Operation.STAT:
            return same(os.stat(series.folder(point) / series.instance(SMALL).name).st_size, SMALL)
        case Operation.SMALL:
            return read_small(point, series)
        case Operation.WHOLE:
            name, content = series.instance(LARGE)
            return same((series.folder(point) / name).read_bytes(), content)
        case Operation.MMAP:
            name, content = series.instance(LARGE)
            return read_map(series.folder(point) / name, content)
        case Operation.COHORT:
            return _write_cohort(point, series, cohort)


def read_small(point: Path, series: Series) -> str:
    """Read the beginning of a file, as those do who look for headers."""
    name, content = series.instance(SMALL)
    with open(series.folder(point) / name, "rb", buffering=0) as file:
        return same(file.read(HEADER), content[:HEADER])


def read_all(point: Path, series: Series) -> str:
    """Read every file of a series."""
    folder = series.folder(point)
    found = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    return RIGHT if found == dict(instances(series.row)) else "wrong"


def read_map(path: Path, content: bytes, start: int = 0, length: int = sys.maxsize) -> str:
    """Read a part of a file that has *content* through a map."""
    # In a process of its own: where there are no bytes, it gets a signal.
    command = [sys.executable, "-SEc", _READ_MAP, str(path), str(start), str(start + length)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    if done.returncode:
        raise OSError(done.returncode, "the file was not mapped")
    return same(done.stdout, content[start : start + length])


def _write_cohort(point: Path, series: Series, name: str) -> str:
    cohort = point / "cohorts" / name
    if not cohort.is_dir():
        cohort.mkdir()
    collection = series.row.collection
    # No two cohorts have the same text: results are kept by it.
    text = f"-- {name}\nSELECT SeriesInstanceUID FROM index WHERE collection_id = '{collection}'"
    (cohort / ".query").write_text(text)
    return same(os.listdir(cohort), [collection])


def same(found: object, wanted: object) -> str:
    """What to say of what was found."""
    if found == wanted:
        return RIGHT
    return f"wrong: {len(found) if isinstance(found, bytes) else found!r:.200} for {wanted!r:.200}"
