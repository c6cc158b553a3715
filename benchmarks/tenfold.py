"""Mounts an index ten times as large as the real one, and compares time and memory with the real one's."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.results import Result
from benchmarks.workspace import NOWHERE, Workspace

TIMES = 10
PAIRS = 7
SPACE = 8 * 10**9
"""Bytes of disk: 2 GB of parquet and catalogue, and duckdb's temporary files while it sorts."""

RENAMED = {
    "collection_id": "collection_id || '_' || copy",
    "PatientID": "PatientID || '_' || copy",
    "StudyInstanceUID": "StudyInstanceUID || '.' || copy",
    "SeriesInstanceUID": "SeriesInstanceUID || '.' || copy",
    "crdc_series_uuid": "CAST(CAST(md5(crdc_series_uuid || copy) AS UUID) AS VARCHAR)",
}
"""Expressions in SQL, by column, that give each copy of a series other identifiers."""

WATCH_SECONDS = 0.02
"""Seconds between two measurements of the memory of the building child."""


def measure(workspace: Workspace) -> Iterator[Result]:
    workspace.need_space(SPACE)
    index = workspace.folder / "tenfold-index"
    index.mkdir()
    processes.in_child(_write_index, index)
    cache = workspace.empty_cache()
    peaks = [0.0]
    with _watching_build(peaks), workspace.mounted(cache, NOWHERE, "--index", str(index)) as mounted:
        yield Result("tenfold: first mount, the catalogue built, to `ls`", [mounted.seconds], "s")
    yield Result("tenfold: peak memory (RSS) of the building child", [max(peaks)], "MB")

    real, tenfold = [], []
    for _ in range(workspace.runs(PAIRS)):
        with workspace.mounted(workspace.cache(), NOWHERE) as mounted:
            mounted.settle()
            real.append((mounted.seconds, mounted.memory()))
        with workspace.mounted(cache, NOWHERE, "--index", str(index)) as mounted:
            mounted.settle()
            tenfold.append((mounted.seconds, mounted.memory()))
    for number, (what, unit) in enumerate([("mount to `ls`", "s"), ("PSS after `ls`", "MB")]):
        yield Result(f"real: {what}", [run[number] for run in real], unit)
        yield Result(f"tenfold: {what}", [run[number] for run in tenfold], unit)
        ratios = [ten[number] / one[number] for one, ten in zip(real, tenfold, strict=True)]
        yield Result(f"{what}, ratio of each pair", ratios, at_most=1.2)


def _write_index(folder: Path) -> None:
    """Write the index with each series `TIMES` times; loads duckdb, so it is called in a child process."""
    import duckdb

    from idcfs.catalog.index import REQUIRED, find_index

    # Without preserve_insertion_order, memory does not grow with the index.
    duckdb.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false")
    replaced = ", ".join(f"{sql} AS {column}" for column, sql in RENAMED.items())
    for source in find_index().folder.glob("*.parquet"):
        copied = folder / source.name
        if source.name in REQUIRED.values():
            duckdb.execute(
                f"COPY (SELECT * EXCLUDE (copy) REPLACE ({replaced}) FROM read_parquet('{source}'), "
                f"(SELECT range AS copy FROM range({TIMES}))) TO '{copied}'"
            )
        else:
            copied.symlink_to(source)


@contextlib.contextmanager
def _watching_build(peaks: list[float]) -> Iterator[None]:
    """Measure the memory of children that build a catalogue at intervals, and append it to *peaks*."""
    stop = threading.Event()

    def look() -> None:
        # The mount starts meanwhile, as a child of this process.
        while not stop.wait(WATCH_SECONDS):
            children = processes.descendants(os.getpid())
            builders = [child for child in children if "idcfs.catalog.build" in processes.command_line(child)]
            peaks.extend(map(processes.peak_memory, builders))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
