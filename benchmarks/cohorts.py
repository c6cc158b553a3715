"""Cohorts: the time from a query to its folder, their cost to a mount, and `stat` while a query runs.

Each query has a number in a comment, because the result of a text that was evaluated before would be reused.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stat_calls
from benchmarks.results import Result
from benchmarks.stat_calls import percentiles, stat_while
from benchmarks.workspace import NOWHERE, Mounted, Workspace, touch_memory

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
"""A million times a million rows: on every machine this runs until the time limit ends it."""

HEAVY_SECONDS, HEAVY_RUNS = 10, 5
IDLE_SECONDS = 2

_numbers = itertools.count(1)


def measure(workspace: Workspace) -> Iterator[Result]:
    cache = workspace.cache()
    yield from _from_query_to_folder(workspace, cache)
    yield from _many(workspace, cache)
    yield from _memory(workspace, cache)
    yield from _stat_elsewhere(workspace, cache)


def _from_query_to_folder(workspace: Workspace, cache: Path) -> Iterator[Result]:
    with _mounted(workspace, cache) as mounted:
        everything = int(mounted.status()["counts"]["series"])
        sources = [
            (f"{SOME:,} series of CT", CLUSTERED, SOME, 0.7),
            (f"{SOME:,} series from everywhere", SPREAD, SOME, 0.7),
            (f"all {everything:,} series", "FROM index", everything, 3),
        ]
        cases = [(columns, *source) for source in sources for columns in ("SeriesInstanceUID", "*")]
        seconds: list[list[float]] = [[] for _ in cases]
        for _ in range(workspace.runs(RUNS)):
            for (columns, _, source, series, _), measured in zip(cases, seconds, strict=True):
                # The child that evaluates all series takes gigabytes.
                touch_memory()
                with _cohort(mounted) as folder:
                    measured.append(_define(workspace, folder, f"SELECT {columns} {source}"))
                    _expect(folder, series)
    for (columns, what, _, _, limit), measured in zip(cases, seconds, strict=True):
        yield Result(f"close() to `ls`: {what}, `SELECT {columns}`", measured, "s", at_most=limit)


def _many(workspace: Workspace, cache: Path) -> Iterator[Result]:
    full = workspace.folder / "many-cohorts"
    full.mkdir()
    for number in range(MANY):
        (full / f"cohort-{number:03}.sql").write_text(_fresh(ALL))
    without, with_many, listed = [], [], []
    for _ in range(workspace.runs(MOUNT_PAIRS)):
        with _mounted(workspace, cache) as mounted:
            without.append(mounted.seconds)
        with _mounted(workspace, cache, full) as mounted:
            with_many.append(mounted.seconds)
            listed.append(workspace.run("ls", mounted.path / "cohorts"))
    ratios = [mine / its for mine, its in zip(with_many, without, strict=True)]
    yield Result("mount to `ls` without cohorts", without, "s")
    yield Result(f"mount to `ls` with {MANY} cohorts", with_many, "s")
    yield Result("ratio of each pair", ratios, at_most=1.1)
    yield Result(f"`ls cohorts`, {MANY} cohorts", listed, "s")


def _memory(workspace: Workspace, cache: Path) -> Iterator[Result]:
    walks = {"`ls`": 0, "`find -maxdepth 2`": 2, "`find -maxdepth 3`": 3}
    grown: dict[str, list[float]] = {what: [] for what in walks}
    for _ in range(workspace.runs(RUNS)):
        with _mounted(workspace, cache) as mounted, _cohort(mounted) as folder:
            mounted.settle()
            before = mounted.memory()
            _define(workspace, folder, SAMPLE)
            for what, depth in walks.items():
                if depth:
                    workspace.run("find", folder, "-maxdepth", str(depth))
                grown[what].append(mounted.memory() - before)
            _expect(folder, MORE)
    for what, values in grown.items():
        yield Result(f"PSS growth, {MORE:,} series, after {what}", values, "MB", at_most=30)


def _stat_elsewhere(workspace: Workspace, cache: Path) -> Iterator[Result]:
    names = stat_calls.names()
    # A new mount for each kind, so that the kernel has cached none of the names.
    with _mounted(workspace, cache) as mounted:
        paths = (mounted.path / stat_calls.COLLECTION / name for name in names)
        idle = [stat_while(workspace, paths, "sleep", str(IDLE_SECONDS)) for _ in range(workspace.runs(RUNS))]
    with _mounted(workspace, cache) as mounted:
        paths = (mounted.path / stat_calls.COLLECTION / name for name in names)
        everything = []
        for _ in range(workspace.runs(RUNS)):
            touch_memory()
            with _cohort(mounted) as folder:
                everything.append(_stat_while_evaluating(workspace, paths, folder, ALL))
                _expect(folder, mounted.status()["counts"]["series"])
    with _mounted(workspace, cache, None, "--query-timeout", str(HEAVY_SECONDS)) as mounted:
        paths = (mounted.path / stat_calls.COLLECTION / name for name in names)
        heavy = []
        for _ in range(workspace.runs(HEAVY_RUNS)):
            touch_memory()
            with _cohort(mounted) as folder:
                heavy.append(_stat_while_evaluating(workspace, paths, folder, HEAVY))
                _expect_limit(folder)
    yield from percentiles("idle", idle)
    yield from percentiles("all series evaluated", everything, at_most=20)
    yield from percentiles(f"a cross join for {HEAVY_SECONDS} s", heavy, at_most=20)


@contextlib.contextmanager
def _mounted(workspace: Workspace, cache: Path, cohorts: Path | None = None, *flags: str) -> Iterator[Mounted]:
    """Mount with a cohort folder, never the user's; without *cohorts* it is an empty one."""
    folder = cohorts or workspace.folder / "cohorts"
    folder.mkdir(exist_ok=True)
    with workspace.mounted(cache, NOWHERE, "--cohort-dir", str(folder), *flags) as mounted:
        yield mounted


@contextlib.contextmanager
def _cohort(mounted: Mounted) -> Iterator[Path]:
    """Make a new cohort, and remove it at the end."""
    folder = mounted.path / "cohorts" / "measured"
    folder.mkdir()
    yield folder
    folder.rmdir()


def _fresh(sql: str) -> str:
    return f"-- {next(_numbers)}\n{sql}\n"


def _define(workspace: Workspace, folder: Path, sql: str) -> float:
    """Write a cohort's query; return the seconds from close() to the end of `ls` of the cohort."""
    descriptor = os.open(folder / ".query", os.O_WRONLY)
    os.write(descriptor, _fresh(sql).encode())
    start = time.perf_counter()
    os.close(descriptor)
    workspace.run("ls", folder)
    return time.perf_counter() - start


def _expect(folder: Path, series: int) -> None:
    """Make sure that a cohort shows this number of series."""
    shown = json.loads((folder / ".summary").read_bytes())["series"]
    if shown != series:
        raise RuntimeError(f"the cohort shows {shown:,} series instead of {series:,}")


def _expect_limit(folder: Path) -> None:
    """Make sure that a cohort's query was ended by the limit on its time."""
    error = (folder / ".error").read_text()
    if f"more than {HEAVY_SECONDS} seconds" not in error:
        raise RuntimeError(f"the heavy query was not ended by its time limit: {error}")


def _stat_while_evaluating(workspace: Workspace, paths: Iterator[Path], folder: Path, sql: str) -> list[float]:
    """The milliseconds that `stat` of each path takes, from writing a query to the end of `ls` of its cohort."""
    text = workspace.folder / "query.sql"
    text.write_text(_fresh(sql))
    return stat_while(workspace, paths, "sh", "-c", 'cat "$1" > "$2/.query" && ls "$2"', "sh", str(text), str(folder))
