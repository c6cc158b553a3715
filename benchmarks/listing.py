"""Times the first ``ls`` of the largest series, at 50 ms a request, and ``ls`` after a remount."""

from collections.abc import Iterator

from benchmarks.data import served
from benchmarks.results import Result
from benchmarks.workspace import Workspace

RUNS = 5


def measure(workspace: Workspace) -> Iterator[Result]:
    first, again, requests = [], [], []
    with served(workspace, ["largest"]) as (server, sets):
        (series,) = sets.largest
        for _ in range(workspace.runs(RUNS)):
            cache = workspace.cache()
            listed = workspace.folder / "listed"
            mark = server.mark()
            with workspace.mounted(cache, server.slow) as mounted:
                first.append(workspace.run("ls", mounted.path / series.folder, output=listed))
            requests.append(server.traffic(mark).lists)
            if listed.read_bytes().count(b"\n") != series.instances:
                raise RuntimeError(f"not all of {series.instances} instances were listed")
            with workspace.mounted(cache, server.slow) as mounted:
                again.append(workspace.run("ls", mounted.path / series.folder))
            if server.traffic(mark).lists != requests[-1]:
                raise RuntimeError("the listing was requested again after a remount")
    yield Result(f"first `ls` of {series.instances:,} instances", first, "s", at_most=2.5)
    yield Result("LIST requests for it", requests, "requests")
    yield Result("`ls` of it after a remount", again, "s")
