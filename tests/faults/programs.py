"""The operations of programs on a mount in these tests, and their outcomes."""

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
    """The result for a program (`RIGHT`, the name of an errno or signal, or what was wrong), and its seconds."""

    result: str
    seconds: float


def outcome(call: Callable[[], str]) -> Outcome:
    """The outcome of *call*, from what it returns or raises."""
    began = time.monotonic()
    try:
        result = call()
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    return Outcome(result, time.monotonic() - began)


def do(operation: Operation, point: Path, series: Series, cohort: str) -> str:
    """Do the operation on a series of the mount on *point*, or write the query of a new *cohort* of the series."""
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
    """Read the beginning of a file, as readers of headers do."""
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
    # In another process, which gets SIGBUS where a page cannot be read.
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
    # Each cohort has another text, because results are kept by text.
    text = f"-- {name}\nSELECT SeriesInstanceUID FROM index WHERE collection_id = '{collection}'"
    (cohort / ".query").write_text(text)
    return same(os.listdir(cohort), [collection])


def same(found: object, wanted: object) -> str:
    """`RIGHT` if *found* is *wanted*, else a text with both."""
    if found == wanted:
        return RIGHT
    return f"wrong: {len(found) if isinstance(found, bytes) else found!r:.200} for {wanted!r:.200}"
