"""Taking turns: things that are compared run one after the other, again and again, each on a mount of its own."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.nginx import Server, Traffic
from benchmarks.workspace import TOUCHED_BYTES, Workspace, touch_memory

LARGE_MEMORY = 8 << 30
"""Bytes to touch before 2 GB are read: they are in the page cache as the mount's, as the cache's and as a copy's."""


def in_turns(runs: int, *sides: Callable[[], float], memory: int = TOUCHED_BYTES) -> list[list[float]]:
    """What each side measured in each run.

    Args:
        runs: how many.
        sides: what takes turns.
        memory: bytes that a side may fill: files in the page cache, above all.
    """
    measured: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for side, values in zip(sides, measured, strict=True):
            # What the one before left to be written would be written during this one.
            os.sync()
            touch_memory(memory)
            values.append(side())
    return measured


def ratios(mine: Sequence[float], its: Sequence[float]) -> list[float]:
    """The ratio of each pair of neighbours."""
    return [one / other for one, other in zip(mine, its, strict=True)]


class FreshMounts:
    """Mounts with empty caches, one for each run, and what each asked the server for until it was unmounted.

    Args:
        workspace: where.
        server: that logs.
        url: one of its.
    """

    def __init__(self, workspace: Workspace, server: Server, url: str) -> None:
        self._workspace = workspace
        self._server = server
        self._url = url
        self.traffic: list[Traffic] = []

    def measure(self, work: Callable[[Path], float]) -> float:
        """What *work* returns for the path of a new mount."""
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
