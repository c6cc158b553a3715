"""Comparisons: the sides of a comparison run in turn, several times, each time on a new mount."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.nginx import Server, Traffic
from benchmarks.workspace import TOUCHED_BYTES, Workspace, touch_memory

LARGE_MEMORY = 8 << 30
"""Bytes to touch before 2 GB are read: the page cache then has them as the mount's, the cache's and a copy's files."""


def in_turns(runs: int, *sides: Callable[[], float], memory: int = TOUCHED_BYTES) -> list[list[float]]:
    """Run each side in turn, *runs* times; return the measurements of each side.

    Args:
        runs: the number of runs.
        sides: the functions that measure.
        memory: the bytes of memory that a side may fill, most of them in the page cache.
    """
    measured: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for side, values in zip(sides, measured, strict=True):
            # Otherwise data of the side before would be written to disk during this one.
            os.sync()
            touch_memory(memory)
            values.append(side())
    return measured


def ratios(mine: Sequence[float], its: Sequence[float]) -> list[float]:
    """The ratio of each pair of measurements that were made in turn."""
    return [one / other for one, other in zip(mine, its, strict=True)]


class FreshMounts:
    """Mounts with empty caches, one for each run, and the requests that each made until it was unmounted.

    Args:
        workspace: the workspace of the mounts.
        server: the server whose log is counted.
        url: the server's URL that is mounted.
    """

    def __init__(self, workspace: Workspace, server: Server, url: str) -> None:
        self._workspace = workspace
        self._server = server
        self._url = url
        self.traffic: list[Traffic] = []

    def measure(self, work: Callable[[Path], float]) -> float:
        """Call *work* with the path of a new mount; return its result."""
        cache = self._workspace.cache()
        with self._workspace.mounted(cache, self._url) as mounted:
            mounted.settle()
            touch_memory(TOUCHED_BYTES)
            mark = self._server.mark()
            measured = work(mounted.path)
        self.traffic.append(self._server.traffic(mark))
        shutil.rmtree(cache)
        return measured

    def fetched(self, size: int) -> list[float]:
        """The bytes that each run fetched, in percent of *size*."""
        return [100 * traffic.bytes / size for traffic in self.traffic]

    def wasted(self, size: int) -> list[float]:
        """The bytes that each run, which read *size*, fetched and did not read, in percent of *size*."""
        return [percent - 100 for percent in self.fetched(size)]

    def requests(self) -> list[float]:
        """The requests of each run."""
        return [traffic.requests for traffic in self.traffic]
