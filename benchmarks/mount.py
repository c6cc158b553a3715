"""Times ``idcfs mount`` until the first ``ls`` has ended, and measures the memory that the mount takes."""

from collections.abc import Iterator

from benchmarks.results import Result
from benchmarks.workspace import NOWHERE, Workspace

RUNS = 9
BUILDS = 3


def measure(workspace: Workspace) -> Iterator[Result]:
    builds = []
    for _ in range(workspace.runs(BUILDS)):
        with workspace.mounted(workspace.empty_cache(), NOWHERE) as mounted:
            builds.append(mounted.seconds)
    yield Result("first mount, the catalogue built, to `ls`", builds, "s", at_most=6)

    cache = workspace.cache()
    seconds, listed, crawled = [], [], []
    for _ in range(workspace.runs(RUNS)):
        with workspace.mounted(cache, NOWHERE) as mounted:
            seconds.append(mounted.seconds)
            mounted.settle()
            listed.append(mounted.memory())
            workspace.run("find", mounted.path, "-maxdepth", "3")
            crawled.append(mounted.memory())
    yield Result("mount, the catalogue present, to `ls`", seconds, "s", at_most=1)
    yield Result("PSS after `ls`", listed, "MB", at_most=200)
    yield Result("PSS after `find -maxdepth 3`", crawled, "MB", at_most=300)
