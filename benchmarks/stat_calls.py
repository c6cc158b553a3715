"""Times `stat` of entries that are not in the kernel's cache, while a command runs."""

import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.results import Result
from benchmarks.workspace import Workspace
from idcfs.catalog.index import find_index

COLLECTION = "nlst"
PAUSE = 0.002
"""Seconds between two calls of `stat`, so that the calls themselves do not keep a core busy."""

FEWEST = 200
"""Calls in a run; with fewer, a 99th percentile means little."""


def names() -> list[str]:
    """The patients of a large collection, in random order."""
    return processes.in_child(_patients, COLLECTION)


def stat_while(workspace: Workspace, paths: Iterator[Path], *command: str) -> list[float]:
    """The milliseconds that `stat` of each path takes, one after the other while a command runs."""
    found = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=workspace.environment) as process:
        while process.poll() is None:
            path = next(paths)
            start = time.perf_counter()
            path.stat()
            found.append((time.perf_counter() - start) * 1000)
            time.sleep(PAUSE)
    if process.returncode or len(found) < FEWEST:
        raise RuntimeError(f"{command[0]} ended with {process.returncode} after {len(found)} calls of stat")
    return found


def percentiles(what: str, runs: list[list[float]], at_most: float | None = None) -> Iterator[Result]:
    """The 99th percentile and the longest of the milliseconds of each run."""
    values = [statistics.quantiles(run, n=100)[98] for run in runs]
    yield Result(f"`stat` elsewhere, 99th percentile: {what}", values, "ms", at_most=at_most)
    yield Result(f"`stat` elsewhere, the longest: {what}", [max(run) for run in runs], "ms")


def _patients(collection: str) -> list[str]:
    """Loads duckdb, so it is called in a child process."""
    import duckdb

    rows = duckdb.execute(
        "SELECT DISTINCT PatientID FROM read_parquet($index) WHERE collection_id = $collection ORDER BY md5(PatientID)",
        {"index": str(find_index().tables["index"]), "collection": collection},
    ).fetchall()
    return [name for (name,) in rows]
