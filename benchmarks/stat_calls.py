"""How long `stat` takes of entries that the kernel has not asked for before, while something else goes on."""

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
"""Seconds between two calls of `stat`, which must not keep a core busy themselves."""

FEWEST = 200
"""Calls during one run, below which a 99th percentile says little."""


def names() -> list[str]:
    """The patients of a collection that has many, in no order."""
    return processes.in_child(_patients, COLLECTION)


def stat_while(workspace: Workspace, paths: Iterator[Path], *command: str) -> list[float]:
    """The milliseconds of `stat` of some paths, one after the other while a command runs."""
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
    """Of the milliseconds of each run the 99th percentile, and the longest."""
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
