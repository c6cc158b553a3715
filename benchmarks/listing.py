"""The first ``ls`` of the largest series, at 50 ms a request, and ``ls`` after a remount."""

from collections.abc import Iterator

from benchmarks import processes
from benchmarks.index_rows import largest_series
from benchmarks.results import Result
from benchmarks.s3_server import Generated, request_counts, serving
from benchmarks.workspace import Workspace

RUNS = 5
LATENCY = 0.05
SIZE = 99_000
"""Bytes of an instance: what the largest series' have."""


def measure(workspace: Workspace) -> Iterator[Result]:
    series = processes.in_child(largest_series)
    first, again, requests = [], [], []
    with serving({series.uuid: Generated(series.instances, SIZE)}, LATENCY) as mirror:
        for _ in range(RUNS):
            cache = workspace.cache()
            listed = workspace.folder / "listed"
            before = request_counts(mirror)["LIST"]
            with workspace.mounted(cache, mirror) as mounted:
                first.append(workspace.run("ls", mounted.path / series.folder, output=listed))
            requests.append(request_counts(mirror)["LIST"] - before)
            if listed.read_bytes().count(b"\n") != series.instances:
                raise RuntimeError(f"not all of {series.instances} instances were listed")
            with workspace.mounted(cache, mirror) as mounted:
                again.append(workspace.run("ls", mounted.path / series.folder))
            if request_counts(mirror)["LIST"] - before != requests[-1]:
                raise RuntimeError("the listing was asked for again after a remount")
    yield Result(f"first `ls` of {series.instances:,} instances", first, "s", at_most=2.5)
    yield Result("LIST requests for it", requests, "requests")
    yield Result("`ls` of it after a remount", again, "s")
