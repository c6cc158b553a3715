"""Puts a mount under load: `stat` and memory while 32 readers saturate it, and small random reads of a cached file."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import stat_calls
from benchmarks.data import DataSets, served, size_of
from benchmarks.index_rows import SeriesRow
from benchmarks.nginx import Server
from benchmarks.results import Result
from benchmarks.stat_calls import percentiles, stat_while
from benchmarks.turns import LARGE_MEMORY
from benchmarks.workspace import Mounted, Workspace, touch_memory

RUNS = 5
SPACE = 10 * 10**9
"""Bytes of disk: the data, and caches of them."""

READERS = 32
FILES_AT_ONCE = 25
"""Files for each reader process; with fewer, starting the processes would take most of the time."""

MEMORY_PAUSE = 0.1
"""Seconds between two measurements of memory; each blocks the daemon's allocations for a millisecond."""

RANDOM_SECONDS = 5
RANDOM_BYTES = 4096


def measure(workspace: Workspace) -> Iterator[Result]:
    workspace.need_space(SPACE)
    with served(workspace) as (server, sets):
        yield from _under_load(workspace, server, sets)
        yield from _random_reads(workspace, server, sets.slide[0])


def _under_load(workspace: Workspace, server: Server, sets: DataSets) -> Iterator[Result]:
    names = iter(stat_calls.names())
    stats, rates, peaks = [], [], []
    for _ in range(workspace.runs(RUNS)):
        touch_memory(LARGE_MEMORY)
        cache = workspace.cache()
        with workspace.mounted(cache, server.plain) as mounted, _watching_memory(mounted) as memory:
            paths = (mounted.path / stat_calls.COLLECTION / name for name in names)
            start = time.perf_counter()
            stats.append(stat_while(workspace, paths, *_reading_all(mounted.path, sets.many)))
            rates.append(size_of(workspace, sets.many) / 1e6 / (time.perf_counter() - start))
            _everything_else(workspace, mounted.path, sets)
        peaks.append(max(memory))
        shutil.rmtree(cache)
    what = f"{READERS} readers"
    yield Result(f"{what}, throughput", rates, "MB/s")
    yield from percentiles(what, stats, at_most=20)
    yield Result("peak memory (PSS) during all this and a large listing", peaks, "MB", at_most=400)


def _reading_all(mount: Path, series: Sequence[SeriesRow]) -> list[str]:
    """The command that reads all files of some series in parallel."""
    read = f'find "$@" -type f -print0 | xargs -0 -n {FILES_AT_ONCE} -P {READERS} cat'
    return ["sh", "-c", read, "sh", *(str(mount / row.folder) for row in series)]


def _everything_else(workspace: Workspace, mount: Path, sets: DataSets) -> None:
    """Read what else fills a daemon's memory: many small files, a large file, and many names."""
    for row in [*sets.pet, *sets.reports, *sets.slide]:
        workspace.run("find", mount / row.folder, "-type", "f", "-exec", "cat", "{}", "+")
    workspace.run("ls", mount / sets.largest[0].folder)


@contextlib.contextmanager
def _watching_memory(mounted: Mounted) -> Iterator[list[float]]:
    """Measure the memory of a mount at intervals; yields the list of megabytes, to which each measurement is added."""
    stop, found = threading.Event(), [mounted.memory()]

    def look() -> None:
        while not stop.wait(MEMORY_PAUSE):
            # A worker may end while it is measured.
            with contextlib.suppress(OSError):
                found.append(mounted.memory())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def _random_reads(workspace: Workspace, server: Server, slide: SeriesRow) -> Iterator[Result]:
    cache = workspace.cache()
    with workspace.mounted(cache, server.plain) as mounted:
        workspace.run("find", mounted.path / slide.folder, "-type", "f", "-exec", "cat", "{}", "+")
    found = []
    for _ in range(workspace.runs(RUNS)):
        touch_memory()
        with workspace.mounted(cache, server.plain) as mounted:
            (path,) = (mounted.path / slide.folder).iterdir()
            found.append(_fio(workspace, path))
            if mounted.status()["bytes_fetched"]:
                raise RuntimeError("not everything was in the cache")
    yield Result(f"{RANDOM_BYTES // 1024} KiB random reads, cached, one thread", found, "reads/s", at_least=8000)


def _fio(workspace: Workspace, path: Path) -> float:
    """Random reads a second, with O_DIRECT, which bypasses the page cache."""
    output = workspace.folder / "fio"
    workspace.run(
        "fio", "--name=random", f"--filename={path}", "--readonly", "--rw=randread", f"--bs={RANDOM_BYTES}",
        "--direct=1", "--ioengine=psync", "--time_based", f"--runtime={RANDOM_SECONDS}", "--output-format=json",
        output=output,
    )  # fmt: skip
    return float(json.loads(output.read_bytes())["jobs"][0]["read"]["iops"])
