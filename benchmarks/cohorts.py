"""Cohorts: from a written query to its folder, what they take of a mount, and `stat` while a query runs.

Each query has a number in a comment: the result of a text that was seen before would only be opened again.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.results import Result
from benchmarks.s3_server import serving
from benchmarks.workspace import Mounted, Workspace, touch_memory
from idcfs.catalog.index import find_index

RUNS = 7
MOUNT_PAIRS = 15
MANY = 200

SOME, MORE = 1_000, 100_000
CLUSTERED = f"FROM index WHERE Modality = 'CT' LIMIT {SOME}"
SPREAD = f"FROM index USING SAMPLE reservoir({SOME} ROWS) REPEATABLE (42)"
SAMPLE = f"SELECT SeriesInstanceUID FROM index USING SAMPLE reservoir({MORE} ROWS) REPEATABLE (42)"
ALL = "SELECT SeriesInstanceUID FROM index"
HEAVY = """SELECT a.crdc_series_uuid FROM index AS a, index AS b
GROUP BY ALL HAVING sum(a.instanceCount * b.instanceCount) > 0"""
"""A million times a million rows: this ends by its limit only, so on any machine it runs for as long."""

HEAVY_SECONDS, HEAVY_RUNS = 10, 5
STAT_COLLECTION = "nlst"
STAT_PAUSE = 0.002
"""Seconds between two calls of `stat`, which must not keep a core busy themselves."""

FEWEST_STATS = 200
"""Calls during one evaluation, below which a 99th percentile says little."""

IDLE_SECONDS = 2

_numbers = itertools.count(1)


def measure(workspace: Workspace) -> Iterator[Result]:
    cache = workspace.cache()
    with serving() as mirror:
        yield from _from_query_to_folder(workspace, cache, mirror)
        yield from _many(workspace, cache, mirror)
        yield from _memory(workspace, cache, mirror)
        yield from _stat_elsewhere(workspace, cache, mirror)


def _from_query_to_folder(workspace: Workspace, cache: Path, mirror: str) -> Iterator[Result]:
    with _mounted(workspace, cache, mirror) as mounted:
        everything = int(mounted.status()["counts"]["series"])
        sources = [
            (f"{SOME:,} series of CT", CLUSTERED, SOME, 0.7),
            (f"{SOME:,} series from everywhere", SPREAD, SOME, 0.7),
            (f"all {everything:,} series", "FROM index", everything, 3),
        ]
        cases = [(columns, *source) for source in sources for columns in ("SeriesInstanceUID", "*")]
        seconds: list[list[float]] = [[] for _ in cases]
        for _ in range(RUNS):
            for (columns, _, source, series, _), measured in zip(cases, seconds, strict=True):
                # The child that evaluates all takes gigabytes.
                touch_memory()
                with _cohort(mounted) as folder:
                    measured.append(_define(workspace, folder, f"SELECT {columns} {source}"))
                    _expect(folder, series)
    for (columns, what, _, _, limit), measured in zip(cases, seconds, strict=True):
        yield Result(f"close() to `ls`: {what}, `SELECT {columns}`", measured, "s", at_most=limit)


def _many(workspace: Workspace, cache: Path, mirror: str) -> Iterator[Result]:
    full = workspace.folder / "many-cohorts"
    full.mkdir()
    for number in range(MANY):
        (full / f"cohort-{number:03}.sql").write_text(_fresh(ALL))
    without, with_many, listed = [], [], []
    for _ in range(MOUNT_PAIRS):
        with _mounted(workspace, cache, mirror) as mounted:
            without.append(mounted.seconds)
        with _mounted(workspace, cache, mirror, full) as mounted:
            with_many.append(mounted.seconds)
            listed.append(workspace.run("ls", mounted.path / "cohorts"))
    ratios = [mine / its for mine, its in zip(with_many, without, strict=True)]
    yield Result("mount to `ls` without cohorts", without, "s")
    yield Result(f"mount to `ls` with {MANY} cohorts", with_many, "s")
    yield Result("ratio of each pair", ratios, at_most=1.1)
    yield Result(f"`ls cohorts`, {MANY} cohorts", listed, "s")


def _memory(workspace: Workspace, cache: Path, mirror: str) -> Iterator[Result]:
    walks = {"`ls`": 0, "`find -maxdepth 2`": 2, "`find -maxdepth 3`": 3}
    grown: dict[str, list[float]] = {what: [] for what in walks}
    for _ in range(RUNS):
        with _mounted(workspace, cache, mirror) as mounted, _cohort(mounted) as folder:
            before = mounted.memory()
            _define(workspace, folder, SAMPLE)
            for what, depth in walks.items():
                if depth:
                    workspace.run("find", folder, "-maxdepth", str(depth))
                grown[what].append(mounted.memory() - before)
            _expect(folder, MORE)
    for what, values in grown.items():
        yield Result(f"PSS growth, {MORE:,} series, after {what}", values, "MB", at_most=30)


def _stat_elsewhere(workspace: Workspace, cache: Path, mirror: str) -> Iterator[Result]:
    names = processes.in_child(_patients, STAT_COLLECTION)
    # A mount for each kind, so that every name is asked for the first time.
    with _mounted(workspace, cache, mirror) as mounted:
        paths = (mounted.path / STAT_COLLECTION / name for name in names)
        idle = [_stat_while(workspace, paths, "sleep", str(IDLE_SECONDS)) for _ in range(RUNS)]
    with _mounted(workspace, cache, mirror) as mounted:
        paths = (mounted.path / STAT_COLLECTION / name for name in names)
        everything = []
        for _ in range(RUNS):
            touch_memory()
            with _cohort(mounted) as folder:
                everything.append(_stat_while_evaluating(workspace, paths, folder, ALL))
                _expect(folder, mounted.status()["counts"]["series"])
    with _mounted(workspace, cache, mirror, None, "--query-timeout", str(HEAVY_SECONDS)) as mounted:
        paths = (mounted.path / STAT_COLLECTION / name for name in names)
        heavy = []
        for _ in range(HEAVY_RUNS):
            touch_memory()
            with _cohort(mounted) as folder:
                heavy.append(_stat_while_evaluating(workspace, paths, folder, HEAVY))
                _expect_limit(folder)
    yield from _percentiles("idle", idle)
    yield from _percentiles("all series evaluated", everything, at_most=20)
    yield from _percentiles(f"a cross join for {HEAVY_SECONDS} s", heavy, at_most=20)


def _percentiles(what: str, runs: list[list[float]], at_most: float | None = None) -> Iterator[Result]:
    """Of the milliseconds of each run the 99th percentile, and the longest."""
    percentiles = [statistics.quantiles(run, n=100)[98] for run in runs]
    yield Result(f"`stat` elsewhere, 99th percentile: {what}", percentiles, "ms", at_most=at_most)
    yield Result(f"`stat` elsewhere, the longest: {what}", [max(run) for run in runs], "ms")


@contextlib.contextmanager
def _mounted(
    workspace: Workspace, cache: Path, mirror: str, cohorts: Path | None = None, *flags: str
) -> Iterator[Mounted]:
    """Mount with a folder of cohorts, an empty one if none is given; never with the user's."""
    folder = cohorts or workspace.folder / "cohorts"
    folder.mkdir(exist_ok=True)
    with workspace.mounted(cache, mirror, "--cohort-dir", str(folder), *flags) as mounted:
        yield mounted


@contextlib.contextmanager
def _cohort(mounted: Mounted) -> Iterator[Path]:
    """A new cohort, removed at the end."""
    folder = mounted.path / "cohorts" / "measured"
    folder.mkdir()
    yield folder
    folder.rmdir()


def _fresh(sql: str) -> str:
    return f"-- {next(_numbers)}\n{sql}\n"


def _define(workspace: Workspace, folder: Path, sql: str) -> float:
    """Write a cohort's query; the seconds from closing it to the end of `ls` of the cohort."""
    descriptor = os.open(folder / ".query", os.O_WRONLY)
    os.write(descriptor, _fresh(sql).encode())
    start = time.perf_counter()
    os.close(descriptor)
    workspace.run("ls", folder)
    return time.perf_counter() - start


def _expect(folder: Path, series: int) -> None:
    """Make sure that a cohort shows so many series."""
    shown = json.loads((folder / ".summary").read_bytes())["series"]
    if shown != series:
        raise RuntimeError(f"the cohort shows {shown:,} series instead of {series:,}")


def _expect_limit(folder: Path) -> None:
    """Make sure that a cohort's query was ended by the limit on its time."""
    told = (folder / ".error").read_text()
    if f"more than {HEAVY_SECONDS} seconds" not in told:
        raise RuntimeError(f"the heavy query ended otherwise: {told}")


def _stat_while_evaluating(workspace: Workspace, paths: Iterator[Path], folder: Path, sql: str) -> list[float]:
    """The milliseconds of `stat` of some paths, from writing a query until `ls` of its cohort has ended."""
    text = workspace.folder / "query.sql"
    text.write_text(_fresh(sql))
    return _stat_while(workspace, paths, "sh", "-c", 'cat "$1" > "$2/.query" && ls "$2"', "sh", str(text), str(folder))


def _stat_while(workspace: Workspace, paths: Iterator[Path], *command: str) -> list[float]:
    """The milliseconds of `stat` of some paths, one after the other while a command runs."""
    found = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=workspace.environment) as process:
        while process.poll() is None:
            path = next(paths)
            start = time.perf_counter()
            path.stat()
            found.append((time.perf_counter() - start) * 1000)
            time.sleep(STAT_PAUSE)
    if process.returncode or len(found) < FEWEST_STATS:
        raise RuntimeError(f"{command[0]} ended with {process.returncode} after {len(found)} calls of stat")
    return found


def _patients(collection: str) -> list[str]:
    """The patients of a collection in no order; loads duckdb, so it is called in a child process."""
    import duckdb

    rows = duckdb.execute(
        "SELECT DISTINCT PatientID FROM read_parquet($index) WHERE collection_id = $collection ORDER BY md5(PatientID)",
        {"index": str(find_index().tables["index"]), "collection": collection},
    ).fetchall()
    return [name for (name,) in rows]
